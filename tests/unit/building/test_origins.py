"""Drafts that do not come from the target's weights."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch
from pydantic import ValidationError

from draftrank.building.surgery.vocabulary_trimming import known_tokens
from draftrank.building.text.corpus import Corpus, corpus_path
from draftrank.engine.backends.transformers.runtime import TransformersRuntime
from draftrank.engine.loop import Request, autoregressive, speculative
from draftrank.engine.proposer import ProposerContext
from draftrank.errors import BuildError
from draftrank.models.loading import load_model, load_tokenizer
from draftrank.models.token_bytes import TokenBytes
from gguf_files import small_gguf_model, write_llama_file
from models import save_small_target, small_model, small_tokenizer
from target_fixtures import CHATML
from vocabularies import byte_level

IDS = torch.arange(3, 43).reshape(2, 20)
OTHER = byte_level((("b", "a"), ("e", "r"), ("Ġ", "t")), ("<s>", "</s>"))
PRETRAINED = {"kind": "pretrained", "licence": "MIT", "source": {"kind": "local", "path": "other"}}


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt2"])
@torch.inference_mode()
def test_random_weights_come_from_their_seed(build, make_target, architecture):
    _, folder = make_target(architecture)

    def logits(seed, cache):
        torch.manual_seed(len(cache))  # whatever was drawn before
        built = build({"kind": "random", "seed": seed}, architecture=architecture, cache=cache)
        return load_model(built.folder, "fp32", "cpu")(IDS).logits

    first = logits(5, "a")
    assert torch.equal(first, logits(5, "bcd"))
    assert not torch.equal(first, logits(6, "a"))
    assert not torch.equal(first, load_model(folder.path, "fp32", "cpu")(IDS).logits)


def test_a_ready_made_model_is_taken(build, tmp_path, make_tokenizer):
    other = small_model("llama", seed=7, layers=2, vocabulary=len(make_tokenizer()))
    other.save_pretrained(tmp_path / "other")
    make_tokenizer().save_pretrained(tmp_path / "other")
    built = build(PRETRAINED)
    with torch.inference_mode():
        assert torch.equal(load_model(built.folder, "fp32", "cpu")(IDS).logits, other(IDS).logits)
    shutil.rmtree(tmp_path / "other")
    with pytest.raises(BuildError, match="nowhere is not here"):
        build({**PRETRAINED, "source": {"kind": "local", "path": "nowhere"}})


def test_a_model_with_other_tokens_is_refused(build, tmp_path):
    save_small_target(tmp_path / "other")
    byte_level((("b", "a"),)).save_pretrained(tmp_path / "other")
    with pytest.raises(BuildError, match=r"vocabularies differ in .*`vocabulary: string_match`"):
        build(PRETRAINED)


def test_a_model_that_is_larger_than_the_target_is_refused_before_it_is_loaded(
    build, make_target, tmp_path, make_tokenizer, monkeypatch
):
    make_target()
    small_model("llama", layers=9, vocabulary=len(make_tokenizer())).save_pretrained(tmp_path / "other")
    make_tokenizer().save_pretrained(tmp_path / "other")
    monkeypatch.setattr("draftrank.building.origins.load_model", None)
    with pytest.raises(BuildError, match="larger than its target"):
        build(PRETRAINED)


@pytest.fixture
def other_model(tmp_path):
    """A model with a vocabulary of its own, in a folder."""
    model = small_model("llama", seed=7, layers=3, vocabulary=len(OTHER))
    model.save_pretrained(tmp_path / "other")
    OTHER.save_pretrained(tmp_path / "other")
    return model


@pytest.mark.usefixtures("other_model")
@pytest.mark.parametrize("way", ["token_intersection", "string_match"])
def test_a_model_with_another_vocabulary_keeps_its_tokenizer(build, make_target, make_recipe, way):
    _, folder = make_target()
    recipe = make_recipe(draft={"kind": "draft_model", "steps": [PRETRAINED], "vocabulary": way})
    built = build(recipe)
    assert load_tokenizer(built.folder).get_vocab() == OTHER.get_vocab()
    runtime = TransformersRuntime(load_model(folder.path, "fp32", "cpu"))
    proposer = recipe.draft.open(ProposerContext(runtime, built.folder, folder.path, "fp32", "cpu"))
    prompt = tuple(load_tokenizer(folder.path)("bababa there is").input_ids)
    request = Request(prompt, 12)
    found = speculative(runtime, proposer, request, 3)
    assert found.token_ids == autoregressive(runtime, request).token_ids
    assert found.draft_forwards > 0
    if way == "token_intersection":  # what is shared, counted by hand: all bytes, and no merge
        assert len(proposer.known()) == 256


@pytest.mark.usefixtures("other_model", "in_fp32")
def test_steps_and_distillation_read_the_targets_text_in_the_drafts_own_tokens(build, make_target, tmp_path):
    _, folder = make_target("llama", "completion")
    data = {"kind": "self_generated", "tokens": 1_500, "sequence_tokens": 32}
    steps = [
        PRETRAINED,
        {"kind": "drop_layers", "keep": 2, "select": "ends"},
        {"kind": "trim_vocabulary", "keep_tokens": 120, "data": data},
        {"kind": "distill", "data": data, "teacher": "origin", "passes": 6, "learning_rate": 0.01},
    ]
    draft = {"kind": "draft_model", "steps": steps, "vocabulary": "token_intersection"}
    built = build(draft=draft, prompt_format="completion")
    facts = json.loads((built.folder / "draftrank.json").read_text("utf-8"))
    notes = facts["notes"]["distillation"]
    assert notes["held_out_kl_after"] < notes["held_out_kl_before"]
    (key,) = facts["corpora"]  # the text that the session compares with its prompts is the target's
    written = Corpus.read(corpus_path(tmp_path, key))
    target_bytes, own_bytes = TokenBytes(load_tokenizer(folder.path)), TokenBytes(OTHER)
    (read,) = [
        corpus
        for path in (tmp_path / "corpora").glob("*.safetensors")
        if path.stem != key and (corpus := Corpus.read(path))
    ]
    text = b"".join(target_bytes.of(row) for row in written.tokens.tolist())
    joined = own_bytes.of(read.tokens.flatten().tolist())
    # random models write bytes that are no text, which are replaced
    ours, theirs = (bytes(byte for byte in data if byte < 0x80) for data in (text, joined))
    assert ours.startswith(theirs)
    assert len(theirs) > 0.9 * len(ours)
    assert read.tokens.shape[1] == 32
    assert int(read.tokens.max()) < len(OTHER)
    known = known_tokens(built.folder)
    assert known is not None
    assert {own_bytes.first(), 1} <= known  # it can still begin and end a text


@pytest.mark.parametrize(
    ("steps", "vocabulary", "reason"),
    [
        ([{"kind": "random"}], "string_match", "make `pretrained` the first step"),
        ([{"kind": "eagle_head"}], "string_match", "remove `vocabulary`"),
        ([PRETRAINED, {"kind": "write_gguf"}], "token_intersection", "`vocabulary: string_match`"),
        (
            [PRETRAINED, {"kind": "distill", "data": {"kind": "self_generated", "tokens": 1_000}}],
            "string_match",
            "`teacher: origin`",
        ),
        (
            [{"kind": "distill", "data": {"kind": "self_generated", "tokens": 1_000}, "teacher": "origin"}],
            "same",
            "remove it from distill",
        ),
    ],
)
def test_what_another_vocabulary_cannot_have_is_refused_by_the_declaration(
    make_recipe, steps, vocabulary, reason
):
    kind = "cascade" if steps[0]["kind"] == "eagle_head" else "draft_model"
    with pytest.raises(ValidationError, match=re.escape(reason)):
        make_recipe(draft={"kind": kind, "steps": steps, "vocabulary": vocabulary})


def test_a_text_has_no_alternatives(make_recipe):
    draft = {"kind": "draft_model", "steps": [PRETRAINED], "vocabulary": "string_match"}
    speculate = {"num_speculative_tokens": 3, "branch_above_probability": 0.1}
    with pytest.raises(ValidationError, match="string_match` proposes one text"):
        make_recipe(draft=draft, speculate=speculate)
    make_recipe(draft={**draft, "vocabulary": "token_intersection"}, speculate=speculate)


def test_an_early_exit_has_no_vocabulary_of_its_own(make_recipe):
    with pytest.raises(ValidationError, match="vocabulary"):
        make_recipe(draft={"kind": "early_exit", "layers": 1, "vocabulary": "string_match"})


def test_a_model_without_a_tokenizer_is_refused(build, tmp_path):
    small_model("llama", layers=2).save_pretrained(tmp_path / "other")
    with pytest.raises(BuildError, match="no tokenizer that can be opened"):
        build(draft={"kind": "draft_model", "steps": [PRETRAINED], "vocabulary": "string_match"})


def test_a_gguf_file_is_taken(build, tmp_path):
    """As the wheels of the embedded targets have it."""
    model = small_gguf_model("llama", 1, hidden_size=32, intermediate_size=48, num_attention_heads=2)
    write_llama_file(tmp_path / "other.gguf", model, small_tokenizer(CHATML))
    step = {**PRETRAINED, "source": {"kind": "local", "path": "other.gguf"}}
    built = build(draft={"kind": "draft_model", "steps": [step], "vocabulary": "string_match"})
    assert small_tokenizer().get_vocab().items() <= load_tokenizer(built.folder).get_vocab().items()
    with torch.inference_mode():
        found = load_model(built.folder, "fp32", "cpu")(IDS).logits
        torch.testing.assert_close(found, model(IDS).logits, atol=1e-4, rtol=1e-4)


def test_a_model_as_large_as_the_target_is_taken_though_its_file_holds_more_than_parameters(
    build, make_target, tmp_path
):
    _, folder = make_target("deepseek_v3")  # its routers' biases are buffers
    shutil.copytree(folder.path, tmp_path / "other")
    built = build(PRETRAINED, architecture="deepseek_v3")
    assert built.parameters == folder.parameters
