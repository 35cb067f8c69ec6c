"""From sources of every form to a folder that opens."""

from __future__ import annotations

import copy
import json
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from transformers import AutoModelForCausalLM, AutoTokenizer, MistralConfig

from draftrank.building.export.gguf import write_gguf
from draftrank.catalog.base import sha256_of_json
from draftrank.catalog.loading import load_declaration
from draftrank.catalog.sources.base import FetchContext, file_sha256
from draftrank.catalog.target import Target
from draftrank.errors import InvalidInputError, MissingDataError, UnsupportedModelError
from draftrank.models import target_folder as module
from draftrank.models.gguf_config import complete_config
from draftrank.models.target_folder import ensure_target
from families import NOT_SUPPORTED
from gguf_files import llama3_divisors, small_gguf_model, write_llama_file, write_target_file
from models import save_small_target, small_model
from workspaces import REPOSITORY

IDS = torch.arange(3, 23)[None]


def declare(path: str, **changes) -> Target:
    fields = {
        "schema_version": 1,
        "id": "tiny",
        "title": "Tiny",
        "licence": "Apache-2.0",
        "source": {"kind": "local", "path": path},
        **changes,
    }
    return Target.model_validate_json(json.dumps(fields))


@pytest.fixture
def context(tmp_path) -> FetchContext:
    return FetchContext(tmp_path / "cache", (tmp_path,))


@pytest.fixture
def write_source(tmp_path, make_tokenizer):
    """Writes `tiny.gguf`, or another file, in llama.cpp's terms; returns its model and its tokenizer."""

    def write(name="tiny", **more):
        tokenizer = make_tokenizer()
        model = small_model("llama", vocabulary=len(tokenizer))
        write_llama_file(tmp_path / f"{name}.gguf", model, tokenizer, **more)
        return model, tokenizer

    return write


@pytest.fixture
def gguf_source(write_source):
    return write_source()


def test_a_gguf_file_becomes_an_ordinary_folder(gguf_source, context, capfd):
    model, tokenizer = gguf_source
    folder = ensure_target(declare("tiny.gguf"), context)
    assert capfd.readouterr() == ("", "")
    opened = AutoModelForCausalLM.from_pretrained(folder.path)
    with torch.inference_mode():
        torch.testing.assert_close(opened(IDS).logits, model(IDS).logits, rtol=1e-4, atol=1e-4)
    assert opened.generation_config.eos_token_id == 2
    assert {parameter.dtype for parameter in opened.parameters()} == {torch.float32}
    again = AutoTokenizer.from_pretrained(folder.path)
    text = "ab abab<|im_end|>\n naïve 😀"
    assert again(text).input_ids == tokenizer(text).input_ids
    assert again.chat_template == tokenizer.chat_template
    assert folder.path.parent == context.cache / "targets"
    assert (folder.model_type, folder.context_window) == ("llama", 256)
    assert folder.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert folder.bytes_on_disk == (folder.path / "model.safetensors").stat().st_size


YARN = {
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 4.0,
    "rope.scaling.original_context_length": 64,
}
SCALED = {
    "linear": (
        {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
        {},
        {"rope_type": "linear", "factor": 4.0},
    ),
    "linear, old key": ({"rope.scale_linear": 4.0}, {}, {"rope_type": "linear", "factor": 4.0}),
    "none": ({"rope.scaling.type": "none", "rope.scaling.factor": 4.0}, {}, {"rope_type": "default"}),
    "yarn": (
        {**YARN, "rope.scaling.yarn_beta_fast": 32.0, "rope.scaling.finetuned": True},
        {},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    ),
    "yarn, attention told": (
        {**YARN, "rope.scaling.attn_factor": 0.5},
        {},
        {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 64,
            "attention_factor": 0.5 * (1 + 0.1 * math.log(4)),
        },
    ),
    "llama3": (
        {},
        {"rope_freqs.weight": llama3_divisors(8, 500_000.0, 32, 8192)},
        {
            "rope_type": "llama3",
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    ),
}


@pytest.mark.parametrize("kind", SCALED)
def test_rope_scaling_of_a_gguf_file_is_carried(write_source, context, kind):
    """The expected model is transformers' own, made from a configuration that says so."""
    stated, tensors, parameters = SCALED[kind]
    plain, _ = write_source(stated={"rope.freq_base": 500_000.0, **stated}, tensors=tensors)
    config = copy.deepcopy(plain.config)
    config.rope_parameters = {"rope_theta": 500_000.0, **parameters}
    expected = type(plain)(config).eval()
    expected.load_state_dict(plain.state_dict())
    folder = ensure_target(declare("tiny.gguf"), context)
    opened = AutoModelForCausalLM.from_pretrained(folder.path)
    ids = torch.cat([IDS, IDS], dim=1)
    for start in (20, 150, 9000):
        places = torch.cat([torch.arange(20), torch.arange(start, start + 20)])[None]
        with torch.inference_mode():
            found, right = (model(ids, position_ids=places).logits for model in (opened, expected))
        torch.testing.assert_close(found, right, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("stated", "tensors", "named"),
    [
        ({"attention.scale": 0.5}, {}, r"llama\.attention\.scale = 0\.5"),
        ({"embedding_scale": 12.0}, {}, r"llama\.embedding_scale = 12"),
        ({"final_logit_softcapping": 30.0}, {}, r"llama\.final_logit_softcapping = 30"),
        ({"attention.sliding_window": 16}, {}, r"llama\.attention\.sliding_window = 16"),
        ({"rope.dimension_count_swa": 4}, {}, r"llama\.rope\.dimension_count_swa = 4"),
        ({"rope.freq_base_swa": 500.0}, {}, r"llama\.rope\.freq_base_swa = 500"),
        ({"rope.scaling.type": "longrope"}, {}, r"llama\.rope\.scaling\.type = longrope"),
        ({"rope.scaling.attn_factor": 0.5}, {}, r"llama\.rope\.scaling\.attn_factor = 0\.5"),
        ({"rope.scaling.yarn_beta_fast": 16.0}, {}, r"llama\.rope\.scaling\.yarn_beta_fast = 16"),
        ({}, {"rope_freqs.weight": np.linspace(1, 8, 4, dtype=np.float32)}, r"rope_freqs\.weight"),
        (
            {"rope.scaling.factor": 2.0},
            {"rope_freqs.weight": llama3_divisors(8, 10_000.0, 8, 8192)},
            r"rope_freqs\.weight",
        ),
        ({}, {"blk.0.attn_q.bias": np.ones(32, np.float32)}, r"blk\.0\.attn_q\.bias"),
        ({}, {"rope_factors_long.weight": np.ones(4, np.float32)}, r"rope_factors_long\.weight"),
    ],
)
def test_what_a_gguf_file_states_in_vain_is_refused_by_name(write_source, context, stated, tensors, named):
    write_source(stated=stated, tensors=tensors)
    with pytest.raises(InvalidInputError, match=f"has no place for: {named}.*safetensors folder"):
        ensure_target(declare("tiny.gguf"), context)


def test_a_gguf_file_without_a_weight_is_refused(write_source, context):
    """transformers would fill it with random numbers."""
    write_source(without="blk.1.ffn_up.weight")
    with pytest.raises(
        InvalidInputError, match=r"lacks weights of the model: no model\.layers\.1\.mlp\.up_proj"
    ):
        ensure_target(declare("tiny.gguf"), context)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 500_000.0, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 3_000.0},
            }
        },
        {"layer_types": ["full_attention"] * 6},
        {"final_logit_softcapping": 2.0},
    ],
    ids=["scale of attention", "two bases, one stretched", "no windows", "capped logits"],
)
def test_constants_of_a_gemma_file_are_carried(tmp_path, more, monkeypatch):
    model = small_gguf_model("gemma3", 6, **more)
    described = write_target_file(tmp_path / "target.gguf", "gemma3", 30)
    (tmp_path / "written").mkdir()
    write_gguf(model, described, "tiny", tmp_path / "written" / "tiny.gguf", "f32")
    # the file's tokens are no tokenizer that transformers opens
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *_, **__: None)
    read = module._read_gguf(tmp_path / "written" / "tiny.gguf")[0]
    read.save_pretrained(tmp_path / "folder")
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "folder")
    ids = torch.arange(3, 53)[None]
    with torch.inference_mode():
        torch.testing.assert_close(opened(ids).logits, model(ids).logits, rtol=1e-3, atol=1e-3)


def test_mistral_has_no_window_that_its_file_does_not_state(tmp_path):
    """transformers takes files named so for its Mistral, whose window is 4096 unless told otherwise."""
    file = write_target_file(tmp_path / "mistral.gguf", "llama", 2)
    config = complete_config(MistralConfig(head_dim=16), file, GGUFReader(file))
    assert (MistralConfig().sliding_window, config.sliding_window) == (4096, None)


def test_what_is_read_from_a_gguf_file_besides_weights_is_part_of_its_identity(write_source, context):
    """A draft of the model with scaling is no draft of the one without, though their weights are equal."""
    found = {}
    for name, stated in (("plain", {}), ("scaled", {"rope.scaling.factor": 4.0})):
        write_source(name, stated=stated)
        found[name] = ensure_target(declare(f"{name}.gguf"), context)
    files = {name: file_sha256(folder.path / "model.safetensors") for name, folder in found.items()}
    assert files["plain"] == files["scaled"]
    assert found["plain"].weights_sha256 == sha256_of_json([["model.safetensors", files["plain"]]])
    assert found["scaled"].weights_sha256 != found["plain"].weights_sha256


@pytest.mark.usefixtures("gguf_source")
def test_conversions_by_older_rules_are_not_used_again(context, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(module, "_CONVERSION", module._CONVERSION - 1)
        older = ensure_target(declare("tiny.gguf"), context)
    assert ensure_target(declare("tiny.gguf"), context).path != older.path


@pytest.mark.usefixtures("gguf_source")
def test_it_is_converted_once(context, monkeypatch):
    calls = []
    convert = module._convert
    monkeypatch.setattr(module, "_convert", lambda *given: calls.append(given) or convert(*given))
    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(lambda _: ensure_target(declare("tiny.gguf"), context), range(2))
    (context.roots[0] / "tiny.gguf").unlink()
    assert first == second == ensure_target(declare("tiny.gguf"), context)
    assert len(calls) == 1


@pytest.mark.usefixtures("gguf_source")
def test_an_interrupted_conversion_leaves_nothing(context, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "weights_sha256", interrupted)  # weights and tokenizer are written by then
        with pytest.raises(KeyboardInterrupt):
            ensure_target(declare("tiny.gguf"), context)
    assert not [path for path in (context.cache / "targets").rglob("*") if path.suffix != ".lock"]
    assert ensure_target(declare("tiny.gguf"), context).path.is_dir()


@pytest.mark.usefixtures("gguf_source")
def test_a_changed_folder_is_not_trusted(context):
    folder = ensure_target(declare("tiny.gguf"), context).path
    with (folder / "model.safetensors").open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(MissingDataError, match="was changed"):
        ensure_target(declare("tiny.gguf"), context)


@pytest.fixture
def local_source(tmp_path, make_tokenizer):
    model = small_model("gemma3")
    model.save_pretrained(tmp_path / "model")
    make_tokenizer(None).save_pretrained(tmp_path / "model")
    return model


def test_a_folder_is_used_where_it_lies_and_hashed_once(local_source, context, monkeypatch):
    target = declare("model", prompt_format="completion")
    folder = ensure_target(target, context)
    assert folder.path == context.roots[0] / "model"
    assert not (folder.path / "draftrank.json").exists()
    assert folder.parameters == sum(parameter.numel() for parameter in local_source.parameters())
    assert (folder.model_type, folder.context_window) == ("gemma3_text", 256)
    with monkeypatch.context() as patch:
        patch.setattr(module, "weights_sha256", lambda _: pytest.fail("hashed again"))
        assert ensure_target(target, context) == folder
    small_model("gemma3", seed=1).save_pretrained(folder.path)
    assert ensure_target(target, context).weights_sha256 != folder.weights_sha256


@pytest.mark.usefixtures("local_source")
def test_the_hash_is_that_of_the_files(context):
    folder = ensure_target(declare("model", prompt_format="completion"), context)
    expected = [["model.safetensors", file_sha256(folder.path / "model.safetensors")]]
    assert folder.weights_sha256 == sha256_of_json(expected)


@pytest.mark.usefixtures("local_source")
def test_a_declared_window_narrows_and_never_widens(context):
    narrow = declare("model", prompt_format="completion", context_window=64)
    assert ensure_target(narrow, context).context_window == 64
    with pytest.raises(InvalidInputError, match=r"holds 256 tokens, not 512.*at most 256"):
        ensure_target(declare("model", prompt_format="completion", context_window=512), context)


@pytest.mark.usefixtures("local_source")
def test_a_chat_target_needs_a_chat_template(context):
    with pytest.raises(InvalidInputError, match=r"no chat template.*prompt_format: completion"):
        ensure_target(declare("model"), context)


@pytest.mark.usefixtures("local_source")
def test_folders_without_safetensors_are_refused(context):
    (context.roots[0] / "model" / "model.safetensors").rename(context.roots[0] / "model" / "weights.bin")
    with pytest.raises(MissingDataError, match=r"no \*\.safetensors"):
        ensure_target(declare("model"), context)


@pytest.mark.usefixtures("local_source")
def test_folders_without_configuration_are_refused(context):
    (context.roots[0] / "model" / "config.json").unlink()
    with pytest.raises(MissingDataError, match=r"model has no config\.json"):
        ensure_target(declare("model"), context)


def test_other_files_are_refused(tmp_path, context):
    (tmp_path / "weights.bin").write_bytes(b"PK\x03\x04")
    with pytest.raises(InvalidInputError, match="not a GGUF file"):
        ensure_target(declare("weights.bin"), context)
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + b"\0" * 60)
    with pytest.raises(InvalidInputError, match="version 0 of GGUF"):
        ensure_target(declare("broken.gguf"), context)


@pytest.mark.parametrize(
    "path", sorted((REPOSITORY / "drafts").glob("*/target.yaml")), ids=lambda path: path.parent.name
)
def test_the_declared_targets_are_valid(path):
    assert load_declaration(path, Target).id == path.parent.name
    assert path.read_text().startswith(
        "# yaml-language-server: $schema=../../suite/draftrank/catalog/schemas/target.json"
    )


@pytest.mark.parametrize("name", NOT_SUPPORTED)
def test_targets_that_keep_their_state_elsewhere_are_refused_before_they_are_used(tmp_path, context, name):
    save_small_target(tmp_path / "model", name)
    with pytest.raises(UnsupportedModelError, match=f"the architecture '{name}' is not supported"):
        ensure_target(declare("model", prompt_format="completion"), context)


@pytest.mark.parametrize("name", ["bloom", "mamba2"])
def test_a_target_without_a_configured_context_window_must_declare_one(tmp_path, context, name):
    save_small_target(tmp_path / "model", name)
    for _ in range(2):  # facts that are known already say the same
        with pytest.raises(
            InvalidInputError, match=r"target\.yaml: context_window: .*\(write how many tokens"
        ):
            ensure_target(declare("model", prompt_format="completion"), context)
    folder = ensure_target(declare("model", prompt_format="completion", context_window=64), context)
    assert folder.context_window == 64
