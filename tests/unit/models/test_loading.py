"""Folders open in the precision and form that was asked for."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.ao.nn.quantized.dynamic import Linear as DynamicInt8
from transformers import Gemma3Config, Gemma3ForConditionalGeneration
from transformers.pytorch_utils import Conv1D

from draftrank.engine.backends.registry import load_runtime
from draftrank.errors import BuildError, IncompatibleDraftError, MissingDataError, UnsupportedModelError
from draftrank.models import forms
from draftrank.models.loading import (
    compute_dtype,
    load_model,
    load_tokenizer,
    outline,
    read_config,
    window_of_folder,
)
from draftrank.models.model_files import INDEX
from models import save_small_target, small_model

ARCHITECTURES = ("llama", "gemma3", "gpt2")
IDS = torch.arange(3, 43).reshape(2, 20)


@pytest.fixture
def int8_folder(make_target, tmp_path):
    def make(architecture, facts=None):
        facts = facts or {"forms": [{"form": "dynamic_int8"}]}
        _, folder = make_target(architecture)
        path = tmp_path / architecture
        load_model(folder.path, "fp32", "cpu").save_pretrained(path)
        (path / "draftrank.json").write_text(json.dumps(facts))
        return folder.path, path

    return make


@pytest.mark.parametrize(
    ("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_models_come_ready_for_inference(make_target, name, dtype):
    model = load_model(make_target()[1].path, name, "cpu")
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@torch.inference_mode()
def test_an_int8_draft_is_close_to_its_weights(int8_folder, architecture, dtype):
    plain, quantized = int8_folder(architecture)
    expected = load_model(plain, "fp32", "cpu")(IDS).logits
    model = load_model(quantized, dtype, "cpu")
    found = model(IDS).logits
    assert found.dtype == torch.float32
    assert not torch.equal(found, expected)
    similarity = torch.cosine_similarity(found, expected, dim=-1)
    assert similarity.mean() > 0.98
    assert isinstance(model.lm_head, DynamicInt8)
    assert not [module for module in model.modules() if type(module) in (torch.nn.Linear, Conv1D)]
    assert model.lm_head.weight().qscheme() == torch.per_channel_affine
    embedding = load_model(plain, "fp32", "cpu").get_input_embeddings().weight
    assert torch.equal(model.get_input_embeddings().weight, embedding)


def test_an_int8_draft_assists_generation(int8_folder):
    plain, quantized = int8_folder("llama")
    target = load_model(plain, "fp32", "cpu")
    alone = target.generate(IDS[:1], max_new_tokens=12, do_sample=False)
    helped = target.generate(
        IDS[:1], max_new_tokens=12, do_sample=False, assistant_model=load_model(quantized, "fp32", "cpu")
    )
    assert torch.equal(alone, helped)


@torch.inference_mode()
def test_how_int8_was_noted_first_is_still_read(int8_folder):
    model = load_model(int8_folder("llama", {"load_form": "dynamic_int8"})[1], "fp32", "cpu")
    assert isinstance(model.lm_head, DynamicInt8)


def test_layers_named_by_their_ends_stay_precise(int8_folder):
    form = {"form": "dynamic_int8", "keep_precise": ["down_proj", "lm_head"]}
    model = load_model(int8_folder("llama", {"forms": [form]})[1], "fp32", "cpu")
    plain = {name for name, module in model.named_modules() if type(module) is torch.nn.Linear}
    assert plain == {"lm_head", *(f"model.layers.{index}.mlp.down_proj" for index in range(4))}
    assert isinstance(model.model.layers[0].mlp.up_proj, DynamicInt8)


def test_int8_is_for_the_processor(int8_folder):
    with pytest.raises(IncompatibleDraftError, match="CPU only"):
        load_model(int8_folder("llama")[1], "fp32", "cuda")


def test_a_processor_without_int8_engine_is_named(int8_folder, monkeypatch):
    _, folder = int8_folder("llama")
    monkeypatch.setattr(forms, "_ENGINES", ("no-such-engine",))
    with pytest.raises(BuildError, match="no int8 engine"):
        load_model(folder, "fp32", "cpu")


def test_a_folder_that_is_no_model_is_named(tmp_path):
    with pytest.raises(MissingDataError, match=r"has no config\.json"):
        load_model(tmp_path, "fp32", "cpu")
    with pytest.raises(MissingDataError, match="no tokenizer"):
        load_tokenizer(tmp_path)


def test_a_cut_off_file_is_named(make_target, tmp_path):
    load_model(make_target()[1].path, "fp32", "cpu").save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(MissingDataError, match=r"model\.safetensors: is no safetensors file: "):
        load_model(tmp_path, "fp32", "cpu")


def test_pickled_weights_are_never_opened(make_target, tmp_path):
    model = load_model(make_target()[1].path, "fp32", "cpu")
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(MissingDataError, match="cannot be opened as a model"):
        load_model(tmp_path, "fp32", "cpu")


def test_the_build_precision_is_one_that_loads(make_target):
    assert load_model(make_target()[1].path, compute_dtype("cpu"), "cpu") is not None


def test_nothing_is_printed(make_target, capfd):
    load_model(make_target()[1].path, "fp32", "cpu")
    load_tokenizer(make_target()[1].path)
    assert capfd.readouterr() == ("", "")


def changed_config(folder, **fields):
    save_small_target(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields}))


@pytest.mark.parametrize(
    ("fields", "error", "says"),
    [
        ({"num_hidden_layers": None}, MissingDataError, "num_hidden_layers"),
        ({"num_hidden_layers": 0}, UnsupportedModelError, "says that it has no layers"),
        ({"model_type": "nonsense"}, MissingDataError, "`nonsense`"),
        ({"hidden_size": "many"}, MissingDataError, "expected int, got str"),
        ({"model_type": "t5"}, UnsupportedModelError, "'t5' is not supported: it is an encoder-decoder"),
        ({"model_type": "bart"}, UnsupportedModelError, "'bart' is not supported: it is an encoder-decoder"),
        (
            {"model_type": "llava"},
            UnsupportedModelError,
            "'llava' is not supported: transformers has no causal",
        ),
        ({"model_type": "my", "auto_map": {"AutoConfig": "a.B"}}, MissingDataError, "custom code"),
        ({"model_type": None}, MissingDataError, r"config\.json: model_type: names no architecture"),
        ({"model_type": "bert"}, UnsupportedModelError, "'bert' is not supported: it is an encoder"),
        ({"hidden_size": [32]}, MissingDataError, r"config\.json: .*expected int, got list"),
        ({"num_key_value_heads": 0}, UnsupportedModelError, "num_key_value_heads: is 0"),
        (
            {"tie_word_embeddings": True},
            MissingDataError,
            r"config\.json: tie_word_embeddings: says that the head",
        ),
        ({"quantization_config": {"quant_method": "magic"}}, UnsupportedModelError, "knows no 'magic'"),
        ({"num_hidden_layers": 2}, MissingDataError, "holds 9 weights that"),
        ({"num_hidden_layers": 5}, MissingDataError, r"misses 18 weights, such as model\.layers\.3\."),
        ({"intermediate_size": 40}, MissingDataError, r"down_proj.weight is \[32, 48\], not \[32, 40\]"),
    ],
)
def test_a_folder_of_another_model_is_refused_in_one_sentence(tmp_path, fields, error, says):
    changed_config(tmp_path, **fields)
    with pytest.raises(error, match=says) as found:
        load_model(tmp_path, "fp32", "cpu")
    assert "\n" not in str(found.value)
    assert len(str(found.value)) < 400


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (
            {"rope_parameters": {"rope_type": "warp", "rope_theta": 1e4}},
            r"rope_parameters\.rope_type: .* no 'warp'",
        ),
        (
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": "two"}},
            "TypeError: unsupported",
        ),
        ({"hidden_act": "swoosh"}, "hidden_act: transformers knows no 'swoosh'"),
    ],
)
def test_settings_of_which_no_model_can_be_made_are_named(tmp_path, fields, says):
    changed_config(tmp_path, **fields)
    with pytest.raises(MissingDataError, match=rf"config\.json: {says}"):
        outline(read_config(tmp_path), tmp_path / "config.json")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("config.json", "{", "config.json: is no JSON file"),
        ("config.json", "[]", "config.json: holds no JSON object but a list"),
        ("generation_config.json", "[]", "generation_config.json: holds no JSON object but a list"),
        (
            "model.safetensors",
            "version https://git-lfs",
            r"model.safetensors: is no safetensors file .a pointer",
        ),
        (INDEX, '{"weight_map": {"lm_head.wei', "index.json: is no JSON file: Unterminated"),
        (INDEX, "{}", "index.json: weight_map: does not give the file of each weight"),
        (INDEX, '{"weight_map": {"a": "b.safetensors"}}', "weight_map: the file b.safetensors is not here"),
    ],
)
def test_a_broken_file_of_a_model_is_named(tmp_path, name, content, says):
    save_small_target(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(MissingDataError, match=f"{says}.*; fetch the folder again"):
        load_model(tmp_path, "fp32", "cpu")


@pytest.mark.parametrize("content", ["[]", "{}", '{"version": "1.0", "tru'])
def test_a_broken_tokenizer_is_named(tmp_path, content):
    save_small_target(tmp_path)
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(
        MissingDataError, match=r"has no tokenizer that can be opened: .*; fetch tokenizer\.json"
    ):
        load_tokenizer(tmp_path)


def test_weights_without_a_place_are_refused_and_old_buffers_are_not(tmp_path):
    """Those of a Qwen2 opened as a Llama would leave its biases out, and nobody would see it."""
    save_small_target(tmp_path, "qwen2")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "llama"}))
    with pytest.raises(
        MissingDataError, match=r"holds 9 weights that .* such as model\.layers\.0\.self_attn\.k_proj\.bias"
    ):
        load_model(tmp_path, "fp32", "cpu")
    weights = load_file(tmp_path / "model.safetensors")
    old = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4), "vision.weight": torch.ones(2)}
    kept = {name: weight for name, weight in weights.items() if not name.endswith(".bias")}
    save_file({**kept, **old}, tmp_path / "model.safetensors", {"format": "pt"})
    load_model(tmp_path, "fp32", "cpu")
    whole = {name: weight.to(torch.int8) for name, weight in kept.items()}
    save_file(whole, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(MissingDataError, match=r"is I8, and config\.json has no quantization_config"):
        load_model(tmp_path, "fp32", "cpu")


def test_a_missing_tensor_is_named_and_a_tied_one_is_not_missed(tmp_path):
    save_small_target(tmp_path, "gemma3")
    weights = load_file(tmp_path / "model.safetensors")
    assert "lm_head.weight" not in weights
    load_model(tmp_path, "fp32", "cpu")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        MissingDataError, match=r"misses 1 weight, such as model\.layers\.1\.mlp\.up_proj\.weight"
    ):
        load_model(tmp_path, "fp32", "cpu")


def test_the_text_part_of_a_vision_language_model_reads_text(tmp_path):
    text = {**small_model("gemma3").config.to_dict(), "vocab_size": 262}
    eye = {
        "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4,
        "image_size": 28, "patch_size": 14,
    }  # fmt: skip
    config = Gemma3Config(text_config=text, vision_config=eye, mm_tokens_per_image=1)
    Gemma3ForConditionalGeneration(config).save_pretrained(tmp_path)
    runtime = load_runtime(tmp_path, "fp32", "cpu", "transformers")
    assert (runtime.vocabulary_size, runtime.context_window) == (262, 256)


@pytest.mark.parametrize(
    ("architecture", "window"), [("llama", 96), ("gpt2", 96), ("mpt", 96), ("bloom", None), ("mamba2", None)]
)
def test_the_window_is_where_the_family_keeps_it(tmp_path, architecture, window):
    save_small_target(tmp_path, architecture, window=96)
    assert window_of_folder(tmp_path) == window
