"""What a GGUF file says of its tensors, as the package `gguf` reads it; what is broken is said with file, tensor and type."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

from block_models import KINDS, fitting, random_blocks
from draftrank.errors import InvalidInputError
from draftrank.models.gguf_format import quantization_of, read_gguf

KINDS_OF_256 = fitting(KINDS, 256)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """One of a tensor of every type, and of statements of all kinds."""
    path = tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("llama.block_count", 3)
    writer.add_float64("llama.far", 0.25)
    writer.add_bool("llama.so", True)
    writer.add_array("llama.numbers", [1, 2, 3])
    writer.add_token_list(["a", "naïve", ""])
    for number, kind in enumerate(KINDS_OF_256):
        blocks = random_blocks(kind, 3 + number, 256)
        if kind.name in ("F16", "F32"):
            writer.add_tensor(
                kind.name, blocks.numpy().view(np.float16 if kind.name == "F16" else np.float32)
            )
        else:
            writer.add_tensor(kind.name, blocks.numpy(), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_tensors_are_those_that_the_package_reads(file):
    found, expected = read_gguf(file), gguf.GGUFReader(file)
    assert found.architecture == "llama"
    assert list(found.tensors) == [tensor.name for tensor in expected.tensors]
    for tensor in expected.tensors:
        mine = found.tensors[tensor.name]
        assert (mine.kind, mine.shape) == (tensor.tensor_type, tuple(reversed(tensor.shape.tolist())))
        assert np.array_equal(found.rows(tensor.name), tensor.data.view(np.uint8).reshape(mine.shape[0], -1))


def test_the_quantization_is_what_the_file_states_or_the_type_of_most_bytes(file, tmp_path):
    assert quantization_of(file) == "f32"
    writer = gguf.GGUFWriter(tmp_path / "stated.gguf", "llama")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_K_M)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert quantization_of(tmp_path / "stated.gguf") == "q4_k_m"


def broken(file, content):
    made = file.with_name("broken.gguf")
    made.write_bytes(content)
    return made


def test_a_file_cut_short_names_the_tensor_and_its_type(file):
    content, last = file.read_bytes(), KINDS_OF_256[-1].name
    with pytest.raises(
        InvalidInputError, match=rf"broken.gguf.*the tensor {last} \({last}\) ends at byte .* truncated"
    ):
        read_gguf(broken(file, content[:-700]))
    for length in (5, 30, 90, 200):
        with pytest.raises(InvalidInputError, match=r"broken\.gguf.*ends within the description"):
            read_gguf(broken(file, content[:length]))


def test_an_unknown_type_names_the_tensor(file):
    content = file.read_bytes()
    described = (
        struct.pack("<Q", 4)
        + b"Q6_K"
        + struct.pack("<IQQI", 2, 256, 3 + KINDS_OF_256.index(gguf.GGMLQuantizationType.Q6_K), 14)
    )
    assert content.count(described) == 1
    other = content.replace(described, described[:-4] + struct.pack("<I", 99))
    with pytest.raises(InvalidInputError, match=r"broken\.gguf.*the tensor Q6_K is of the unknown type 99"):
        read_gguf(broken(file, other))


def test_rows_that_are_no_whole_blocks_are_refused(file):
    content = file.read_bytes()
    named = struct.pack("<Q", 4) + b"Q4_K" + struct.pack("<I", 2)
    assert content.count(named + struct.pack("<Q", 256)) == 1
    other = content.replace(named + struct.pack("<Q", 256), named + struct.pack("<Q", 200))
    with pytest.raises(
        InvalidInputError, match="the tensor Q4_K has rows of 200 numbers, and blocks of Q4_K have 256"
    ):
        read_gguf(broken(file, other))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"PK\x03\x04" + bytes(60), "is not a GGUF file"),
        (b"GGUF" + bytes(60), "version 0 of GGUF"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<I", 77), "unknown type 77"),
    ],
)
def test_other_files_are_refused_by_name(file, content, reason):
    with pytest.raises(InvalidInputError, match=rf"broken\.gguf.*{reason}"):
        read_gguf(broken(file, content))
