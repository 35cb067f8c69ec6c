"""Which layers are kept."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from draftrank.building.surgery.layer_scores import angular_distances, block_influence, layers_by_loss
from draftrank.building.surgery.layer_selection import choose_layers, evenly_spaced
from draftrank.errors import BuildError

IDS = torch.arange(3, 43).reshape(2, 20)


@pytest.mark.parametrize(
    ("keep", "select", "expected"),
    [
        (1, "ends", (0,)),
        (2, "ends", (0, 3)),
        (3, "ends", (0, 1, 3)),
        (4, "ends", (0, 1, 2, 3)),
        (2, "first", (0, 1)),
        (1, "even", (0,)),
        (2, "even", (0, 3)),
        (3, "even", (0, 2, 3)),
        ((1, 3), None, (1, 3)),
    ],
)
def test_choices_that_need_no_text(make_context, make_draft, keep, select, expected):
    context = make_context()
    assert choose_layers(keep, select, make_draft(context), context) == expected


@given(st.data())
def test_even_spacing_is_even(data):
    depth = data.draw(st.integers(1, 200))
    count = data.draw(st.integers(1, depth))
    chosen = evenly_spaced(count, depth)
    assert len(set(chosen)) == count
    if count > 1:
        assert (chosen[0], chosen[-1]) == (0, depth - 1)
        gaps = [after - before for before, after in pairwise(chosen)]
        assert max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize(("keep", "select"), [(5, "ends"), (5, "block_influence"), ((0, 4), None)])
def test_more_layers_than_there_are_is_refused(make_context, make_draft, keep, select):
    context = make_context()
    with pytest.raises(BuildError, match=r"4 layers, so 5 .* at most 4|layers 0 to 3: there is no layer 4"):
        choose_layers(keep, select, make_draft(context), context)


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt2"])
@torch.inference_mode()
def test_block_influence_equals_its_formula(make_context, make_draft, architecture):
    draft = make_draft(make_context(architecture))
    outputs = []
    layers = draft.architecture.layers(draft.model)
    handles = [
        layer.register_forward_hook(
            lambda _m, given, out: outputs.append((given[0], out if torch.is_tensor(out) else out[0]))
        )
        for layer in layers
    ]
    draft.model(IDS)
    for handle in handles:
        handle.remove()
    expected = []
    for before, after in outputs:
        values = [
            float(x @ y / (x.norm() * y.norm()))
            for x, y in zip(before.flatten(0, 1).double(), after.flatten(0, 1).double(), strict=True)
        ]
        expected.append(1 - sum(values) / len(values))
    found = block_influence(draft, IDS.repeat(8, 1).to(torch.int32))
    assert found == pytest.approx(expected, abs=1e-5)
    assert len(set(found)) == len(found)
    assert all(not layer._forward_hooks for layer in layers)


@pytest.mark.usefixtures("in_fp32")
def test_the_layers_with_the_most_influence_stay(make_context, make_draft):
    context = make_context()
    draft = make_draft(context)
    with torch.no_grad():  # make two layers hardly do anything
        for index in (0, 2):
            draft.model.model.layers[index].self_attn.o_proj.weight.mul_(1e-3)
            draft.model.model.layers[index].mlp.down_proj.weight.mul_(1e-3)
    assert choose_layers(2, "block_influence", draft, context) == (1, 3)
    scores = draft.notes["block_influence"]
    assert len(scores) == 4
    assert max(scores[0], scores[2]) < min(scores[1], scores[3])


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt2"])
@torch.inference_mode()
def test_angular_distance_equals_its_formula(make_context, make_draft, architecture):
    draft = make_draft(make_context(architecture))
    states = draft.model(IDS, output_hidden_states=True).hidden_states
    # the last of transformers' states is after the norm, so blocks that end there are left out
    expected = []
    for start in range(2):
        pairs = zip(states[start].flatten(0, 1), states[start + 2].flatten(0, 1), strict=True)
        angles = [torch.arccos((x @ y / (x.norm() * y.norm())).clamp(-1, 1)) / torch.pi for x, y in pairs]
        expected.append(float(torch.stack(angles).mean()))
    assert angular_distances(draft, IDS, 2)[:2] == pytest.approx(expected, abs=1e-4)


@pytest.mark.usefixtures("in_fp32")
def test_the_block_that_turns_least_goes(make_context, make_draft):
    context = make_context()
    draft = make_draft(context)
    with torch.no_grad():
        for index in (1, 2):
            draft.model.model.layers[index].self_attn.o_proj.weight.mul_(1e-3)
            draft.model.model.layers[index].mlp.down_proj.weight.mul_(1e-3)
    assert choose_layers(2, "angular", draft, context) == (0, 3)


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt2"])
@torch.inference_mode()
def test_each_layer_dropped_by_loss_is_the_one_felt_least(make_context, make_draft, architecture):
    context = make_context(architecture)
    draft = make_draft(context)

    def loss(kept):
        other = make_draft(context)
        other.architecture.keep_layers(other.model, kept)
        logits = other.model(IDS).logits
        return float(torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten()))

    first = min([(1, 2, 3), (0, 2, 3), (0, 1, 3), (0, 1, 2)], key=loss)
    second = min([tuple(i for i in first if i != gone) for gone in first], key=loss)
    kept, losses = layers_by_loss(draft, IDS, 2)
    assert tuple(kept) == second
    assert losses == pytest.approx([loss(first), loss(second)], rel=1e-4)
    assert len(draft.architecture.layers(draft.model)) == 4
