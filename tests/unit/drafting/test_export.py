"""What leaves the cache is what was built, and says where it cannot be opened."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from draftrank.drafting.export import abilities, copy_folder
from draftrank.drafting.gguf_export import write_gguf
from draftrank.drafting.pipeline import build_draft
from draftrank.drafting.quiet import quiet_gguf, quiet_transformers
from draftrank.errors import BuildError, InvalidInputError
from gguf_files import small_gguf_model, write_target_file

IDS = torch.arange(3, 43).reshape(2, 20)
DROP = {"kind": "drop_layers", "keep": 2, "select": "ends"}


@pytest.mark.parametrize(
    ("steps", "opens", "vllm", "gguf"),
    [
        ([DROP], True, True, True),
        ([{"kind": "tie_layers", "blocks": 2}], True, False, True),
        ([DROP, {"kind": "quantize", "scheme": "dynamic_int8"}], False, False, True),
        ([{"kind": "trim_vocabulary", "keep_tokens": 40}], False, False, False),
        ([{"kind": "factorize_head", "rank": 8}], False, False, False),
    ],
)
def test_what_a_form_can_do_is_said(make_target, make_recipe, tmp_path, steps, opens, vllm, gguf):
    target, folder = make_target()
    built = build_draft(make_recipe(*steps), target, folder, cache=tmp_path)
    can = abilities(built.folder)
    assert (can.transformers is None, can.vllm is None, can.gguf is None) == (opens, vllm, gguf)


def test_a_copy_goes_into_an_empty_folder_only(make_target, make_recipe, tmp_path):
    target, folder = make_target()
    built = build_draft(make_recipe(DROP), target, folder, cache=tmp_path)
    files = copy_folder(built.folder, tmp_path / "out")
    assert {path.name for path in files} >= {"model.safetensors", "config.json", "tokenizer.json"}
    with torch.inference_mode():
        first, second = (
            AutoModelForCausalLM.from_pretrained(place) for place in (built.folder, tmp_path / "out")
        )
        assert torch.equal(first(IDS).logits, second(IDS).logits)
    with pytest.raises(InvalidInputError, match="is not empty"):
        copy_folder(built.folder, tmp_path / "out")


@pytest.mark.parametrize(("architecture", "layers"), [("llama", 2), ("gemma3", 6)])
def test_the_gguf_file_holds_the_same_model(tmp_path, architecture, layers):
    """Read back by transformers' own reader, which knows nothing of the writer."""
    # the reader takes Gemma's heads to have the size of the published models'
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
