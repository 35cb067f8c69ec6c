"""Keeps transformers' own progress bars and warnings off the screen while we load and save."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import cache
from typing import Any


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Within it only errors are shown; afterwards the former settings hold again."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """As `quiet_transformers`, for quantization libraries, which write banners, bars and logs as they like.

    What they print is thrown away: a command's standard output belongs to its results.
    """
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with quiet_transformers(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(disabled)


@contextmanager
def quiet_gguf() -> Iterator[None]:
    """As `quiet_transformers`, and without the bar of the GGUF reader, which knows no setting. Within it `gguf` reads a file
    once, and maps its names once: transformers reads it for the configuration, the weights and the tokenizer, seconds each."""
    import gguf
    from transformers import modeling_gguf_pytorch_utils as reader

    def plain(items: Iterable[Any], **_: Any) -> Iterable[Any]:
        return items

    bar, read, names = reader.tqdm, gguf.GGUFReader, gguf.get_tensor_name_map
    reader.tqdm = plain
    gguf.GGUFReader, gguf.get_tensor_name_map = cache(read), cache(names)
    try:
        with quiet_transformers():
            yield
    finally:
        reader.tqdm, gguf.GGUFReader, gguf.get_tensor_name_map = bar, read, names
