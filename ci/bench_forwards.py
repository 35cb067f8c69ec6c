"""The backends that run a target of torch on this CPU, side by side in one run (see docs/backends.md).

Each prompt is read, decoded plainly for some tokens, and some runs of k+1 tokens are verified behind it, by all backends back
to back, in an order that rotates. A ratio is tokens per second over transformers', with a 95 % interval by the
jackknife over prompts. `same_outputs` counts the prompts whose plain outputs equal transformers': roundings differ.

Prints one JSON line. Run nothing else meanwhile.
"""

from __future__ import annotations

import json
import sys
from time import perf_counter

from transformers.utils import logging as transformers_logging

from draftrank import Workspace
from draftrank.catalog.backend import Backend
from draftrank.engine.backends.choice import FASTEST_FIRST
from draftrank.engine.backends.registry import load_runtime, skeleton, why_not
from draftrank.engine.loop import Request, autoregressive
from draftrank.measure.machine.fingerprint import read_machine
from draftrank.models.loading import load_tokenizer
from draftrank.models.target_folder import ensure_target
from side_by_side import Decoded, arguments, blocks, compared, first_turns

VERIFICATIONS = 6


def main() -> int:
    """Runs the comparison and prints its JSON line."""
    parser = arguments(__doc__, k=4, tokens=24)
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="bf16")
    options = parser.parse_args()
    transformers_logging.set_verbosity_error()

    workspace = Workspace.open()
    declared = workspace.target(options.target)
    folder = ensure_target(declared, workspace.fetch_context())
    model = skeleton(folder.path, options.dtype)
    ways: list[Backend] = [
        way for way in reversed(FASTEST_FIRST) if why_not(way, model, options.dtype, "cpu") is None
    ]
    runtimes = {way: load_runtime(folder.path, options.dtype, "cpu", way) for way in ways}
    prompts = first_turns(workspace, declared, load_tokenizer(folder.path), options.tasks, options.prompts)
    parts = ("prompt", "token", "verification")
    found: dict[str, dict[Backend, Decoded]] = {part: {way: [] for way in ways} for part in parts}
    outputs: dict[Backend, list[tuple[int, ...]]] = {way: [] for way in ways}
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
        "over_transformers": {
            way: {part: compared(found[part][way], found[part][first], first) for part in parts}
            for way in ways[1:]
        },
        "same_outputs": {
            way: sum(one == other for one, other in zip(outputs[way], outputs[first], strict=True))
            for way in ways[1:]
        },
    }
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
