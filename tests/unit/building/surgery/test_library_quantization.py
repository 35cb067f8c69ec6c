"""Drafts quantized by libraries: saved, opened again, close to what they were."""

from __future__ import annotations

import importlib.util
import json
import re
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.pytorch_utils import Conv1D

from draftrank.building.surgery import library_quantization
from draftrank.building.surgery.library_quantization import Settings, quantize_folder, require_fitting
from draftrank.building.working_draft import WorkingDraft
from draftrank.errors import BuildError, IncompatibleDraftError
from draftrank.models.loading import load_model
from draftrank.models.matrices import matrix
from draftrank.models.packed_int8 import PackedInt8Linear
from models import small_model, small_tokenizer

IDS = torch.arange(3, 43).reshape(2, 20)
LIBRARIES = {
    "int8_weight_only": "torchao",
    "int8_dynamic": "torchao",
    "llm_int8": "bitsandbytes",
    "nf4": "bitsandbytes",
    "gptq": "gptqmodel",
}


def quantize(scheme, **more):
    return {"kind": "quantize", "scheme": scheme, **more}


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt2"])
@pytest.mark.parametrize(("scheme", "library"), list(LIBRARIES.items())[:3])
def test_a_quantized_draft_is_close_to_its_weights(build, make_target, architecture, scheme, library):
    pytest.importorskip(library)
    _, folder = make_target(architecture)
    built = build(quantize(scheme), architecture=architecture)
    config = json.loads((built.folder / "config.json").read_text())
    assert config["quantization_config"]
    plain = load_model(folder.path, "fp32", "cpu")
    for dtype in ("fp32", "bf16"):
        model = load_model(built.folder, dtype, "cpu")
        with torch.inference_mode():
            found, expected = model(IDS).logits.float(), plain(IDS).logits
        assert not torch.equal(found, expected)
        assert torch.cosine_similarity(found, expected, dim=-1).mean() > 0.95
    assert built.bytes_on_disk < folder.bytes_on_disk
    assert built.parameters == folder.parameters


def wider_model():
    """Large enough for the blocks in which weights share a scale."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=61,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval()


def rounded(weight, bits, group):
    """Round to nearest, symmetric, one scale per group of a row."""
    grouped = weight.view(len(weight), -1, group)
    largest = 2 ** (bits - 1) - 1
    scale = grouped.abs().amax(-1, keepdim=True) / largest
    return ((grouped / scale).round().clamp(-largest - 1, largest) * scale).view_as(weight)


def test_gptq_is_closer_than_rounding(tmp_path):
    """Frantar et al.'s point: what rounding one weight breaks, the later ones make up for."""
    pytest.importorskip("gptqmodel")
    plain = wider_model()
    plain.save_pretrained(tmp_path / "plain")
    text = torch.randint(3, 61, (32, 48), generator=torch.Generator().manual_seed(1))
    settings = Settings(bits=4, group_size=32, text=text)
    quantize_folder(tmp_path / "plain", "gptq", "cpu", settings).save_pretrained(tmp_path / "gptq")
    config = json.loads((tmp_path / "gptq" / "config.json").read_text())["quantization_config"]
    assert (config["bits"], config["group_size"], config.get("dataset")) == (4, 32, None)
    found, nearest = load_model(tmp_path / "gptq", "bf16", "cpu"), wider_model()
    with torch.inference_mode():
        for module in nearest.model.layers.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.copy_(rounded(module.weight, 4, 32))
        expected = plain(text).logits
        errors = [(model(text).logits.float() - expected).square().mean() for model in (found, nearest)]
    assert errors[0] < errors[1]


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt2"])
def test_the_packed_kernel_multiplies_as_torchao_does(build, architecture):
    pytest.importorskip("torchao")
    built = build(quantize("int8_weight_only"), architecture=architecture)
    theirs = AutoModelForCausalLM.from_pretrained(built.folder, dtype=torch.bfloat16)
    ours = load_model(built.folder, "bf16", "cpu")
    packed = [module for module in ours.modules() if isinstance(module, PackedInt8Linear)]
    assert bool(packed) == (architecture != "gpt2")  # torchao leaves its Conv1D alone
    with torch.inference_mode():
        assert torch.cosine_similarity(ours(IDS).logits, theirs(IDS).logits, dim=-1).min() > 0.99


def test_nf4_is_close_where_its_blocks_fit(tmp_path):
    pytest.importorskip("bitsandbytes")
    plain = wider_model()
    plain.save_pretrained(tmp_path / "plain")
    quantize_folder(tmp_path / "plain", "nf4", "cpu").save_pretrained(tmp_path / "nf4")
    model = load_model(tmp_path / "nf4", "fp32", "cpu")
    with torch.inference_mode():
        found, expected = model(IDS).logits.float(), plain(IDS).logits
    assert not torch.equal(found, expected)
    assert torch.cosine_similarity(found, expected, dim=-1).mean() > 0.75


def test_blocks_that_do_not_fit_are_named(build):
    pytest.importorskip("bitsandbytes")
    with pytest.raises(BuildError, match="q_proj has 32 columns, and nf4 needs a multiple of 64"):
        build(quantize("nf4"))


@pytest.mark.parametrize(("scheme", "library"), LIBRARIES.items())
def test_a_missing_library_is_named_with_its_install(build, monkeypatch, scheme, library):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == library else find(name))
    with pytest.raises(BuildError, match=rf"needs the library {library}: pip install 'draftrank\["):
        build(quantize(scheme))


def test_a_device_without_kernel_is_named(build):
    pytest.importorskip("torchao")
    with pytest.raises(BuildError, match="no int4_weight_only kernel for cpu: use --device cuda"):
        build(quantize("int4_weight_only"))


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral", "mamba2", "hrm_text"])
def test_blocks_are_asked_of_what_is_packed_and_of_no_layer(name, monkeypatch):
    """HRM's layers are not found. bitsandbytes packs what is a linear layer by its class, but not the head."""
    model = small_model(name)
    draft = SimpleNamespace(model=model)
    monkeypatch.setattr(library_quantization, "NF4_BLOCK", 3)
    head = next(part for part, module in model.named_modules() if module is model.get_output_embeddings())
    named = [part for part, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    odd = [part for part in named if part != head and matrix(model.get_submodule(part)).shape[1] % 3]
    names = "|".join(map(re.escape, odd))
    with pytest.raises(
        BuildError, match=rf"^({names}) has \d+ columns, and nf4 needs a multiple of 3: use another"
    ):
        require_fitting(draft, "nf4", 0)
    require_fitting(draft, "nf4", 0, (head, *odd))
    monkeypatch.setattr(library_quantization, "NF4_BLOCK", 8)
    require_fitting(draft, "nf4", 0)


def test_gptq_needs_layers():
    model = small_model("hrm_text")
    draft = WorkingDraft(model, small_tokenizer())
    with pytest.raises(
        BuildError, match=r"layers of the architecture 'hrm_text' are not found.*but for gptq"
    ):
        require_fitting(draft, "gptq", 8)
    require_fitting(WorkingDraft(small_model("llama"), small_tokenizer()), "gptq", 16, ("down_proj",))


def test_a_draft_whose_library_is_gone_says_so(build, monkeypatch):
    pytest.importorskip("torchao")
    built = build(quantize("int8_weight_only"))
    from transformers.quantizers import quantizer_torchao

    monkeypatch.setattr(quantizer_torchao, "is_torchao_available", lambda: False)
    with pytest.raises(IncompatibleDraftError, match="needs a library that is not installed"):
        load_model(built.folder, "fp32", "cpu")
