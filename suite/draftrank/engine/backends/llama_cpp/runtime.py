"""GGUF models run by llama.cpp on CPU, through the low-level functions of llama-cpp-python.

Its own decoding loops are not used: the engine reads tokens, takes logits and rolls back, as from any
other runtime, so that every law and every measure is the same.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from torch.nn.functional import pad

from draftrank.engine.backends.base import Capabilities, Runtime
from draftrank.errors import DraftrankError, IncompatibleDraftError, MissingDataError
from draftrank.models.vocabulary import check_ids
from draftrank.models.vocabulary_rows import STAND_IN

if TYPE_CHECKING:
    from torch import Tensor

    from draftrank.engine.token_tree import TokenTree

BATCH = 512
"""Most tokens of one call; a longer forward takes several."""
_SMALLEST_ROOM = 1024
"""Positions that a cache has room for at least."""
_ERROR = 4
"""llama.cpp's level of messages that tell of errors."""


class LlamaCppError(DraftrankError):
    """llama.cpp refused a forward."""


class LlamaCppRuntime(Runtime):
    """A GGUF model with a cache of its own; see `engine.backends.base.Runtime`.

    Weights stay as the file has them. Keys and values are float16 and attention is fused, as in llama.cpp's own
    programs.
    """

    name: ClassVar[str] = "llama.cpp"

    def __init__(
        self,
        file: Path,
        *,
        threads: int | None = None,
        attention: Literal["fp16", "fp32"] = "fp16",
        vocabulary: int | None = None,
    ) -> None:
        """Opens a file.

        Args:
            file: the GGUF file.
            threads: how many compute; None: as many as torch would use.
            attention: precision of keys and values; in fp32 their products are not fused either.
            vocabulary: how many rows the target's vocabulary has, for a draft beside it (`vocabulary_rows`); None: as
                many as the file's.

        Raises:
            IncompatibleDraftError: llama-cpp-python is not installed.
            MissingDataError: llama.cpp cannot open the file.
        """
        self.capabilities = Capabilities()
        self._library = library = load_library()
        self._threads = threads or torch.get_num_threads()
        self._attention = attention
        options = library.llama_model_default_params()
        options.n_gpu_layers = 0
        # Its AMX buffers crashed at the first forward on some machines; without them weights are repacked all the same.
        options.use_extra_bufts = not _has_amx()
        self._model = library.llama_model_load_from_file(str(file).encode(), options)
        if not self._model:
            raise MissingDataError(
                f"llama.cpp cannot open {file}: {_last_message() or 'it does not say why'}"
            )
        self._free_model = weakref.finalize(self, library.llama_model_free, self._model)
        tokens = library.llama_model_get_vocab(self._model)
        self._known = int(library.llama_vocab_n_tokens(tokens))
        self.vocabulary_size = self._known if vocabulary is None else vocabulary
        self.context_window = int(library.llama_model_n_ctx_train(self._model))
        self._batch = library.llama_batch_init(BATCH, 0, 1)
        weakref.finalize(self, library.llama_batch_free, self._batch)
        for index in range(BATCH):
            self._batch.n_seq_id[index] = 1
            self._batch.seq_id[index][0] = 0
        self._cached: list[int] = []
        self._room = 0
        self._context: Any = None
        self._free_context: Callable[[], object] | None = None

    @property
    def length(self) -> int:
        return len(self._cached)

    def reserve(self, tokens: int) -> None:
        if tokens <= self._room:
            return
        cached, self._cached = self._cached, []
        self._open_context(max(tokens, 2 * self._room, min(_SMALLEST_ROOM, self.context_window)))
        for start in range(0, len(cached), BATCH):
            self._decode(cached[start : start + BATCH], outputs_from=BATCH)

    def forward(
        self, tokens: Sequence[int], keep: int | None = None, tree: TokenTree | None = None
    ) -> Tensor:
        """See `Runtime.forward`; float32 on CPU."""
        assert tree is None
        self.reserve(len(self._cached) + len(tokens))
        first_kept = len(tokens) - (keep or len(tokens))
        rows: list[Tensor] = []
        several = len(tokens) > BATCH
        for start in range(0, len(tokens), BATCH):
            part = tokens[start : start + BATCH]
            first = max(0, first_kept - start)
            self._decode(part, outputs_from=first)
            if first < len(part):
                logits = self._logits(len(part) - first)
                if self._known != self.vocabulary_size:  # a negative width cuts
                    logits = pad(logits, (0, self.vocabulary_size - self._known), value=float("-inf"))
                rows.append(logits.clone() if several else logits)
        return rows[0] if len(rows) == 1 else torch.cat(rows)

    def rollback(self, count: int) -> None:
        if count:
            del self._cached[len(self._cached) - count :]
            self._drop_from(len(self._cached))

    def reset(self) -> None:
        self._cached.clear()
        self._drop_from(0)

    def synchronize(self) -> None:
        if self._context is not None:
            self._library.llama_synchronize(self._context)

    def _open_context(self, room: int) -> None:
        library = self._library
        options = library.llama_context_default_params()
        options.n_ctx = room
        options.n_batch = options.n_ubatch = BATCH
        options.n_threads = options.n_threads_batch = self._threads
        if self._attention == "fp32":
            options.type_k = options.type_v = library.GGML_TYPE_F32
            options.flash_attn_type = library.LLAMA_FLASH_ATTN_TYPE_DISABLED
        options.swa_full = True  # a sliding window keeps all positions, or none could be taken back
        options.no_perf = True
        if self._free_context is not None:
            self._free_context()
        self._context = library.llama_init_from_model(self._model, options)
        if not self._context:
            raise LlamaCppError(
                f"no room for {room} tokens: {_last_message() or 'llama.cpp does not say why'}"
            )
        self._free_context = weakref.finalize(self, library.llama_free, self._context)
        self._memory = library.llama_get_memory(self._context)
        self._room = int(library.llama_n_ctx(self._context))

    def _decode(self, tokens: Sequence[int], outputs_from: int) -> None:
        """One forward; logits are kept of the tokens from that index on."""
        check_ids(tokens, self.vocabulary_size)
        batch, cached = self._batch, len(self._cached)
        batch.n_tokens = len(tokens)
        for index, token in enumerate(tokens):
            batch.token[index] = token if token < self._known else STAND_IN
            batch.pos[index] = cached + index
            batch.logits[index] = index >= outputs_from
        code = self._library.llama_decode(self._context, batch)
        if code != 0:
            raise LlamaCppError(
                f"a forward of {len(tokens)} tokens failed with code {code}: "
                f"{_last_message() or 'llama.cpp does not say why'}"
            )
        self._cached += tokens

    def _logits(self, count: int) -> Tensor:
        """Those of the last forward, [count, known tokens]; their memory is llama.cpp's."""
        found = self._library.llama_get_logits(self._context)
        return torch.from_numpy(np.ctypeslib.as_array(found, shape=(count, self._known)))

    def _drop_from(self, position: int) -> None:
        if self._context is not None and not self._library.llama_memory_seq_rm(self._memory, 0, position, -1):
            raise LlamaCppError("this model cannot take tokens back, which verification needs")


@cache
def load_library() -> Any:
    """llama.cpp's functions, ready to be called.

    Raises:
        IncompatibleDraftError: llama-cpp-python is not installed.
    """
    try:
        import llama_cpp
    except (ImportError, OSError, RuntimeError) as error:  # the last two: its library does not load here
        raise IncompatibleDraftError(
            f"GGUF models need llama-cpp-python, which cannot be imported ({error}): "
            "pip install 'draftrank[llama-cpp]', which compiles it for this machine"
        ) from error
    listener = llama_cpp.llama_log_callback(_listen)
    llama_cpp.llama_log_set(listener, ctypes.c_void_p())
    _listeners.append(listener)
    llama_cpp.llama_backend_init()
    return llama_cpp


_messages: list[str] = []
_listeners: list[Any] = []
"""What C code calls must not be collected."""


def _listen(level: int, text: bytes, _: object) -> None:
    """Keeps the last error, which llama.cpp writes down and does not return."""
    if level == _ERROR:
        _messages[:] = [text.decode("utf-8", "replace").strip()]


def _last_message() -> str:
    return _messages[-1] if _messages else ""


def _has_amx() -> bool:
    check = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(check and check())
