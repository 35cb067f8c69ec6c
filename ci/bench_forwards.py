"""The backends that run a target of torch on this CPU, side by side in one run (see docs/backends.md).

Each prompt is read, decoded plainly for some tokens, and some runs of k+1 tokens are verified behind it, by all backends back
to back, in an order that rotates. A ratio is tokens per second over the first backend's, which is transformers', with a
95 % interval by the jackknife over prompts. `same_outputs` counts the prompts whose plain outputs equal the first's:
roundings differ. `tokens_verified` says for each backend how many plain tokens a verification costs.

`--dtype file` compares what decodes the target's GGUF file: llama.cpp where it is installed, first, `cpp` with the file's own
blocks, and `cpp` in bf16.

Prints one JSON line. Run nothing else meanwhile.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING

from transformers.utils import logging as transformers_logging

from draftrank import Workspace
from draftrank.engine.backends.choice import FASTEST_FIRST
from draftrank.engine.backends.registry import (
    load_blocks_runtime,
    load_gguf_runtime,
    load_runtime,
    skeleton,
    why_not,
    why_not_here,
)
from draftrank.engine.loop import Request, autoregressive
from draftrank.measure.machine.fingerprint import read_machine
from draftrank.models.gguf_format import quantization_of
from draftrank.models.loading import load_tokenizer
from draftrank.models.target_folder import ensure_target, gguf_file
from side_by_side import Decoded, arguments, blocks, compared, first_turns

if TYPE_CHECKING:
    from pathlib import Path

    from draftrank.catalog.backend import Dtype
    from draftrank.engine.backends.base import Runtime

VERIFICATIONS = 6


def main() -> int:
    """Runs the comparison and prints its JSON line."""
    parser = arguments(__doc__, k=4, tokens=24)
    parser.add_argument("--dtype", choices=["fp32", "bf16", "file"], default="bf16")
    options = parser.parse_args()
    transformers_logging.set_verbosity_error()

    workspace = Workspace.open()
    declared = workspace.target(options.target)
    context = workspace.fetch_context()
    folder = ensure_target(declared, context)
    if options.dtype == "file":
        opened = of_file(folder.path, gguf_file(declared, context))
    else:
        opened = of_folder(folder.path, options.dtype)
    runtimes = {way: load() for way, load in opened.items()}
    ways = list(runtimes)
    prompts = first_turns(workspace, declared, load_tokenizer(folder.path), options.tasks, options.prompts)
    parts = ("prompt", "token", "verification")
    found: dict[str, dict[str, Decoded]] = {part: {way: [] for way in ways} for part in parts}
    outputs: dict[str, list[tuple[int, ...]]] = {way: [] for way in ways}
    for way in ways:  # the first forwards are slow
        autoregressive(runtimes[way], Request(prompts[0], 4))
    for prompt, order in blocks(prompts, ways):
        for way in order:
            runtime = runtimes[way]
            decoding = autoregressive(runtime, Request(prompt, options.tokens))
            outputs[way].append(decoding.token_ids)
            found["prompt"][way].append((len(prompt), decoding.prefill_s))
            found["token"][way].append((options.tokens - 1, decoding.decode_s))
            spent = 0.0
            for _ in range(VERIFICATIONS):
                started = perf_counter()
                runtime.forward(prompt[: options.k + 1])
                spent += perf_counter() - started
                runtime.rollback(min(options.k + 1, len(prompt)))
            found["verification"][way].append((VERIFICATIONS, spent))
    first = ways[0]
    result = {
        "target": options.target,
        "dtype": options.dtype,
        "k": options.k,
        "machine": read_machine("cpu").model_dump(mode="json"),
        "prompts": len(prompts),
        f"over_{first}": {
            way: {part: compared(found[part][way], found[part][first], first) for part in parts}
            for way in ways[1:]
        },
        "same_outputs": {
            way: sum(one == other for one, other in zip(outputs[way], outputs[first], strict=True))
            for way in ways[1:]
        },
        "tokens_verified": {
            way: round(seconds(found["verification"][way]) / seconds(found["token"][way]), 3) for way in ways
        },
    }
    print(json.dumps(result))
    return 0


def of_folder(folder: Path, dtype: Dtype) -> dict[str, Callable[[], Runtime]]:
    """The backends that run a folder in a dtype, the slowest first."""
    model = skeleton(folder, dtype)
    ways = [way for way in reversed(FASTEST_FIRST) if why_not(way, model, dtype, "cpu") is None]
    return {way: partial(load_runtime, folder, dtype, "cpu", way) for way in ways}


def of_file(folder: Path, file: Path) -> dict[str, Callable[[], Runtime]]:
    """The backends that run a GGUF file, and what was converted from it in bf16."""
    ways: dict[str, Callable[[], Runtime]] = {}
    if why_not_here("llama.cpp", "cpu") is None:
        ways["llama.cpp"] = partial(load_gguf_runtime, file)
    ways[f"cpp {quantization_of(file)}"] = partial(load_blocks_runtime, folder, file)
    ways["cpp bf16"] = partial(load_runtime, folder, "bf16", "cpu", "cpp")
    return ways


def seconds(decoded: Decoded) -> float:
    """Seconds of one of what was counted."""
    return sum(spent for _, spent in decoded) / sum(count for count, _ in decoded)


if __name__ == "__main__":
    sys.exit(main())
