"""What leaves the cache is what was built, and says where it cannot be opened."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from transformers import AutoModelForCausalLM

from draftrank.building.export.folder import require_empty, write_form, write_out
from draftrank.building.export.gguf import write_gguf
from draftrank.building.surgery.eagle_head import published_of
from draftrank.catalog.programs import NAMES, PROGRAMS, why_no_form
from draftrank.errors import BuildError, InvalidInputError
from draftrank.kinds import DRAFTS, load_kind
from draftrank.models.architecture import Architecture
from draftrank.models.eagle_layouts import read_published_head
from draftrank.models.forms import Eagle3Form
from draftrank.models.loading import load_model
from draftrank.models.quiet import quiet_gguf, quiet_transformers
from gguf_files import llama3_divisors, small_gguf_model, write_target_file

IDS = torch.arange(3, 43).reshape(2, 20)
DROP = {"kind": "drop_layers", "keep": 2, "select": "ends"}


def declared(*steps, **fields):
    kind = "cascade" if steps[0]["kind"] == "eagle_head" else "draft_model"
    found = {"kind": kind, "steps": [*steps], **fields}
    return load_kind(DRAFTS[kind]).model_validate_json(json.dumps(found))


PRETRAINED = {"kind": "pretrained", "source": {"kind": "local", "path": "model"}, "licence": "MIT"}


@pytest.mark.parametrize(
    ("draft", "missing"),
    [
        (declared(DROP), {"speculators"}),
        (declared(DROP, {"kind": "quantize", "scheme": "dynamic_int8"}), {"speculators"}),
        (declared({"kind": "trim_vocabulary", "keep_tokens": 40}), {"speculators"}),
        (declared({"kind": "quantize", "scheme": "gptq"}), {"speculators", "llama.cpp"}),
        (declared(DROP, {"kind": "write_gguf"}), {"speculators", "transformers", "vllm", "sglang"}),
        (declared({"kind": "eagle_head"}), {"transformers"}),
        (declared(PRETRAINED, vocabulary="string_match"), {"speculators", "vllm", "sglang", "llama.cpp"}),
        (declared({"kind": "eagle_head"}, {"kind": "norm_before_residual"}), {"transformers", "sglang"}),
    ],
    ids=["plain", "int8", "trimmed", "packed", "gguf", "eagle3", "own vocabulary", "normed"],
)
def test_every_program_has_a_form_or_a_reason(draft, missing):
    assert {*why_no_form(draft.traits)} == missing
    uses = {use.program: use for use in draft.uses("MODEL", "DIR", 3)}
    for program in PROGRAMS:
        use = uses.get(NAMES[program])
        if use is not None:
            assert (use.snippet is None) == (program in missing)
            assert use.snippet or use.remark
        else:
            assert program in missing


TRIM = {"kind": "trim_vocabulary", "keep_tokens": 40}


@pytest.mark.parametrize(
    ("draft", "told"),
    [(declared(TRIM), {"SGLang"}), (declared(DROP), set()), (declared({"kind": "eagle_head"}, TRIM), set())],
    ids=["trimmed", "whole", "eagle3"],
)
def test_sglang_is_given_no_token_map_and_the_reason_is_told(draft, told):
    uses = draft.uses("MODEL", "DIR", 3)
    assert {use.program for use in uses if "no token map" in (use.remark or "")} == told
    assert not any("token-map" in (use.snippet or "") for use in uses)


THIN = [{"kind": "factorize", "keep_parameters": 0.5}, TRIM, {"kind": "factorize_head", "rank": 32}]


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt"])
@pytest.mark.parametrize(
    "steps",
    [[DROP], [DROP, TRIM], THIN, [TRIM, {"kind": "quantize", "scheme": "dynamic_int8"}]],
    ids=["plain", "trimmed", "thin", "int8"],
)
def test_what_transformers_opens_computes_what_was_measured(
    build, make_target, tmp_path, architecture, steps
):
    """On every token that the draft can say; in int8 within its rounding."""
    _, folder = make_target(architecture)
    built = build(*steps, architecture=architecture)
    place = tmp_path / "out"
    require_empty(place)
    files = write_form("transformers", built.folder, folder.path, no_file, "small", place)
    assert {path.name for path in files} >= {"model.safetensors", "config.json", "tokenizer.json"}
    with torch.inference_mode():
        opened = AutoModelForCausalLM.from_pretrained(place)(IDS).logits
        measured = load_model(built.folder, "fp32", "cpu", full_precision=True)(IDS).logits
    said = measured.isfinite()
    assert opened.isfinite().all()
    torch.testing.assert_close(opened[said], measured[said], atol=1e-4, rtol=1e-4)
    if len(steps) > 1:
        original = AutoModelForCausalLM.from_pretrained(folder.path)
        rows = opened[0, 0][~said[0, 0]]
        assert rows.std() > 0
        assert original.get_output_embeddings().weight.shape[0] == opened.shape[-1]
    with pytest.raises(InvalidInputError, match="is not empty"):
        require_empty(place)


def no_file():
    raise AssertionError("no GGUF file is asked for")


def test_rows_that_are_gone_are_not_made_up(build, make_target):
    _, folder = make_target("opt")
    built = build(TRIM, architecture="opt")
    model = load_model(built.folder, "fp32", "cpu")
    narrow = torch.nn.Linear(16, 40, bias=False)
    head = Architecture.of(model).head(model)
    head.projection = narrow
    with pytest.raises(BuildError, match="the rows of tokens that its head left out are gone"):
        write_out(model, folder.path)


@pytest.mark.parametrize("program", ["vllm", "sglang", "speculators"])
def test_a_head_is_written_as_it_is_published(build, make_target, tmp_path, program):
    _, folder = make_target("llama")
    steps = [{"kind": "eagle_head", "aux_hidden_states": [1, 2, 3]}, TRIM]
    built = build(*steps)
    (tmp_path / "out").mkdir()
    write_form(program, built.folder, folder.path, no_file, "small", tmp_path / "out")
    head = read_published_head(tmp_path / "out")
    assert head.aux_layers == (1, 2, 3)
    model = load_model(built.folder, "fp32", "cpu")
    assert torch.equal(head.token_ids, model.lm_head.token_ids)
    expected = published_of(model, Eagle3Form(layers=(0, 1, 2)))
    assert {*head.tensors} >= {*expected.tensors}
    for name, value in expected.tensors.items():
        assert torch.equal(head.tensors[name], value)


@pytest.mark.parametrize(("architecture", "layers"), [("llama", 2), ("gemma3", 6)])
def test_the_gguf_file_holds_the_same_model(tmp_path, architecture, layers):
    """Read back by transformers' own reader, which knows nothing of the writer."""
    # that reader takes Gemma's heads to have the size of the published models'
    size = 256 if architecture == "gemma3" else 16
    model = small_gguf_model(architecture, layers, num_key_value_heads=1, head_dim=size)
    described = write_target_file(tmp_path / "target.gguf", architecture, 30)
    write_gguf(model, described, "draft", tmp_path / "draft.gguf")
    with quiet_gguf(), quiet_transformers():
        opened = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="draft.gguf", dtype=torch.float32)
    assert opened.config.num_hidden_layers == layers
    assert opened.config.num_key_value_heads == 1
    with torch.inference_mode():
        found, expected = opened(IDS).logits, model(IDS).logits
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02 * float(expected.std()))


def stated(path, prefix):
    return {
        key.removeprefix(prefix): field.contents()
        for key, field in GGUFReader(path).fields.items()
        if key.startswith(prefix)
    }


ROPE = {"rope_theta": 50_000.0}


def test_rope_scaling_is_stated_as_llama_cpp_reads_it(tmp_path):
    described = write_target_file(tmp_path / "target.gguf", "llama", 30)

    def written(**parameters):
        model = small_gguf_model("llama", 2, rope_parameters={**ROPE, **parameters})
        write_gguf(model, described, "draft", tmp_path / "draft.gguf")
        tensors = {tensor.name: tensor.data for tensor in GGUFReader(tmp_path / "draft.gguf").tensors}
        return stated(tmp_path / "draft.gguf", "llama.rope."), tensors.get("rope_freqs.weight")

    plain = {"freq_base": 50_000.0, "dimension_count": 16}
    assert written(rope_type="default") == (plain, None)
    linear = {**plain, "scaling.type": "linear", "scaling.factor": 4.0}
    assert written(rope_type="linear", factor=4.0) == (linear, None)
    yarn, _ = written(rope_type="yarn", factor=4.0, original_max_position_embeddings=32, attention_factor=0.5)
    # llama.cpp multiplies what is stated by 1 + 0.1 ln(factor)
    assert yarn.pop("scaling.attn_factor") * (1 + 0.1 * math.log(4)) == pytest.approx(0.5)
    assert yarn == {
        **plain,
        "scaling.type": "yarn",
        "scaling.factor": 4.0,
        "scaling.original_context_length": 32,
    }
    keys, divisors = written(
        rope_type="llama3",
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=64,
    )
    assert keys == plain
    assert divisors.dtype == np.float32
    np.testing.assert_allclose(divisors, llama3_divisors(16, 50_000.0, 8, 64), rtol=1e-5)


def test_constants_are_the_drafts_own(tmp_path):
    """The target's file states others, which describe the target."""
    described = write_target_file(tmp_path / "target.gguf", "gemma3", 30)
    model = small_gguf_model("gemma3", 6, layer_types=["full_attention"] * 6, rms_norm_eps=0.25)
    write_gguf(model, described, "draft", tmp_path / "draft.gguf")
    found = stated(tmp_path / "draft.gguf", "gemma3.")
    assert "attention.sliding_window" not in found
    assert (found["attention.layer_norm_rms_epsilon"], found["context_length"]) == (0.25, 128)
    assert (found["rope.freq_base"], found["rope.freq_base_swa"]) == (1_000_000.0, 10_000.0)


@pytest.mark.parametrize(
    ("architecture", "changes", "reason"),
    [
        ("llama", {"rope_parameters": {**ROPE, "rope_type": "dynamic", "factor": 2.0}}, "type 'dynamic'"),
        (
            "llama",
            {
                "rope_parameters": {
                    **ROPE,
                    "rope_type": "yarn",
                    "factor": 2.0,
                    "original_max_position_embeddings": 64,
                    "beta_fast": 16.0,
                }
            },
            "beta_fast 32 in these models, not 16",
        ),
        (
            "llama",
            {"rope_parameters": {**ROPE, "rope_type": "default", "partial_rotary_factor": 0.5}},
            "part",
        ),
        ("llama", {"hidden_act": "gelu"}, "silu in these models, not gelu"),
        ("llama", {"model_type": "granite"}, "a granite model is no llama model"),
        (
            "gemma3",
            {
                "rope_parameters": {
                    "full_attention": {**ROPE, "rope_type": "dynamic", "factor": 2.0},
                    "sliding_attention": {**ROPE, "rope_type": "default"},
                }
            },
            "linearly and in full attention only",
        ),
        ("gemma3", {"attn_logit_softcapping": 30.0}, "not capped"),
    ],
)
def test_models_that_llama_cpp_computes_in_another_way_are_refused(tmp_path, architecture, changes, reason):
    described = write_target_file(tmp_path / "target.gguf", architecture, 30)
    model = small_gguf_model(architecture, 6)
    for name, value in changes.items():
        object.__setattr__(model.config, name, value)
    with pytest.raises(BuildError, match=reason):
        write_gguf(model, described, "draft", tmp_path / "draft.gguf")


def test_what_gguf_cannot_express_is_said(tmp_path):
    described = write_target_file(tmp_path / "target.gguf", "gemma3", 30)
    model = small_gguf_model("gemma3", 6)
    model.config.layer_types = ["full_attention", *model.config.layer_types[1:]]
    with pytest.raises(BuildError, match="keep layers in whole periods"):
        write_gguf(model, described, "draft", tmp_path / "draft.gguf")
    scaled = small_gguf_model("gemma3", 6)
    scaled.config.query_pre_attn_scalar = 256
    with pytest.raises(BuildError, match="head size 16, this one by that of 256"):
        write_gguf(scaled, described, "draft", tmp_path / "draft.gguf")
    other = write_target_file(tmp_path / "other.gguf", "qwen2", 30)
    with pytest.raises(BuildError, match="architecture qwen2 are not written yet"):
        write_gguf(small_gguf_model("llama", 2), other, "draft", tmp_path / "draft.gguf")
