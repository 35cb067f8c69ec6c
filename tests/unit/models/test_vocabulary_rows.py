"""Target and draft of one tokenizer whose models have different numbers of rows."""

from __future__ import annotations

import copy
import itertools
import json

import pytest
import torch

from draftrank.catalog.decoding_mode import DecodingMode
from draftrank.catalog.recipe import TypicalAcceptance
from draftrank.engine.backends.transformers.generate import GenerateDecoder
from draftrank.engine.backends.transformers.runtime import TransformersRuntime
from draftrank.engine.loop import ProposerError, Request, autoregressive, speculative
from draftrank.engine.proposer import ProposerContext
from draftrank.engine.proposers.cascade import CascadeDraft
from draftrank.engine.proposers.draft_model import ModelDraft, ModelProposer
from draftrank.engine.token_tree import TokenTree, TreeWidth
from draftrank.errors import BuildError, IncompatibleDraftError
from draftrank.models.architecture import Architecture
from draftrank.models.forms import (
    DynamicInt8Form,
    Eagle3Form,
    LowRankForm,
    TrimmedHeadForm,
    quantize_linear_layers,
)
from draftrank.models.loading import load_model
from exact_law import TableRuntime, law, own_law
from gguf_files import small_gguf_model
from models import small_model, small_tokenizer
from runtimes import BACKENDS, runtime_by

FEW, MANY = 61, 64
STEPS = ({"kind": "random", "seed": 0},)
PROMPTS = [(5, 9, 11, 5, 9), (7, 20, 33, 7, 20, 33, 7), (12,), (40, 41, 42, 40, 41)]


def model_of(architecture, rows, *, seed=0, layers=3, padding=None):
    """A model whose first rows are the same whatever their number.

    Args:
        architecture: its name.
        rows: of embedding and head.
        seed: of its weights.
        layers: how many.
        padding: what multiplies the rows from `FEW` on; None: they stay.
    """
    most = small_model(architecture, seed=seed, layers=layers, vocabulary=MANY)
    if padding is not None:
        for weight in {most.get_input_embeddings().weight, most.get_output_embeddings().weight}:
            weight.data[FEW:] *= padding
    return with_first_rows(most, architecture, rows, layers)


def with_first_rows(most, architecture, rows, layers=3):
    """A copy of a model of `MANY` rows with some of them."""
    fewer = small_model(architecture, layers=layers, vocabulary=rows)
    state = most.state_dict()
    fewer.load_state_dict({k: v[:rows] if len(v) == MANY else v for k, v in state.items()})
    return fewer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Saves a model beside the one tokenizer."""
    numbers = itertools.count()
    tokenizer = small_tokenizer()

    def save(model, *forms):
        path = tmp_path_factory.mktemp("model") / str(next(numbers))
        model.save_pretrained(path)
        tokenizer.save_pretrained(path)
        (path / "draftrank.json").write_text(json.dumps({"forms": [form.model_dump() for form in forms]}))
        return path

    return save


def opened(target, path, forward="transformers", kind="draft_model", **how):
    """A draft as a session opens it."""
    context = ProposerContext(target, path, path, "fp32", "cpu", forward, **how)
    draft = (ModelDraft if kind == "draft_model" else CascadeDraft).model_validate(
        {"kind": kind, "steps": STEPS}
    )
    return draft.open(context)


HOW = {
    "chain": {},
    "hesitant": {"stop_below_confidence": 0.3},
    "tree": {"branch_above_probability": 0.02},
    "cascade": {"kind": "cascade"},
}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("forward", BACKENDS)
@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt2"])
def test_a_draft_with_other_rows_does_as_its_twin_with_the_targets(folder, architecture, forward, how):
    """Where no padded row of the target wins, padding on either side changes neither output nor acceptance."""
    if architecture == "gpt2" and forward != "transformers":
        pytest.skip("its forward is the library's")
    model = model_of(architecture, MANY, seed=3, padding=0.0)
    near = model_of(architecture, MANY, seed=3, padding=0.0)
    head = near.get_output_embeddings().weight
    head.data[:FEW] += 0.15 * head.data[:FEW].flip(0)
    drafts = {}
    for rows in (FEW, MANY):
        draft = with_first_rows(near, architecture, rows)
        # a padded row that would be proposed all the time, were it not beyond the target's
        if rows == MANY and architecture == "llama":
            draft.get_output_embeddings().weight.data[FEW] = 3 * draft.get_output_embeddings().weight[7]
        drafts[rows] = folder(draft)
    targets = {rows: runtime_by(with_first_rows(model, architecture, rows), forward) for rows in (MANY, FEW)}
    pairs = {
        name: (targets[ours], opened(targets[ours], drafts[theirs], forward, **HOW[how]))
        for name, ours, theirs in (("twin", FEW, FEW), ("more", FEW, MANY), ("fewer", MANY, FEW))
    }
    accepted = 0
    for prompt in PROMPTS:
        request = Request(prompt, 20)
        expected = autoregressive(targets[FEW], request).token_ids
        found = {name: speculative(target, draft, request, 4) for name, (target, draft) in pairs.items()}
        for one in found.values():
            assert one.token_ids == expected
            assert one.accept_histogram == found["twin"].accept_histogram
            assert one.proposal_sizes == found["twin"].proposal_sizes
        accepted += len(expected) - 1 - found["twin"].steps
    assert accepted > 0


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("forward", BACKENDS)
@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_a_target_that_says_padded_tokens_is_never_changed(folder, architecture, forward, how, monkeypatch):
    """And of its padded tokens the draft proposes none."""
    target = runtime_by(model_of(architecture, MANY, seed=5, padding=2.0), forward)
    draft = opened(target, folder(model_of(architecture, FEW, seed=5, padding=2.0)), forward, **HOW[how])
    drafted, said = set(), set()
    asked = ModelProposer.propose

    def watched(self, context, count):
        found = asked(self, context, count)
        drafted.update(found.tokens)
        return found

    monkeypatch.setattr(ModelProposer, "propose", watched)
    for prompt in PROMPTS:
        request = Request((*prompt, FEW), 24)
        expected = autoregressive(target, request).token_ids
        assert speculative(target, draft, request, 4).token_ids == expected
        said.update(expected)
    assert max(said) >= FEW
    assert 0 <= min(drafted) <= max(drafted) < FEW


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt2"])
def test_what_the_draft_cannot_read_it_reads_as_token_0(folder, architecture):
    model = model_of(architecture, FEW)
    runtime = opened(TransformersRuntime(model_of(architecture, MANY)), folder(model)).runtime()
    with torch.inference_mode():
        expected = model(torch.tensor([[5, 0, 7, 0]])).logits[0]
    found = runtime.forward([5, FEW, 7, MANY - 1])
    assert found.shape == (4, MANY)
    assert found[:, FEW:].eq(-torch.inf).all()
    torch.testing.assert_close(found[:, :FEW], expected, atol=2e-5, rtol=1e-4)
    model, tied = runtime.model, architecture != "llama"
    embedding, head = Architecture.of(model).embedding(model), Architecture.of(model).head(model)
    assert (embedding.weight.data_ptr() == head.projection.weight.data_ptr()) == tied


@pytest.mark.parametrize("rows", [(3, 4), (4, 3)], ids=["draft has more", "draft has fewer"])
@pytest.mark.parametrize("threshold", [None, 0.5])
def test_the_outputs_law_is_exactly_the_targets(folder, rows, threshold):
    """Every random choice followed, padded rows of the target among its own."""
    ours, theirs = rows
    target = TableRuntime(1, vocabulary=ours)
    path = folder(small_model("llama", seed=2, layers=1, vocabulary=theirs))
    draft = opened(target, path, stop_below_confidence=threshold)
    found, expected = law(target, draft, 2), own_law(target)
    assert sum(found.values()) == pytest.approx(1.0, abs=1e-5)
    assert set(found) <= set(expected)
    for output, probability in expected.items():
        assert found[output] == pytest.approx(probability, abs=1e-5)


@pytest.mark.parametrize("forward", BACKENDS)
@pytest.mark.parametrize("rows", [(FEW, MANY), (MANY, FEW)], ids=["draft has more", "draft has fewer"])
def test_sampling_runs_in_every_forward(folder, rows, forward):
    """Equal models accept nearly everything, whichever of them is padded; typical acceptance all of it."""
    ours, theirs = rows
    target = runtime_by(model_of("llama", ours, padding=0.0), forward)
    draft = opened(target, folder(model_of("llama", theirs, padding=0.0)), forward)
    lengths = []
    for seed, prompt in enumerate(PROMPTS):
        request = Request(prompt, 24, mode=DecodingMode(temperature=0.7), seed=seed)
        lengths.append(speculative(target, draft, request, 3).acceptance_length)
    assert sum(lengths) / len(lengths) > 3.5
    found = speculative(target, draft, Request(PROMPTS[0], 24), 3, TypicalAcceptance())
    assert found.acceptance_length == pytest.approx(23 / 6)


@pytest.mark.parametrize("rows", [(FEW, MANY), (MANY, FEW)], ids=["draft has more", "draft has fewer"])
def test_transformers_generate_takes_the_same_draft(folder, rows):
    ours, theirs = rows
    target = TransformersRuntime(model_of("llama", ours, padding=2.0))
    draft = opened(target, folder(model_of("llama", theirs, padding=2.0))).runtime()
    decoder = GenerateDecoder(target, draft=draft, num_speculative_tokens=3)
    for prompt in PROMPTS:
        request = Request(prompt, 20)
        assert decoder.decode(request).token_ids == autoregressive(target, request).token_ids


@pytest.mark.parametrize("forward", BACKENDS)
@pytest.mark.parametrize("rows", [(FEW, MANY), (MANY, FEW)], ids=["draft has more", "draft has fewer"])
def test_a_draft_that_reads_states_has_the_targets_rows_too(folder, rows, forward):
    ours, theirs = rows
    target = runtime_by(model_of("llama", ours, padding=2.0), forward)
    reader = model_of("llama", theirs, seed=9, layers=1)
    form = Eagle3Form(layers=(0,))
    form.prepare(reader)
    for how in ("chain", "tree"):
        draft = opened(target, folder(reader, form), forward, **HOW[how])
        for prompt in PROMPTS:
            request = Request(prompt, 20)
            expected = autoregressive(target, request).token_ids
            assert speculative(target, draft, request, 4).token_ids == expected


def with_form(model, form):
    """The model with a form that is not trained but random."""
    torch.manual_seed(7)
    form.prepare(model)
    for parameter in Architecture.of(model).head(model).parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    if isinstance(form, TrimmedHeadForm):
        model.lm_head.token_ids.copy_(torch.arange(MANY - form.kept, MANY))
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("rows", [FEW, 70])
@pytest.mark.parametrize(
    "form",
    [
        LowRankForm(module="lm_head", rank=6),
        TrimmedHeadForm(module="lm_head", kept=40),
        TrimmedHeadForm(module="lm_head", kept=40, rank=6),
        DynamicInt8Form(),
        DynamicInt8Form(keep_precise=("lm_head",)),
    ],
    ids=["low rank", "trimmed", "trimmed and low rank", "int8", "int8 but the head"],
)
def test_heads_of_every_form_get_the_targets_rows(folder, form, rows):
    model = small_model("llama", vocabulary=MANY)
    path = folder(model if isinstance(form, DynamicInt8Form) else with_form(model, form), form)
    if isinstance(form, DynamicInt8Form):
        quantize_linear_layers(model, form.keep_precise)
    with torch.inference_mode():
        expected = model(torch.tensor([[5, 9, 0, 11]])).logits
        unread = FEW - 1 if rows < MANY else MANY
        found = load_model(path, "fp32", "cpu", rows=rows)(torch.tensor([[5, 9, 0, 11]])).logits
        stand_in = load_model(path, "fp32", "cpu", rows=rows)(torch.tensor([[unread]])).logits
    assert found.shape[-1] == stand_in.shape[-1] == rows
    known = min(rows, MANY)
    torch.testing.assert_close(found[..., :known], expected[..., :known], atol=2e-5, rtol=1e-4)
    assert found[..., known:].eq(-torch.inf).all()


def test_trimmed_heads_say_no_token_that_is_not_there(folder):
    form = TrimmedHeadForm(module="lm_head", kept=40)
    for ids in ([-1, *range(39)], [*range(39), MANY], [1, 0, *range(2, 40)]):
        model = with_form(small_model("llama", vocabulary=MANY), form)
        model.lm_head.token_ids.copy_(torch.tensor(ids))
        with pytest.raises(BuildError, match="ascending ids below 64"):
            load_model(folder(model, form), "fp32", "cpu")


def test_a_draft_that_was_opened_otherwise_is_refused():
    target, draft = (TransformersRuntime(model_of("llama", rows)) for rows in (FEW, MANY))
    with pytest.raises(ProposerError, match="64 entries and the target's 61"):
        speculative(target, ModelProposer(draft), Request((5, 9), 4), 2)


UNKNOWN = [-1, FEW, 63, 5_000, 10_000_000, 2**40]


@pytest.mark.parametrize("forward", BACKENDS)
@pytest.mark.parametrize("token", UNKNOWN)
def test_ids_outside_the_embedding_are_refused_and_nothing_is_read(forward, token):
    runtime = runtime_by(small_model("llama"), forward)
    runtime.forward([5])
    expected = runtime.forward([9])[-1].clone()
    refused = pytest.raises(IndexError, match=f"token id {token} is outside the embedding's 61 rows")
    runtime.rollback(1)
    width = TreeWidth(4, 4, 0.01, None)
    for move in (
        lambda: runtime.forward([9, token]),
        lambda: runtime.forward([9, token], tree=TokenTree((-1, 0))),
        lambda: runtime.forward([9] * 70 + [token]),
        *([lambda: runtime.chain([9, token], 3)] if forward == "cpp" else []),
        *([lambda: runtime.grow_tree([9, token], 3, width)] if forward == "cpp" else []),
    ):
        with refused:
            move()
        assert runtime.length == 1
    assert torch.equal(runtime.forward([9])[-1], expected)


def test_places_outside_the_cache_are_refused():
    runtime = runtime_by(small_model("llama"), "cpp")
    runtime.forward([5, 9, 11])
    decoder, cache = runtime._decoder, runtime._cache
    for parents in ((-1, 1), (-1, -1), (-1, 5)):
        with pytest.raises(IndexError, match="nodes are out of order"):
            runtime.forward([7, 8], tree=TokenTree(parents))
    for places in ((1, 0), (-1, 2), (0, 0)):
        with pytest.raises(IndexError, match="nodes are out of order"):
            decoder.keep(cache, 1, places)
    with pytest.raises(IndexError, match="outside the cache"):
        decoder.keep(cache, 1, (0, 5_000))
    with pytest.raises(IndexError, match="outside the cache"):
        decoder.keep(cache, -3, (0, 2))
    assert runtime.length == 3


def test_states_of_another_target_are_refused(folder):
    target = TransformersRuntime(small_model("llama"))
    reader = small_model("llama", layers=1)
    for layers, cause in (((7,), "layer 7 of a target that has layers 0 to 2"), ((-1,), "layer -1")):
        form, model = Eagle3Form(layers=layers), copy.deepcopy(reader)
        form.prepare(model)
        with pytest.raises(IncompatibleDraftError, match=cause):
            opened(target, folder(model, form))


@pytest.mark.parametrize("forward", BACKENDS)
def test_states_of_another_width_are_refused(folder, forward):
    wide = runtime_by(small_gguf_model("llama", 2, vocab_size=FEW), forward)
    reader, form = small_model("llama", layers=1), Eagle3Form(layers=(0,))
    form.prepare(reader)
    draft = opened(wide, folder(reader, form), forward)
    with pytest.raises(IncompatibleDraftError, match="states of 64 numbers, and the target's have 128"):
        speculative(wide, draft, Request((5, 9, 11), 4), 2)
