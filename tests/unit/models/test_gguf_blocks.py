"""A target in its file's own blocks is the model that was converted from the file."""

from __future__ import annotations

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file

from draftrank.catalog.sources.base import FetchContext
from draftrank.catalog.sources.local import LocalSource
from draftrank.errors import InvalidInputError
from draftrank.models.gguf_blocks import BlockEmbedding, BlockLinear, load_blocks, quantization_in
from draftrank.models.loading import load_model
from draftrank.models.target_folder import ensure_model
from gguf_files import write_llama_file
from models import own_logits, small_model

KINDS = tuple(
    gguf.GGMLQuantizationType[name] for name in ("Q4_1", "Q8_0", "Q5_0", "F16", "BF16", "Q4_0", "Q5_1")
)
TEXT = list(range(3, 33))


@pytest.fixture
def converted(tmp_path, make_tokenizer):
    """A GGUF file with matrices of many types, and the folder that it is converted to."""
    tokenizer = make_tokenizer()
    model = small_model("llama", vocabulary=len(tokenizer))
    file = tmp_path / "tiny.gguf"
    write_llama_file(file, model, tokenizer, kinds=KINDS)
    context = FetchContext(tmp_path / "cache", (tmp_path,))
    return ensure_model(LocalSource(kind="local", path="tiny.gguf"), context), file


def test_it_computes_what_the_converted_folder_does(converted):
    """Queries and keys too, whose rows lie in another order in the file."""
    folder, file = converted
    found, expected = load_blocks(folder, file), load_model(folder, "fp32", "cpu")
    torch.testing.assert_close(own_logits(found, TEXT), own_logits(expected, TEXT), rtol=0, atol=0)
    kinds = {module.kind.name for module in found.modules() if isinstance(module, BlockLinear)}
    assert {"Q4_1", "Q8_0", "Q5_0", "F32"} <= kinds
    assert isinstance(found.get_input_embeddings(), BlockEmbedding)
    assert quantization_in(found) == "f32"
    assert quantization_in(expected) is None


def test_no_matrix_is_unpacked(converted):
    found = load_blocks(*converted)
    assert {name for name, _ in found.named_parameters() if "norm" not in name} == set()


def test_another_file_is_noticed(converted):
    folder, file = converted
    path = folder / "model.safetensors"
    weights = load_file(path)
    weights["model.layers.1.mlp.up_proj.weight"][5, 7] += 0.25
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(
        InvalidInputError, match=r"tiny\.gguf.*the tensor blk\.1\.ffn_up\.weight \(\w+\) is not the matrix"
    ):
        load_blocks(folder, file)
