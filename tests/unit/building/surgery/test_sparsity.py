"""Zeros where the papers want them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from draftrank.building.surgery.layer_walk import walk_layers
from draftrank.building.surgery.sparsity import lowest_mask, sparsegpt, sparsify, wanda_scores
from draftrank.errors import BuildError
from draftrank.models.matrices import matrix
from draftrank.progress import SilentProgress
from examples import examples

ARCHITECTURES = ("llama", "gemma3", "gpt2")
TEXT = torch.randint(3, 60, (11, 24), generator=torch.Generator().manual_seed(1))


def layer_and_inputs(seed=0, outputs=12, inputs=16, positions=300):
    torch.manual_seed(seed)
    weight = torch.randn(outputs, inputs)
    x = torch.randn(positions, inputs) @ torch.randn(inputs, inputs) * torch.rand(inputs)
    return weight, x


@given(st.integers(0, 1000), st.sampled_from([0.25, 0.5, 0.8]))
@examples(20)
def test_wandas_mask_by_brute_force(seed, sparsity):
    weight, x = layer_and_inputs(seed)
    mask = lowest_mask(wanda_scores(weight, x.T @ x), sparsity, None)
    for row in range(len(weight)):
        products = [abs(float(weight[row, j])) * float(x[:, j].norm()) for j in range(16)]
        least = sorted(range(16), key=products.__getitem__)[: int(16 * sparsity)]
        assert set(mask[row].nonzero().flatten().tolist()) == set(least)


@given(st.integers(0, 1000), st.sampled_from([(2, 4), (1, 4), (4, 8)]))
@examples(20)
def test_a_pattern_leaves_n_of_every_m(seed, pattern):
    weight, x = layer_and_inputs(seed)
    stay, group = pattern
    mask = lowest_mask(wanda_scores(weight, x.T @ x), 0.0, pattern)
    assert (mask.unflatten(1, (-1, group)).sum(-1) == group - stay).all()
    sparse = sparsegpt(weight, x.T @ x, 0.0, pattern)
    assert ((sparse != 0).unflatten(1, (-1, group)).sum(-1) <= stay).all()


@pytest.mark.parametrize("seed", range(5))
def test_sparsegpt_beats_dropping_the_same_share(seed):
    weight, x = layer_and_inputs(seed, outputs=40, inputs=200, positions=1000)
    moment = x.T @ x

    def error(sparse):
        return float(((weight - sparse) @ x.T).square().sum())

    magnitude = weight.masked_fill(lowest_mask(weight.abs(), 0.5, None), 0)
    wanda = weight.masked_fill(lowest_mask(wanda_scores(weight, moment), 0.5, None), 0)
    adjusted = sparsegpt(weight, moment, 0.5, None)
    assert float((adjusted == 0).float().mean()) == pytest.approx(0.5, abs=0.01)
    assert error(adjusted) < 0.9 * error(wanda) < error(magnitude)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_every_matrix_of_every_layer_gets_its_share(make_context, make_draft, architecture, method):
    draft = make_draft(make_context(architecture))
    head = matrix(draft.architecture.head(draft.model)).clone()
    share = sparsify(draft, method, 0.5, None, None if method == "magnitude" else TEXT, SilentProgress())
    assert share == pytest.approx(0.5, abs=0.02)
    for module in draft.architecture.linear_layers(draft.model).values():
        assert float((matrix(module) == 0).float().mean()) == pytest.approx(0.5, abs=0.05)
    assert torch.equal(matrix(draft.architecture.head(draft.model)), head)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_walking_shows_what_the_changed_layers_give(make_context, make_draft, architecture):
    draft = make_draft(make_context(architecture))
    block = draft.architecture.block
    part = f"{block.feed_forward}.{block.feed_forward_output}"
    moments = []
    for visited in walk_layers(draft, TEXT):
        parts = (*block.attention_parts(), *block.feed_forward_parts())
        moments.append(visited.second_moments(parts))
        matrix(visited.layer.get_submodule(part)).mul_(0.5)
    seen = {}
    for index, layer in enumerate(draft.architecture.layers(draft.model)):
        for name in moments[0]:

            def keep(_, arguments, key=(index, name)):
                seen[key] = arguments[0].flatten(0, -2)

            layer.get_submodule(name).register_forward_pre_hook(keep)
    draft.architecture.hidden_states(draft.model, TEXT)
    for (index, name), x in seen.items():
        torch.testing.assert_close(moments[index][name], x.T @ x, rtol=1e-3, atol=1e-2)


def test_a_pattern_that_does_not_divide_is_named(make_context, make_draft):
    draft = make_draft(make_context("llama"))
    with pytest.raises(BuildError, match=r"q_proj has 32 columns, which is no multiple of 5"):
        sparsify(draft, "magnitude", 0.0, (2, 5), None, SilentProgress())
