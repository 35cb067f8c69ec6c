"""Compiles `decoder.cpp` for this machine, once, and calls it."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from draftrank.engine.backends.cpp.pages import Pages
from draftrank.engine.token_tree import MAX_TREE_TOKENS
from draftrank.errors import InvalidInputError
from draftrank.models.vocabulary import check_ids

SOURCE = Path(__file__).with_name("decoder.cpp")
FLAGS = ("-O3", "-march=native", "-ffp-contract=off", "-std=c++17", "-fopenmp", "-shared", "-fPIC")
COMPILERS = ("g++", "clang++")
KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}
"""Types of matrices, as the kernels number them."""
_UNKNOWN_TOKEN, _NO_ROOM, _BAD_PLACES = -1, -2, -3
"""Faults, as `decoder.cpp` numbers them."""
_ARCH_PRCTL, _ASK_FOR_STATE, _TILE_DATA = 158, 0x1023, 18
"""System call, its request ARCH_REQ_XCOMP_PERM and the state it names (Linux, Documentation/arch/x86/xstate.rst)."""
_FOLDER = "DRAFTRANK_KERNELS"
"""Environment variable that names another folder for what is compiled."""


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

    _fields_: ClassVar = [("stored", ctypes.c_void_p), ("scales", ctypes.c_void_p)]


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
        ("bf16", ctypes.c_int32),
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
        ("place", ctypes.c_int64),
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
    pointer, many = ctypes.c_void_p, ctypes.c_int64
    found.draftrank_forward.argtypes = [
        pointer, pointer, ctypes.c_int, pointer, ctypes.c_int, pointer, ctypes.c_int, many, pointer, ctypes.c_int, pointer,
        ctypes.c_int,
    ]  # fmt: skip
    found.draftrank_forward.restype = ctypes.c_int
    found.draftrank_read.argtypes = [
        pointer, pointer, ctypes.c_int, pointer, ctypes.c_int, pointer, pointer, ctypes.c_int, pointer, many, pointer,
        ctypes.c_int, ctypes.c_int, pointer, ctypes.c_int,
    ]  # fmt: skip
    found.draftrank_read.restype = ctypes.c_int
    found.draftrank_keep.argtypes = [pointer, pointer, ctypes.c_int, many, pointer, ctypes.c_int]
    found.draftrank_keep.restype = ctypes.c_int
    found.draftrank_chain.argtypes = [
        pointer, pointer, ctypes.c_int, pointer, ctypes.c_int, pointer, pointer, ctypes.c_int, pointer, many,
        ctypes.c_int, ctypes.c_float, pointer, ctypes.c_int,
    ]  # fmt: skip
    found.draftrank_chain.restype = ctypes.c_int
    found.draftrank_branch.argtypes = [
        pointer, pointer, ctypes.c_int, pointer, ctypes.c_int, pointer, pointer, ctypes.c_int, pointer, many,
        ctypes.c_int, ctypes.c_double, ctypes.c_double, ctypes.c_int, ctypes.c_int, pointer, pointer, ctypes.c_int,
    ]  # fmt: skip
    found.draftrank_branch.restype = ctypes.c_int
    found.draftrank_logits.argtypes = [pointer, pointer, pointer, ctypes.c_int, pointer, ctypes.c_int]
    found.draftrank_logits.restype = None
    found.draftrank_normed.argtypes = [pointer, pointer, many, ctypes.c_int, ctypes.c_float, pointer]
    found.draftrank_normed.restype = None
    found.draftrank_product.argtypes = [pointer, many, pointer, ctypes.c_int, pointer, ctypes.c_int]
    found.draftrank_product.restype = None
    found.draftrank_panel.argtypes = [ctypes.c_int, pointer, pointer]
    found.draftrank_panel.restype = None
    found.draftrank_pack.argtypes = [ctypes.c_int, pointer, many, many, pointer]
    found.draftrank_pack.restype = None
    return found


def checked(result: int, ids: Sequence[int] = (), rows: int = 0) -> int:
    """What a kernel gave, unless that is a fault.

    Args:
        result: what it gave.
        ids: token ids that it was given.
        rows: of the embedding.

    Raises:
        IndexError: the kernel was told of tokens, places or positions that are not there; it has read and written nothing
            beyond what is.
    """
    if result == _UNKNOWN_TOKEN:
        check_ids(ids, rows)
        raise IndexError(f"the head chose a token id outside the embedding's {rows} rows")
    if result == _NO_ROOM:
        raise IndexError("positions lie outside the cache or the table of rotations")
    if result == _BAD_PLACES:
        raise IndexError(f"places are out of order, or not 1 to {MAX_TREE_TOKENS}")
    return result


@cache
def panel(dtype: torch.dtype) -> tuple[int, int]:
    """Rows of a panel of this type, and how many of their inputs lie together in it; see `decoder.cpp`."""
    rows, step = ctypes.c_int(), ctypes.c_int()
    library().draftrank_panel(KINDS[dtype], ctypes.byref(rows), ctypes.byref(step))
    return rows.value, step.value


class Weights:
    """A matrix [outputs, inputs] as the kernels read it: a copy, packed in panels."""

    def __init__(self, matrix: Tensor, scales: Tensor | None = None, pages: Pages | None = None) -> None:
        """Packs it.

        Args:
            matrix: [outputs, inputs] in bf16, fp32 or int8, on the CPU.
            scales: fp32 [outputs]: what the rows of int8 matrices are multiplied with.
            pages: memory to pack it into; None: its own.
        """
        outputs, inputs = self._shape = tuple(matrix.shape)
        self._kind = KINDS[matrix.dtype]
        rows, step = panel(matrix.dtype)
        missing = -outputs % rows
        numbers = (outputs + missing) * (inputs + -inputs % step)
        self._stored = (pages or Pages(numbers * matrix.itemsize)).take(numbers, matrix.dtype)
        self._scales = None if scales is None else pad(scales.float(), (0, missing))
        read = matrix.detach().contiguous()
        library().draftrank_pack(self._kind, read.data_ptr(), outputs, inputs, self._stored.data_ptr())

    def matrix(self) -> Matrix:
        """Where it lies; valid as long as this object lives."""
        return Matrix(self._stored.data_ptr(), None if self._scales is None else self._scales.data_ptr())

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
    made_from = [SOURCE.read_bytes(), " ".join(flags).encode(), _run([chosen, "--version"]), _processor()]
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
