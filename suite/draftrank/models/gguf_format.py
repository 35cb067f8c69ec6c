"""What GGUF files are made of: the types of their weights, and where in a file each tensor lies.

The layout is that of llama.cpp's `docs/gguf.md`. Only the few statements that are asked for are kept: the package `gguf`
takes seconds to read the tokens, which nobody needs who wants the weights.
"""

from __future__ import annotations

import mmap
import struct
from collections import Counter
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from draftrank.errors import InvalidInputError

if TYPE_CHECKING:
    import numpy as np
    from gguf import GGMLQuantizationType

GGUF_FILE = "draft.gguf"
"""The file of weights in the folder of a draft that llama.cpp runs."""
GgufWeights = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]
"""Types of matrices that are written, as llama.cpp names them."""
_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_ARCHITECTURE, _FILE_TYPE, _ALIGNMENT = "general.architecture", "general.file_type", "general.alignment"
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""The types of statements by their numbers, as `struct` calls them."""
_STRING, _ARRAY = 8, 9
_MAX_DIMENSIONS = 4


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor of a file."""

    name: str
    kind: GGMLQuantizationType
    """Type of its blocks."""
    shape: tuple[int, ...]
    """The last dimension lies together."""
    begin: int
    """First byte in the file."""
    size: int
    """Bytes."""


@dataclass(frozen=True, slots=True)
class GgufFile:
    """The tensors of a file, without their contents."""

    path: Path
    architecture: str
    """As llama.cpp names it."""
    quantization: str
    """As llama.cpp names it, e.g. `q4_k_m`: what the file states, else the type of most of its bytes."""
    tensors: dict[str, GgufTensor]

    def rows(self, name: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """A matrix as it lies in the file, [rows, bytes of a row]; mapped into memory, not read."""
        import numpy as np

        tensor = self.tensors[name]
        stored = np.memmap(self.path, np.uint8, "c", tensor.begin, (tensor.size,))  # torch wants it writable
        return stored.reshape(prod(tensor.shape[:-1]), -1)


def read_gguf(file: Path) -> GgufFile:
    """Reads what a file says of its tensors.

    Raises:
        InvalidInputError: it is no GGUF file, or a tensor is of an unknown type or ends behind the file.
    """
    from gguf import LlamaFileType

    if file.stat().st_size == 0:
        _refuse(file, "is empty")
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        reader = _Reader(file, content)
        version, tensors, statements = reader.start()
        if version not in _VERSIONS:
            _refuse(
                file, f"is of version {version} of GGUF, and {' and '.join(map(str, _VERSIONS))} are known"
            )
        stated = dict(reader.statement() for _ in range(statements))
        described = [reader.tensor() for _ in range(tensors)]
        alignment = int(stated.get(_ALIGNMENT, 32))
        begin = reader.at + -reader.at % alignment
        found = {
            name: _tensor(file, name, kind, shape, begin + offset, len(content))
            for name, shape, kind, offset in described
        }
    quantization = stated.get(_FILE_TYPE)
    if quantization in set(LlamaFileType):
        named = LlamaFileType(quantization).name.removeprefix("MOSTLY_").removeprefix("ALL_").lower()
    else:
        sizes: Counter[str] = Counter()
        for tensor in found.values():
            sizes[tensor.kind.name.lower()] += tensor.size
        named = max(sizes, key=lambda name: sizes[name], default="f32")
    return GgufFile(file, str(stated.get(_ARCHITECTURE)), named, found)


def quantization_of(file: Path) -> str:
    """The quantization of a file, e.g. `q4_1`; see `GgufFile`. Raises as `read_gguf`."""
    return read_gguf(file).quantization


def inputs_of(kind: GGMLQuantizationType, row_bytes: int) -> int:
    """How many numbers a row of blocks has."""
    from gguf import GGML_QUANT_SIZES

    numbers, size = GGML_QUANT_SIZES[kind]
    return int(row_bytes // size * numbers)


class _Reader:
    """Reads the description at the beginning of a file."""

    def __init__(self, file: Path, content: mmap.mmap) -> None:
        self._file, self._content = file, content
        self.at = 0
        """The next byte."""

    def start(self) -> tuple[int, int, int]:
        """The version, and how many tensors and statements there are."""
        if self._content[: len(_MAGIC)] != _MAGIC:
            _refuse(self._file, "is not a GGUF file")
        self.at = len(_MAGIC)
        version, tensors, statements = self._take("IQQ")
        return version, tensors, statements

    def statement(self) -> tuple[str, Any]:
        """A key and its value; None where that is an array."""
        key = self._text()
        (kind,) = self._take("I")
        return key, self._value(kind)

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        """A tensor's name, shape, type by its number, and first byte behind the description."""
        name = self._text()
        (count,) = self._take("I")
        dimensions = self._take("Q" * min(count, _MAX_DIMENSIONS))
        kind, offset = self._take("IQ")
        return name, dimensions[::-1], kind, offset

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._text()
        if kind != _ARRAY:
            return self._take(self._scalar(kind))[0]
        of, count = self._take("IQ")
        if of in (_STRING, _ARRAY):
            for _ in range(count):
                self._value(of)
        else:
            self._skip(count * struct.calcsize(self._scalar(of)))
        return None

    def _scalar(self, kind: int) -> str:
        if kind not in _SCALARS:
            _refuse(self._file, f"states something of the unknown type {kind} at byte {self.at:,}")
        return _SCALARS[kind]

    def _text(self) -> str:
        (count,) = self._take("Q")
        begin = self.at
        self._skip(count)
        return self._content[begin : self.at].decode(errors="replace")

    def _take(self, kinds: str) -> tuple[Any, ...]:
        begin = self.at
        self._skip(struct.calcsize(f"<{kinds}"))
        return struct.unpack_from(f"<{kinds}", self._content, begin)

    def _skip(self, count: int) -> None:
        self.at += count
        if self.at > len(self._content):
            _refuse(self._file, "ends within the description of its contents: it is truncated")


def _tensor(file: Path, name: str, number: int, shape: tuple[int, ...], begin: int, end: int) -> GgufTensor:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    if number not in set(GGMLQuantizationType):
        _refuse(file, f"the tensor {name} is of the unknown type {number}")
    kind = GGMLQuantizationType(number)
    inputs, bytes_of_block = GGML_QUANT_SIZES[kind]
    if not shape or shape[-1] % inputs:
        row = shape[-1] if shape else 0
        _refuse(file, f"the tensor {name} has rows of {row} numbers, and blocks of {kind.name} have {inputs}")
    size = prod(shape) // inputs * bytes_of_block
    if begin + size > end:
        _refuse(
            file,
            f"the tensor {name} ({kind.name}) ends at byte {begin + size:,}, and the file at {end:,}: it is truncated",
        )
    return GgufTensor(name, kind, shape, begin, size)


def _refuse(file: Path, reason: str) -> NoReturn:
    raise InvalidInputError.single(
        reason,
        file=file.name,
        field="source",
        fix="fetch the file again, or name another GGUF file or a model folder",
    )
