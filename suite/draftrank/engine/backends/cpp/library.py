"""Compiles `decoder.cpp` for this machine, once, and calls it."""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from draftrank.engine.token_tree import MAX_TREE_TOKENS
from draftrank.errors import InvalidInputError
from draftrank.models.gguf_format import inputs_of
from draftrank.models.vocabulary import check_ids

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType

SOURCE = Path(__file__).with_name("decoder.cpp")
INCLUDED = Path(__file__).with_name("gguf_blocks.h")
FLAGS = ("-O3", "-march=native", "-ffp-contract=off", "-std=c++17", "-fopenmp", "-shared", "-fPIC")
COMPILERS = ("g++", "clang++")
KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2, torch.uint8: 3}
"""Types of matrices, as the kernels number them; uint8: blocks of a GGUF file, whose types are `BLOCK_TYPES`."""
BLOCK_TYPES = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K")
"""Blocks that the kernels multiply by, as llama.cpp names them."""
_UNKNOWN_TOKEN, _NO_ROOM, _BAD_TREE = -1, -2, -3
"""Faults, as `decoder.cpp` numbers them."""
_ARCH_PRCTL, _ASK_FOR_STATE, _TILE_DATA = 158, 0x1023, 18
"""System call, its request ARCH_REQ_XCOMP_PERM and the state it names (Linux, Documentation/arch/x86/xstate.rst)."""
_FOLDER = "DRAFTRANK_KERNELS"
"""Environment variable that names another folder for what is compiled."""
_HUGE = 2 << 20
_LINE = 64
_MAX_ROWS = 64
"""Most rows of a panel."""
_AT_LEAST = 64 << 20
"""Bytes asked for at a time; what is never written takes no memory."""


class Shape(ctypes.Structure):
    """`Shape` of `decoder.cpp`."""

    _fields_: ClassVar = [
        *((name, ctypes.c_int32) for name in ("hidden", "query_heads", "kv_heads", "head_size", "rotary")),
        *((name, ctypes.c_int32) for name in ("feed_forward", "gelu", "weights")),
        ("epsilon", ctypes.c_float),
        ("input_scale", ctypes.c_float),
        *((name, ctypes.c_int32) for name in ("paired", "norm_before_residual")),
    ]


class Matrix(ctypes.Structure):
    """`Matrix` of `decoder.cpp`."""

    _fields_: ClassVar = [
        ("stored", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("type", ctypes.c_int32),
    ]


class Biased(ctypes.Structure):
    """`Linear` of `decoder.cpp`."""

    _fields_: ClassVar = [("matrix", Matrix), ("bias", ctypes.c_void_p)]


class Layer(ctypes.Structure):
    """`Layer` of `decoder.cpp`."""

    _fields_: ClassVar = [
        *((name, ctypes.c_void_p) for name in ("embedding_norm", "attention_norm")),
        *((name, Biased) for name in ("queries", "keys", "values", "attention_output")),
        *((name, ctypes.c_void_p) for name in ("query_norm", "key_norm", "attention_output_norm")),
        ("feed_forward_norm", ctypes.c_void_p),
        *((name, Biased) for name in ("gate", "up", "feed_forward_output")),
        ("feed_forward_output_norm", ctypes.c_void_p),
        ("joint_norms", ctypes.c_int32),
        *((name, ctypes.c_float) for name in ("scale", "score_cap", "residual_scale")),
        ("cached_keys", ctypes.c_void_p),
        ("cached_values", ctypes.c_void_p),
        ("capacity", ctypes.c_int64),
        ("kind", ctypes.c_int64),
        ("output", ctypes.c_void_p),
    ]


class Typed(ctypes.Structure):
    """`Typed` of `decoder.cpp`."""

    _fields_: ClassVar = [("matrix", Matrix), ("weights", ctypes.c_int32), ("outputs", ctypes.c_int64)]


class Positions(ctypes.Structure):
    """`Positions` of `decoder.cpp`."""

    _fields_: ClassVar = [
        *((name, ctypes.c_void_p) for name in ("cosine", "sine")),
        ("window", ctypes.c_int64),
        ("count", ctypes.c_int64),
    ]


class Ends(ctypes.Structure):
    """`Ends` of `decoder.cpp`."""

    _fields_: ClassVar = [
        ("embedding", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("embedded", ctypes.c_int32),
        ("block_type", ctypes.c_int32),
        ("scale", ctypes.c_float),
        ("norm", ctypes.c_void_p),
        ("thin", Typed),
        ("head", Typed),
        ("logit_divisor", ctypes.c_float),
        ("logit_cap", ctypes.c_float),
        ("token_ids", ctypes.c_void_p),
    ]


class Candidate(ctypes.Structure):
    """`Candidate` of `decoder.cpp`."""

    _fields_: ClassVar = [
        ("token", ctypes.c_int64),
        ("parent", ctypes.c_int64),
        ("path", ctypes.c_double),
        ("draft_index", ctypes.c_int64),
    ]


def compiler() -> str | None:
    """The C++ compiler of this machine; None without one."""
    return next((found for name in COMPILERS if (found := shutil.which(name))), None)


@cache
def library() -> ctypes.CDLL:
    """The kernels, compiled when they are first wanted by this user on this machine.

    Raises:
        InvalidInputError: there is no compiler, or it fails.
    """
    chosen = compiler()
    if chosen is None:
        raise InvalidInputError.single(
            f"the kernels are compiled for each machine, and no C++ compiler is here ({', '.join(COMPILERS)})",
            field="--backend",
            fix="install one (Debian: `apt install g++`), or use --backend transformers",
        )
    # OpenMP must be torch's own, loaded already: two pools of threads would wait for each other's processors.
    found = ctypes.CDLL(str(_compiled(chosen)))
    pointer, whole, many, real = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_float
    layers = (pointer, pointer, whole, pointer, whole)
    tokens = (*layers, pointer, pointer, whole, pointer, many)
    signatures = {  # what they give, then what they take
        "forward": (whole, *layers, pointer, whole, many, pointer, whole, pointer, whole),
        "read": (whole, *tokens, pointer, whole, whole, pointer, whole),
        "keep": (whole, pointer, pointer, whole, many, pointer, whole),
        "chain": (whole, *tokens, whole, real, pointer, whole),
        "branch": (whole, *tokens, whole, *[ctypes.c_double] * 2, whole, whole, pointer, pointer, whole),
        "logits": (None, pointer, pointer, pointer, whole, pointer, whole),
        "normed": (None, pointer, pointer, many, whole, real, pointer),
        "product": (None, pointer, many, pointer, whole, pointer, whole),
        "packed_bytes": (many, whole, whole, many, many),
        "pack": (None, whole, whole, pointer, many, many, pointer),
    }
    for name, (gives, *takes) in signatures.items():
        function = getattr(found, f"draftrank_{name}")
        function.restype, function.argtypes = gives, takes
    return found


def checked(result: int, ids: Sequence[int] = (), rows: int = 0) -> int:
    """What a kernel gave, unless that is a fault; it was given token ids of an embedding of so many rows.

    Raises:
        IndexError: the kernel was told of tokens, nodes of a tree or positions that are not there; it has read and written nothing
            beyond what is.
    """
    if result == _UNKNOWN_TOKEN:
        check_ids(ids, rows)
        raise IndexError(f"the head chose a token id outside the embedding's {rows} rows")
    if result == _NO_ROOM:
        raise IndexError("positions lie outside the cache or the table of rotations")
    if result == _BAD_TREE:
        raise IndexError(f"a tree's nodes are out of order, or not 1 to {MAX_TREE_TOKENS}")
    return result


class Pages:
    """Gives out memory, in huge pages where the system has them, that is freed with the last tensor in it.

    Read from pages of 4 KiB, weights come at about half the speed that memory has: the processor fetches ahead within a
    page only, and looks up where each lies. Keys and values, which are fewer, gain a few hundredths of a forward.
    """

    def __init__(self, size: int = _AT_LEAST) -> None:
        """Asks for `size` bytes at a time, or more where one tensor needs more."""
        self._size = size
        self._left = torch.empty(0, dtype=torch.uint8)

    def take(self, count: int, dtype: torch.dtype) -> Tensor:
        """A tensor [count] of zeros, on a boundary of cache lines."""
        needed = count * dtype.itemsize
        if len(self._left) < needed:
            self._left = _mapped(max(needed, self._size))
        taken, self._left = self._left[:needed], self._left[needed + -needed % _LINE :]
        return taken.view(dtype)


def _mapped(size: int) -> Tensor:
    # Not shared, as mmap's default is: the system gives shared memory small pages.
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    pages = mmap.mmap(-1, size + _HUGE, **private)
    with suppress(AttributeError, OSError):  # another system, or one without huge pages
        pages.madvise(mmap.MADV_HUGEPAGE)
    found = torch.frombuffer(pages, dtype=torch.uint8)
    begin = -found.data_ptr() % _HUGE
    return found[begin : begin + size]


class Weights:
    """A matrix [outputs, inputs] as the kernels read it: a copy, packed in panels."""

    def __init__(
        self,
        matrix: Tensor,
        scales: Tensor | None = None,
        pages: Pages | None = None,
        blocks: GGMLQuantizationType | None = None,
    ) -> None:
        """Packs it.

        Args:
            matrix: [outputs, inputs] in bf16, fp32 or int8, on the CPU; or blocks of a GGUF file, uint8 [outputs, bytes].
            scales: fp32 [outputs]: what the rows of int8 matrices are multiplied with.
            pages: memory to pack it into; None: its own.
            blocks: type of the blocks, one of `BLOCK_TYPES`.
        """
        outputs, inputs = matrix.shape
        if blocks is not None:
            assert blocks.name in BLOCK_TYPES
            inputs = inputs_of(blocks, inputs)
        self._shape, self._kind, self._type = (outputs, inputs), KINDS[matrix.dtype], int(blocks or 0)
        how = (self._kind, self._type)
        size = library().draftrank_packed_bytes(*how, outputs, inputs)
        self._stored = (pages or Pages(size)).take(size, torch.uint8)
        self._scales = None if scales is None else pad(scales.float(), (0, -outputs % _MAX_ROWS))
        read = matrix.detach().contiguous()
        library().draftrank_pack(*how, read.data_ptr(), outputs, inputs, self._stored.data_ptr())

    def matrix(self) -> Matrix:
        """Where it lies; valid as long as this object lives."""
        scales = None if self._scales is None else self._scales.data_ptr()
        return Matrix(self._stored.data_ptr(), scales, self._type)

    def typed(self) -> Typed:
        """The same with its type."""
        return Typed(self.matrix(), self._kind, self._shape[0])

    def times(self, vectors: Tensor) -> Tensor:
        """Products with vectors [count, inputs] of any float type; fp32 [count, outputs]."""
        outputs, inputs = self._shape
        read = vectors.float().contiguous()
        if read.shape != (len(read), inputs):
            raise ValueError(f"a matrix of {inputs} inputs cannot multiply vectors {tuple(read.shape)}")
        made = torch.empty(len(read), outputs)
        library().draftrank_product(
            ctypes.byref(self.typed()),
            inputs,
            read.data_ptr(),
            len(read),
            made.data_ptr(),
            torch.get_num_threads(),
        )
        return made


def normed(vectors: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Vectors [count, size] by their root mean square, times a weight [size]; fp32, as both must be.

    Source: RMSNorm (Zhang and Sennrich 2019, arXiv:1910.07467).
    """
    made = torch.empty_like(vectors)
    library().draftrank_normed(
        vectors.data_ptr(), weight.data_ptr(), *vectors.shape, epsilon, made.data_ptr()
    )
    return made


def _compiled(chosen: str) -> Path:
    flags = (*FLAGS, "-DMAY_TILE") if _may_tile() else FLAGS
    sources = (SOURCE.read_bytes(), INCLUDED.read_bytes())
    made_from = [*sources, " ".join(flags).encode(), _run([chosen, "--version"]), _processor()]
    folder = _folder()
    file = folder / f"decoder-{sha256(b'|'.join(made_from)).hexdigest()[:16]}.so"
    if file.exists():
        return file
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            made = Path(scratch) / file.name
            _run([chosen, *flags, str(SOURCE), "-o", str(made)])
            made.replace(file)  # another process may have been as fast; the two are alike
    except OSError as error:
        raise InvalidInputError.single(
            f"the compiled kernels cannot be written to {folder}: {error.strerror}",
            field="--backend",
            fix=f"name a folder in the environment variable {_FOLDER}, or use --backend transformers",
        ) from error
    return file


def _may_tile() -> bool:
    """Asks Linux to let this process use the processor's tile registers (AMX): whoever does not ask may not."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return False
    return bool(ctypes.CDLL(None).syscall(_ARCH_PRCTL, _ASK_FOR_STATE, _TILE_DATA) == 0)


def _folder() -> Path:
    named = os.environ.get(_FOLDER)
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "draftrank"


def _processor() -> bytes:
    """What `-march=native` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor().encode()
    wanted = ("vendor_id", "cpu family", "model\t", "flags", "Features", "CPU part")
    return "\n".join(dict.fromkeys(line for line in lines if line.startswith(wanted))).encode()


def _run(words: Sequence[str]) -> bytes:
    try:
        return subprocess.run(words, capture_output=True, check=True).stdout
    except subprocess.CalledProcessError as error:
        raise InvalidInputError.single(
            f"`{' '.join(words)}` failed: {error.stderr.decode(errors='replace').strip()[-500:]}",
            field="--backend",
            fix="use another compiler, or --backend transformers",
        ) from error
