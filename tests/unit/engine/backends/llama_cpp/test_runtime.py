"""The llama.cpp runtime: the logits of the plain model, whatever was read and rolled back, and every law of the engine,
alone and beside torch. Skipped where llama-cpp-python is not installed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from draftrank.building.export.gguf import write_gguf
from draftrank.catalog.decoding_mode import DecodingMode
from draftrank.catalog.sources.base import FetchContext
from draftrank.catalog.sources.local import LocalSource
from draftrank.catalog.target import Target
from draftrank.engine.backends.llama_cpp import runtime as module
from draftrank.engine.backends.llama_cpp.runtime import BATCH, LlamaCppRuntime
from draftrank.engine.backends.transformers.runtime import TransformersRuntime
from draftrank.engine.loop import Request, autoregressive, speculative
from draftrank.engine.proposer import ProposerContext
from draftrank.engine.proposers.cascade import CascadeProposer
from draftrank.engine.proposers.draft_model import ModelProposer
from draftrank.engine.proposers.drafting import Drafting, drafting_of
from draftrank.engine.proposers.ngram import NgramProposer
from draftrank.engine.proposers.suffix import SuffixDraft
from draftrank.engine.sampling import Sampler
from draftrank.errors import IncompatibleDraftError, MissingDataError
from draftrank.measure.cost.latency import measure_latencies
from draftrank.models.loading import load_model
from draftrank.models.target_folder import ensure_target
from examples import examples
from gguf_files import VOCABULARY, llama3_divisors, small_gguf_model, write_llama_file, write_target_file
from models import own_logits, small_model, small_tokenizer, sometimes_alike
from proposers import Steps, check_fresh
from runtimes import check_rollbacks

pytest.importorskip(
    "llama_cpp", reason="llama-cpp-python is not installed (pip install 'draftrank[llama-cpp]')"
)
LAYERS = {"llama": 2, "gemma3": 6}
# llama.cpp reads GELU off a table of half-precision values
TOLERANCE = {"llama": 2e-4, "gemma3": 2e-2}
tokens = st.lists(st.integers(3, VOCABULARY - 1), min_size=1, max_size=12)
prompts = st.lists(st.integers(3, VOCABULARY - 1), min_size=1, max_size=30).map(tuple)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A model and its GGUF file, by architecture and seed."""
    folder = tmp_path_factory.mktemp("gguf")
    made = {}

    def write(architecture, seed=3, layers=None, weights="f32"):
        key = (architecture, seed, layers, weights)
        if key not in made:
            layers = layers or LAYERS[architecture]
            model = small_gguf_model(architecture, layers, seed=seed)
            described = folder / f"{architecture}.gguf"
            if not described.exists():
                write_target_file(described, architecture, 30)
            file = folder / ("-".join(map(str, key)) + ".gguf")
            write_gguf(model, described, "small", file, weights)
            made[key] = model, file
        return made[key]

    return write


def opened(written, architecture="llama", **which):
    return LlamaCppRuntime(written(architecture, **which)[1], threads=1, attention="fp32")


def opened_of(model, folder, architecture="llama"):
    """A model in a file of its own, as llama.cpp opens it."""
    described = write_target_file(folder / "target.gguf", architecture, 30)
    write_gguf(model, described, "draft", folder / "draft.gguf", "f32")
    return LlamaCppRuntime(folder / "draft.gguf", threads=1, attention="fp32")


@pytest.mark.parametrize("architecture", LAYERS)
@examples(15)
@given(moves=st.lists(st.tuples(tokens, st.integers(0, 12)), min_size=1, max_size=6))
def test_rolled_back_caches_equal_fresh_ones(written, architecture, moves):
    runtime, model = opened(written, architecture), written(architecture)[0]
    check_rollbacks(runtime, model, moves, TOLERANCE[architecture], 1e-3)


def test_the_last_rows_are_kept_also_of_feeds_longer_than_a_batch(tmp_path):
    sequence = [3 + place % 60 for place in range(BATCH + 40)]
    model = small_gguf_model("llama", 1, max_position_embeddings=1024)
    runtime = opened_of(model, tmp_path)
    expected = own_logits(model, sequence)
    torch.testing.assert_close(runtime.forward(sequence, keep=2), expected[-2:], atol=1e-3, rtol=1e-3)
    runtime.reset()
    torch.testing.assert_close(runtime.forward(sequence), expected, atol=1e-3, rtol=1e-3)
    runtime.reset()
    torch.testing.assert_close(runtime.forward(sequence, keep=60), expected[-60:], atol=1e-3, rtol=1e-3)


PLAIN = {"rope_type": "default", "rope_theta": 10_000.0}
YARN = {**PLAIN, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
STRETCHED = {
    "linear": {**PLAIN, "rope_type": "linear", "factor": 4.0},
    "yarn": YARN,
    "yarn, attention told": {**YARN, "attention_factor": 0.8},
    "llama3": {
        **PLAIN,
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
}


@pytest.mark.parametrize("kind", STRETCHED)
def test_rope_scaling_is_llama_cpps_too_past_the_original_window(tmp_path, kind):
    model = small_gguf_model("llama", 2, rope_parameters=STRETCHED[kind])
    runtime = opened_of(model, tmp_path)
    sequence = [3 + 7 * place % 60 for place in range(120)]
    torch.testing.assert_close(runtime.forward(sequence), own_logits(model, sequence), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    "stated",
    [
        {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
        {"rope.scale_linear": 4.0},
        {"rope.scaling.type": "none", "rope.scaling.factor": 4.0},
        {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 4.0,
            "rope.scaling.original_context_length": 64,
            "rope.scaling.attn_factor": 0.8,
        },
        {"rope.scaling.type": "yarn", "rope.scaling.factor": 2.0},
        "rope_freqs.weight",
    ],
    ids=str,
)
def test_a_converted_target_is_the_model_that_llama_cpp_runs(tmp_path, stated):
    """Of one file: what it states of RoPE is read by llama.cpp itself."""
    tensors = {}
    if stated == "rope_freqs.weight":
        tensors = {stated: llama3_divisors(8, 500_000.0, 32, 8192)}
        stated = {"rope.freq_base": 500_000.0}
    tokenizer = small_tokenizer("{{ messages }}")
    model = small_model("llama", vocabulary=len(tokenizer))
    write_llama_file(tmp_path / "tiny.gguf", model, tokenizer, stated=stated, tensors=tensors)
    source = LocalSource(kind="local", path="tiny.gguf")
    target = Target(schema_version=1, id="tiny", title="Tiny", licence="MIT", source=source)
    folder = ensure_target(target, FetchContext(tmp_path / "cache", (tmp_path,)))
    converted = load_model(folder.path, "fp32", "cpu")
    runtime = LlamaCppRuntime(tmp_path / "tiny.gguf", threads=1, attention="fp32")
    sequence = [3 + 7 * place % 200 for place in range(200)]
    expected = own_logits(converted, sequence)
    torch.testing.assert_close(runtime.forward(sequence), expected, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize(
    "more",
    [
        {
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 500_000.0, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 3_000.0},
            }
        },
        {"layer_types": ["full_attention"] * 6},
        {"final_logit_softcapping": 2.0},
        {"rms_norm_eps": 0.05, "sliding_window": 20},
    ],
    ids=["two bases, one stretched", "no windows", "capped logits", "epsilon and window"],
)
def test_constants_of_gemma_are_llama_cpps_too(tmp_path, more):
    """The file takes none of them from the target's, which states others."""
    model = small_gguf_model("gemma3", 6, **more)
    runtime = opened_of(model, tmp_path, "gemma3")
    sequence = [3 + 7 * place % 60 for place in range(120)]
    expected = own_logits(model, sequence)
    torch.testing.assert_close(runtime.forward(sequence), expected, atol=TOLERANCE["gemma3"], rtol=1e-3)


def test_room_that_grows_keeps_what_is_held(written):
    model, _ = written("llama")
    runtime = opened(written)
    runtime.forward([5, 6, 7])
    runtime.reserve(4 * runtime._room)
    logits = runtime.forward([8, 9])
    torch.testing.assert_close(logits, own_logits(model, [5, 6, 7, 8, 9])[-2:], atol=2e-4, rtol=1e-3)
    runtime.reset()
    assert runtime.length == 0
    torch.testing.assert_close(runtime.forward([9, 4]), own_logits(model, [9, 4]), atol=2e-4, rtol=1e-3)


def proposers(written):
    """Drafts in llama.cpp and in torch."""
    near = sometimes_alike(small_gguf_model("llama", 2))
    return {
        "equal": ModelProposer(opened(written)),
        "stranger": ModelProposer(opened(written, seed=9, layers=1), Drafting(0.3)),
        "packed": ModelProposer(opened(written, weights="q8_0")),
        "tree": ModelProposer(opened(written, seed=9, layers=1), Drafting(branch_above=0.05)),
        "in torch": ModelProposer(TransformersRuntime(near)),
        "ngram": NgramProposer(1, 3),
        "cascade": CascadeProposer(NgramProposer(2, 3), ModelProposer(TransformersRuntime(near))),
    }


@pytest.mark.parametrize("name", ["equal", "stranger", "packed", "in torch", "ngram", "cascade"])
@examples(10)
@given(prompt=prompts, k=st.integers(1, 8), limit=st.integers(1, 40))
def test_greedy_speculation_equals_greedy_decoding(written, name, prompt, k, limit):
    target = opened(written)
    request = Request(prompt, limit, frozenset({4}))
    expected = autoregressive(target, request)
    found = speculative(target, proposers(written)[name], request, k)
    assert (found.token_ids, found.finish) == (expected.token_ids, expected.finish)
    assert len(found.token_ids) - 1 == found.steps + sum(i * n for i, n in enumerate(found.accept_histogram))
    assert target.length <= len(prompt) + limit


@pytest.mark.parametrize(
    ("name", "of_target"),
    [
        *((name, "llama.cpp") for name in ("equal", "stranger", "packed", "in torch", "ngram", "cascade")),
        *((name, "torch") for name in ("equal", "stranger", "packed", "tree")),
    ],
)
@examples(5)
@given(prompt=prompts, k=st.integers(1, 6), seed=st.integers(0, 10_000))
def test_each_proposal_is_that_of_a_fresh_cache(written, name, of_target, prompt, k, seed):
    """Up to its rounding: quantized products round activations, by blocks of them."""

    def make():
        target = opened(written) if of_target == "llama.cpp" else TransformersRuntime(written("llama")[0])
        return target, proposers(written)[name]

    target, proposer = make()
    sampler = Sampler(DecodingMode())
    found = Steps(seed, vocabulary=VOCABULARY).run(target, proposer, prompt, sampler, k, 5)
    check_fresh(make, found, sampler, (0.3, 0.05), tolerance=0.1)


@examples(10)
@given(prompt=prompts, k=st.integers(1, 6))
def test_a_draft_in_llama_cpp_serves_a_target_in_torch(written, prompt, k):
    target = TransformersRuntime(written("llama")[0])
    request = Request(prompt, 30)
    expected = autoregressive(target, request)
    found = speculative(target, ModelProposer(opened(written)), request, k)
    assert found.token_ids == expected.token_ids
    assert found.acceptance_length == pytest.approx(29 / -(-29 // (k + 1)))


@pytest.mark.parametrize("rows", [VOCABULARY - 3, VOCABULARY + 3])
def test_a_file_with_other_rows_than_the_target_says_and_reads_what_both_have(written, rows):
    target = TransformersRuntime(small_gguf_model("llama", 2, vocab_size=rows))
    model, file = written("llama")
    draft = LlamaCppRuntime(file, threads=1, attention="fp32", vocabulary=rows)
    unread = rows - 1 if rows > VOCABULARY else 5
    known = min(rows, VOCABULARY)
    found = draft.forward([7, unread, 9])
    assert found.shape == (3, rows)
    assert found[:, known:].eq(-torch.inf).all()
    expected = own_logits(model, [7, 0 if rows > VOCABULARY else 5, 9])[:, :known]
    torch.testing.assert_close(found[:, :known], expected, atol=TOLERANCE["llama"], rtol=1e-3)
    for mode in (DecodingMode(), DecodingMode(temperature=1.0)):
        request = Request((7, unread, 9), 24, mode=mode)
        output = speculative(target, ModelProposer(draft), request, 3).token_ids
        if mode.greedy:
            assert output == autoregressive(target, request).token_ids
    with pytest.raises(IndexError, match=f"token id {rows} is outside"):
        draft.forward([rows])


def test_trees_are_refused_with_the_reason(written):
    context = ProposerContext(opened(written), None, Path(), "fp32", "cpu", branch_above_probability=0.1)
    for refusing in (drafting_of, SuffixDraft(kind="suffix").open):
        with pytest.raises(IncompatibleDraftError, match=r"llama\.cpp verifies chains of tokens only"):
            refusing(context)


def test_sampling_follows_the_seed(written):
    target = opened(written)
    request = Request((5, 9, 11), 30, mode=DecodingMode(temperature=0.9, top_p=0.9), seed=4)
    draft = ModelProposer(opened(written, weights="q8_0"))
    outputs = {speculative(target, draft, request, 3).token_ids for _ in range(2)}
    assert len(outputs) == 1


def test_its_forwards_are_timed(written):
    target, draft = opened(written), opened(written, seed=9, layers=1)
    (found,) = measure_latencies(target, [(draft, 2)], [(5, 6, 7)])
    assert {(one.part, one.tokens) for one in found} >= {("target", 1), ("target", 3), ("draft", 1)}
    assert all(one.median_s > 0 for one in found)


def test_a_file_that_cannot_be_opened_is_named(tmp_path):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(40))
    with pytest.raises(MissingDataError, match=r"cannot open .*broken\.gguf"):
        LlamaCppRuntime(broken)


def test_without_the_library_the_fix_is_told(monkeypatch):
    module.load_library.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "llama_cpp", None)
    with pytest.raises(IncompatibleDraftError, match=r"pip install 'draftrank\[llama-cpp\]'"):
        module.load_library()
