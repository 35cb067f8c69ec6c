"""The engine on llama.cpp against llama.cpp's own server: same GGUF files, prompts, k and threads, in one run.

Two pairs: plain decoding, and a draft model. The server is that of `xllamacpp` (`pip install xllamacpp`), a ready build
with llama.cpp's own draft-model speculation; this engine's library is compiled for the machine. Every prompt is decoded
by all four arms back to back, in an order that rotates. Seconds are those of decoding, from the first token to the last,
for the server by its own clock. A ratio is our tokens per second over the server's, with a 95 % interval by the jackknife
over prompts.

The two are builds of different versions, so their roundings differ and so may outputs; how many are equal is counted.

Prints one JSON line. Run nothing else meanwhile.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from draftrank import Workspace
from draftrank.engine.backends.llama_cpp.runtime import LlamaCppRuntime
from draftrank.engine.loop import Request, autoregressive, speculative
from draftrank.engine.proposers.draft_model import ModelProposer
from draftrank.jobs.session import build
from draftrank.measure.machine.fingerprint import read_machine
from draftrank.models.gguf_format import GGUF_FILE
from draftrank.models.loading import load_tokenizer
from draftrank.models.target_folder import ensure_target, gguf_file
from side_by_side import Decoded, arguments, blocks, compared, first_turns

Arm = Callable[[tuple[int, ...]], tuple[tuple[int, ...], float]]
"""From a prompt to the tokens after it and the seconds from the first to the last."""


def server(target: Path, draft: Path | None, k: int, threads: int) -> Any:
    """llama.cpp's server in this process, deciding as this engine does: greedily, with k drafted tokens a step."""
    import xllamacpp

    options = xllamacpp.CommonParams()
    options.model.path = str(target)
    options.n_ctx = 2048
    options.n_parallel = 1
    options.n_gpu_layers = 0
    options.cpuparams.n_threads = options.cpuparams_batch.n_threads = threads
    options.warmup = True
    options.verbosity = -1
    if draft is not None:
        chosen = options.speculative.draft
        options.speculative.types = [xllamacpp.common_speculative_type.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE]
        chosen.mparams.path = str(draft)
        chosen.n_max, chosen.n_min, chosen.p_min = k, 0, 0.0
        chosen.n_gpu_layers = 0
        chosen.cpuparams.n_threads = chosen.cpuparams_batch.n_threads = threads
    return xllamacpp.Server(options)


def by_server(running: Any, tokens: int) -> Arm:
    """An arm that asks the server."""

    def decode(prompt: tuple[int, ...]) -> tuple[tuple[int, ...], float]:
        answer = running.handle_completions(
            {
                "prompt": list(prompt),
                "n_predict": tokens,
                "temperature": 0.0,
                "top_k": 1,
                "ignore_eos": True,
                "return_tokens": True,
                "cache_prompt": False,
            }
        )
        if "timings" not in answer:
            sys.exit(f"the server refused: {answer}")
        return tuple(answer["tokens"]), answer["timings"]["predicted_ms"] / 1000

    return decode


def by_us(target: LlamaCppRuntime, proposer: ModelProposer | None, k: int, tokens: int) -> Arm:
    """An arm of this engine."""

    def decode(prompt: tuple[int, ...]) -> tuple[tuple[int, ...], float]:
        request = Request(prompt, tokens)
        done = (
            autoregressive(target, request) if proposer is None else speculative(target, proposer, request, k)
        )
        return done.token_ids, done.decode_s

    return decode


def main() -> int:
    """Runs the comparison and prints its JSON line."""
    parser = arguments(__doc__, k=2, tokens=64)
    parser.add_argument(
        "--draft", default="depth2-distilled-gguf", help="a draft whose recipe ends in write_gguf"
    )
    options = parser.parse_args()

    workspace = Workspace.open()
    declared = workspace.target(options.target)
    context = workspace.fetch_context()
    target_file = gguf_file(declared, context)
    (built,) = build(workspace, options.target, (options.draft,))
    if built.folder is None or not (built.folder / GGUF_FILE).is_file():
        sys.exit(f"{options.draft} is no GGUF file: {built.failure or 'choose another draft'}")
    draft_file = built.folder / GGUF_FILE
    tokenizer = load_tokenizer(ensure_target(declared, context).path)
    prompts = first_turns(workspace, declared, tokenizer, options.tasks, options.prompts)

    k, tokens = options.k, options.tokens
    target, drafting = LlamaCppRuntime(target_file), ModelProposer(LlamaCppRuntime(draft_file))
    threads = torch.get_num_threads()
    arms: dict[tuple[str, str], Arm] = {
        ("ar", "ours"): by_us(target, None, k, tokens),
        ("ar", "server"): by_server(server(target_file, None, k, threads), tokens),
        ("model", "ours"): by_us(target, drafting, k, tokens),
        ("model", "server"): by_server(server(target_file, draft_file, k, threads), tokens),
    }
    decoded: dict[tuple[str, str], Decoded] = {name: [] for name in arms}
    equal = dict.fromkeys(("ar", "model", "server"), 0)
    for arm in arms.values():  # warm-up, every shape once
        arm(prompts[0])
    for prompt, order in blocks(prompts, list(arms)):
        outputs = {}
        for name in order:
            outputs[name], seconds = arms[name](prompt)
            decoded[name].append((len(outputs[name]) - 1, seconds))
        for kind in ("ar", "model"):
            equal[kind] += outputs[kind, "ours"] == outputs[kind, "server"]
        equal["server"] += outputs["ar", "server"] == outputs["model", "server"]
    machine = read_machine("cpu")
    result = {
        "target": options.target,
        "draft": options.draft,
        "k": k,
        "prompts": len(prompts),
        "tokens": tokens,
        "ar": compared(decoded["ar", "ours"], decoded["ar", "server"], "server"),
        "model": compared(decoded["model", "ours"], decoded["model", "server"], "server"),
        "equal_outputs": equal,
        "machine": machine.machine_class,
        "packages": {**machine.packages, "xllamacpp": version("xllamacpp")},
    }
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
