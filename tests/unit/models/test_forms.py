"""Drafts that an ordinary model cannot express: right in memory, and the same after loading."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken

from draftrank.building import pipeline
from draftrank.building.surgery.layer_merging import merge_layers, merged_layer
from draftrank.building.surgery.low_rank import factorized, saving_rank
from draftrank.building.surgery.vocabulary_trimming import (
    known_tokens,
    marked_tokens,
    most_used_tokens,
    trim_vocabulary,
)
from draftrank.engine.backends.registry import load_runtime
from draftrank.errors import BuildError
from draftrank.models.forms import LowRankLinear, TrimmedHead
from draftrank.models.loading import load_model
from draftrank.models.matrices import matrix
from draftrank.progress import SilentProgress
from models import small_tokenizer

ARCHITECTURES = ("llama", "gemma3", "gpt2")
IDS = torch.arange(3, 43).reshape(2, 20)
TEXT = torch.randint(3, 60, (9, 24), generator=torch.Generator().manual_seed(1))
CORPUS = {"kind": "self_generated", "tokens": 1_000, "sequence_tokens": 50, "batch_sequences": 32}

STEPS = {
    "factors": [{"kind": "factorize", "keep_parameters": 0.5}],
    "plain factors": [{"kind": "factorize", "keep_parameters": 0.5, "activation_aware": False}],
    "thin head": [{"kind": "factorize_head", "rank": 8}],
    "trimmed": [{"kind": "trim_vocabulary", "keep_tokens": 40}],
    "trimmed and thin": [
        {"kind": "trim_vocabulary", "keep_tokens": 40},
        {"kind": "factorize_head", "rank": 8},
    ],
    "tied": [{"kind": "tie_layers", "blocks": 2}],
    "everything": [
        {"kind": "drop_layers", "keep": 2, "select": "ends"},
        {"kind": "factorize", "keep_parameters": 0.6},
        {"kind": "tie_layers", "blocks": 1},
        {"kind": "trim_vocabulary", "keep_tokens": 50},
        {"kind": "distill", "data": CORPUS, "batch_sequences": 4},
        {"kind": "quantize", "scheme": "dynamic_int8"},
    ],
}


@pytest.mark.usefixtures("in_fp32")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS)
def test_what_is_loaded_is_what_was_built(build, monkeypatch, architecture, steps):
    built_models = []
    save = pipeline._save

    def remember(draft, *rest):
        built_models.append(draft.model)
        save(draft, *rest)

    monkeypatch.setattr(pipeline, "_save", remember)
    calibration = {**CORPUS, "tokens": 1_500}
    draft = {"kind": "draft_model", "steps": steps, "calibration": calibration}
    built = build(draft=draft, architecture=architecture)
    loaded = load_model(built.folder, "fp32", "cpu")
    with torch.inference_mode():
        expected = built_models[0](IDS).logits
        found = loaded(IDS).logits
    assert found.shape == expected.shape
    if steps[-1]["kind"] == "quantize":
        known = torch.isfinite(expected)
        assert torch.equal(known, torch.isfinite(found))
        assert torch.corrcoef(torch.stack([found[known], expected[known]]))[0, 1] > 0.95
    else:
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
        assert built.parameters == sum(parameter.numel() for parameter in loaded.parameters())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.inference_mode()
def test_a_vocabulary_of_full_size_changes_nothing(make_context, make_draft, architecture):
    draft = make_draft(make_context(architecture))
    expected = draft.model(IDS).logits
    share = trim_vocabulary(draft, TEXT, expected.shape[-1], frozenset())
    torch.testing.assert_close(draft.model(IDS).logits, expected, rtol=1e-5, atol=1e-5)
    assert share == 1.0


@torch.inference_mode()
def test_tokens_the_head_does_not_know_have_no_chance(make_context, make_draft):
    draft = make_draft(make_context())
    expected = draft.model(IDS).logits
    trim_vocabulary(draft, TEXT, 40, frozenset({61}))
    logits = draft.model(IDS).logits
    kept = draft.model.lm_head.token_ids
    assert isinstance(draft.model.lm_head, TrimmedHead)
    torch.testing.assert_close(logits[..., kept], expected[..., kept], rtol=1e-5, atol=1e-5)
    assert (logits.softmax(-1).sum(-1) - 1).abs().max() < 1e-5
    assert int(torch.isfinite(logits).sum(-1).unique()) == 40
    assert {61, int(draft.tokenizer.eos_token_id)} <= set(kept.tolist())
    with pytest.raises(BuildError, match="trim the vocabulary first, and once"):
        trim_vocabulary(draft, TEXT, 10, frozenset())


TOOLS = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.tool_calls %}{% for c in m.tool_calls %}"
    "{{ '<tool_call>' + c.function.name + ' with ' + c.function.arguments | tojson + '</tool_call>' }}{% endfor %}"
    "{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if false %}{{ '<unused1>' }}{% endif %}"
)
ADDED = ("<tool_call>", "</tool_call>", "<unused0>", "<unused1>", "<fim>")


def marked(template):
    """A tokenizer with added tokens of each sort, and what must be kept of it, as text."""
    tokenizer = small_tokenizer(template)
    tokenizer.add_tokens([AddedToken(text, special=text == "<fim>") for text in ADDED])
    return tokenizer, set(tokenizer.convert_ids_to_tokens(sorted(marked_tokens(tokenizer))))


def test_tokens_that_tokenizer_or_template_mark_are_kept_whatever_the_text_has():
    special = {"<|pad|>", "<|im_start|>", "<|im_end|>", "<fim>"}
    _, found = marked(None)
    assert found == {*special, "<tool_call>", "</tool_call>"}  # an unused one means nothing
    tokenizer, found = marked(TOOLS)
    written = ("system", "user", "assistant", "tool", "\n", " with ", '{"', '": "', '"}')
    letters = {token for text in written for token in tokenizer.tokenize(text)}
    # what a call of a tool is written with, and the unused token that the template names
    assert found == {*special, *letters, "<tool_call>", "</tool_call>", "<unused1>"}


@pytest.mark.parametrize(
    "template", ["{{ raise_exception('no') }}", "{{ messages[9].content.x.y }}", "{% if"]
)
def test_a_template_that_takes_no_conversation_marks_nothing(template):
    _, found = marked(template)
    assert found == marked(None)[1]


def test_a_head_that_is_too_small_for_them_is_refused_with_the_number_it_needs(make_context, make_draft):
    draft = make_draft(make_context())
    needed = len(marked_tokens(draft.tokenizer) | {70})
    with pytest.raises(BuildError, match=f"write at least {needed} in keep_tokens"):
        trim_vocabulary(draft, TEXT, needed - 1, frozenset({70}))
    trim_vocabulary(draft, TEXT, needed, frozenset({70}))
    assert set(draft.model.lm_head.token_ids.tolist()) == marked_tokens(draft.tokenizer) | {70}


@pytest.mark.usefixtures("in_fp32")
def test_a_built_draft_tells_which_tokens_its_head_knows(build):
    steps = [
        {"kind": "trim_vocabulary", "keep_tokens": 40, "data": CORPUS},
        {"kind": "quantize", "scheme": "dynamic_int8"},
    ]
    built = build(*steps)
    known = known_tokens(built.folder)
    assert known == set(load_model(built.folder, "fp32", "cpu").lm_head.token_ids.tolist())
    assert len(known) == 40
    assert known_tokens(build({"kind": "drop_layers", "keep": [0]}).folder) is None


@pytest.mark.usefixtures("in_fp32")
@pytest.mark.parametrize(
    ("architecture", "step"),
    [
        ("gpt_neox", {"kind": "trim_vocabulary", "keep_tokens": 40}),  # whose head has another name in files
        ("gpt_neox", {"kind": "factorize_head", "rank": 8}),
        ("mamba2", {"kind": "trim_vocabulary", "keep_tokens": 40}),  # whose code asks for its head's dtype
        ("laguna", {"kind": "factorize", "keep_parameters": 0.5}),  # whose files rename experts
    ],
)
def test_what_replaces_matrices_of_other_families_is_found_again(build, architecture, step):
    draft = {"kind": "draft_model", "steps": [step], "calibration": CORPUS}
    built = build(draft=draft, architecture=architecture, prompt_format="completion")
    runtime = load_runtime(built.folder, "fp32", "cpu", "transformers")  # compared with its own forward
    known = known_tokens(built.folder)
    assert (known is None) == (step["kind"] != "trim_vocabulary")
    logits = runtime.forward([5, 6])
    assert known is None or set(logits[0].isfinite().nonzero()[:, 0].tolist()) == known


@given(
    st.lists(st.integers(0, 29), min_size=1, max_size=200),
    st.integers(1, 30),
    st.sets(st.integers(0, 29), max_size=3),
)
def test_the_most_used_tokens_are_kept(text, keep, always):
    tokens = torch.tensor(text)
    if len(always) > keep:
        with pytest.raises(BuildError, match="keep_tokens"):
            most_used_tokens(tokens, 30, keep, sorted(always))
        return
    kept = most_used_tokens(tokens, 30, keep, sorted(always)).tolist()
    assert kept == sorted(set(kept))
    assert len(kept) == keep
    assert always <= set(kept)
    free = [text.count(token) for token in kept if token not in always]
    dropped = [text.count(token) for token in range(30) if token not in kept]
    assert not free or not dropped or min(free) >= max(dropped)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_factorization_of_full_rank_is_exact(make_context, make_draft, architecture):
    draft = make_draft(make_context(architecture))
    for module in list(draft.architecture.linear_layers(draft.model).values())[:7]:
        full = min(matrix(module).shape)
        inputs = torch.randn(50, matrix(module).shape[1])
        moment = inputs.T @ inputs
        for thin in (factorized(module, full), factorized(module, full, moment)):
            assert isinstance(thin, LowRankLinear)
            torch.testing.assert_close(thin(inputs), module(inputs), rtol=1e-3, atol=1e-3)
        with pytest.raises(BuildError, match="has no rank"):
            factorized(module, full + 1)


def test_judged_by_outputs_the_outputs_are_closer():
    torch.manual_seed(0)
    module = torch.nn.Linear(24, 24).requires_grad_(False)
    x = torch.randn(400, 24) * torch.logspace(-2, 1, 24)

    def error(thin):
        return float((thin(x) - module(x)).square().sum())

    plain, aware = factorized(module, 6), factorized(module, 6, x.T @ x)
    assert error(aware) < 0.5 * error(plain)
    left, values, right = torch.linalg.svd(module.weight)
    best = left[:, :6] @ torch.diag(values[:6]) @ right[:6]
    torch.testing.assert_close(plain.second.weight @ plain.first.weight, best, rtol=1e-4, atol=1e-5)


def test_the_rank_keeps_the_share():
    assert saving_rank(100, 50, 0.5) == 16
    assert saving_rank(100, 50, 0.5) * 150 <= 0.5 * 100 * 50
    assert saving_rank(2, 2, 0.01) == 1


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_merging_with_a_layer_that_is_the_same_changes_nothing(make_context, make_draft, architecture):
    draft = make_draft(make_context(architecture))
    layers = list(draft.architecture.layers(draft.model))
    twin = merged_layer([layers[0], layers[0], layers[0]])
    for name, parameter in twin.named_parameters():
        torch.testing.assert_close(parameter, dict(layers[0].named_parameters())[name], rtol=0, atol=0)
    other = merged_layer(layers[:2])
    for name, parameter in other.named_parameters():
        torch.testing.assert_close(parameter, dict(layers[1].named_parameters())[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_layers_that_do_nothing_are_merged_away(make_context, make_draft, tmp_path, architecture):
    """A layer whose outputs are zero, merged into one like it, is not missed."""
    draft = make_draft(make_context(architecture))
    shape = draft.architecture
    layers = shape.layers(draft.model)
    for index in (1, 2):
        for name in (shape.block.attention_parts()[-1], shape.block.feed_forward_parts()[-1]):
            for parameter in layers[index].get_submodule(name).parameters():
                parameter.zero_()
    expected = draft.model(IDS).logits
    members = merge_layers(draft, 3, 2, TEXT, SilentProgress())
    assert members in ([[0], [1, 2], [3]], [[0], [1], [2, 3]])  # the second adds nothing to layer 3
    torch.testing.assert_close(draft.model(IDS).logits, expected, rtol=1e-4, atol=1e-4)
    assert draft.model.config.num_hidden_layers == 3
    draft.model.save_pretrained(tmp_path / "merged")
    opened = load_model(tmp_path / "merged", "fp32", "cpu")
    torch.testing.assert_close(opened(IDS).logits, expected, rtol=1e-4, atol=1e-4)
    assert len(merge_layers(draft, 1, 2, TEXT, SilentProgress())) == 1
    with pytest.raises(BuildError, match="1 layers, so 2 cannot be left"):
        merge_layers(draft, 2, 2, TEXT, SilentProgress())


def test_tied_layers_share_their_weights_when_loaded(build):
    built = build({"kind": "tie_layers", "blocks": 2})
    layers = load_model(built.folder, "fp32", "cpu").model.layers
    assert layers[0].mlp.up_proj.weight is layers[1].mlp.up_proj.weight
    assert layers[2].mlp.up_proj.weight is layers[3].mlp.up_proj.weight
    assert layers[0].mlp.up_proj.weight is not layers[2].mlp.up_proj.weight
