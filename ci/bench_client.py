"""The client of `draftrank serve-bench` against `vllm bench serve`: one plain vLLM server, the same prompts, in turn.

Both send the same prompts at the same concurrency, one as token ids, the other as text; that the server reads equally many
tokens of both is checked. A ratio is our output tokens per second over theirs, with a 95 % t-interval over pairs of rounds.

`vllm bench serve` needs pandas beside vLLM: `.engines/vllm/bin/python -m pip install pandas datasets`.

Prints one JSON line. Run nothing else meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from math import exp
from pathlib import Path

import numpy as np
from scipy import stats

from draftrank import Workspace
from draftrank.measure.machine.fingerprint import read_machine
from draftrank.models.loading import load_tokenizer
from draftrank.models.target_folder import ensure_target
from draftrank.serving.base import CompletionRequest, Served
from draftrank.serving.http import Client
from draftrank.serving.load import put_load
from draftrank.serving.process import free_port, running
from draftrank.serving.vllm import Vllm
from side_by_side import first_turns

THEIRS = (
    "from argparse import ArgumentParser; from vllm.benchmarks import serve; parser = ArgumentParser();"
    "serve.add_cli_args(parser); serve.main(parser.parse_args())"
)
"""`vllm bench serve` without its command, which looks for a distribution named vllm."""


def by_us(engine: Vllm, client: Client, requests: Sequence[CompletionRequest], concurrency: int) -> float:
    """Output tokens per second."""
    load = put_load(engine, client, requests, range(len(requests)), concurrency)
    if load.failed:
        sys.exit(f"requests failed: {next(answer.failure for answer in load.answers if answer.failure)}")
    return sum(len(answer.completion.token_ids) for answer in load.answers if answer.completion) / load.wall_s


def by_them(
    engine: Vllm, served: Served, texts: Path, prompts: Sequence[Sequence[int]], tokens: int, concurrency: int
) -> float:
    """Output tokens per second; `texts` has the prompts as text."""
    result = texts.with_name("result.json")
    command = [
        *(str(engine.program), "-c", THEIRS, "--backend", "openai", "--endpoint", "/v1/completions"),
        *("--base-url", f"http://127.0.0.1:{served.port}", "--model", served.name),
        *("--tokenizer", str(served.model), "--dataset-name", "custom", "--dataset-path", str(texts)),
        *("--skip-chat-template", "--disable-shuffle", "--disable-tqdm", "--temperature", "0"),
        *("--custom-output-len", str(tokens), "--num-prompts", str(len(prompts))),
        *("--max-concurrency", str(concurrency), "--save-result"),
        *("--result-dir", str(result.parent), "--result-filename", result.name),
    ]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"vllm bench serve failed:\n{done.stderr[-2000:]}")
    told = json.loads(result.read_text("utf-8"))
    read = sum(map(len, prompts))
    if told["total_input_tokens"] != read:
        sys.exit(f"the prompts are {told['total_input_tokens']} tokens as text, and {read} as ids")
    return float(told["output_throughput"])


def main() -> int:
    """Runs the comparison and prints its JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", default="smollm2-135m-instruct")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--prompts", type=int, default=6, help="per task")
    parser.add_argument("--tasks", nargs="+", default=["chat", "math", "translation", "writing"])
    parser.add_argument("--tokens", type=int, default=32)
    options = parser.parse_args()

    workspace = Workspace.open()
    declared = workspace.target(options.target)
    folder = ensure_target(declared, workspace.fetch_context()).path
    tokenizer = load_tokenizer(folder)
    prompts = first_turns(workspace, declared, tokenizer, options.tasks, options.prompts)
    requests = [
        CompletionRequest(prompt, options.tokens, frozenset([tokenizer.eos_token_id])) for prompt in prompts
    ]
    engine = Vllm(Vllm.find(workspace.root))
    served = Served(
        folder, declared.id, free_port(), 2048, "fp32", os.cpu_count() or 1, max_requests=16, kv_cache_gib=1
    )
    launch = engine.launch(served, None)
    ratios: dict[int, dict[str, object]] = {}
    with tempfile.TemporaryDirectory() as name:
        texts = Path(name) / "prompts.jsonl"
        texts.write_text(
            "".join(json.dumps({"prompt": tokenizer.decode(prompt)}) + "\n" for prompt in prompts)
        )
        log_file = Path(name) / "server.log"
        with running(
            launch.command, served.port, log_file, name=served.name, environment=launch.environment
        ) as server:
            by_us(engine, server.client, requests, max(options.concurrency))  # warm-up
            for concurrency in options.concurrency:
                rates: dict[bool, list[float]] = {True: [], False: []}
                for index in range(options.rounds):
                    for ours in (True, False) if index % 2 else (False, True):
                        rates[ours].append(
                            by_us(engine, server.client, requests, concurrency)
                            if ours
                            else by_them(engine, served, texts, prompts, options.tokens, concurrency)
                        )
                    sys.stderr.write(
                        f"{concurrency} in flight: {rates[True][-1]:.1f}, {rates[False][-1]:.1f}\n"
                    )
                logs = np.log(rates[True]) - np.log(rates[False])
                ends = stats.t.interval(0.95, len(logs) - 1, logs.mean(), stats.sem(logs))
                ratios[concurrency] = {
                    "ratio": round(exp(logs.mean()), 3),
                    "ci": [round(exp(end), 3) for end in ends],
                    "tokens_per_second": round(float(np.median(rates[True])), 1),
                }
    machine = read_machine("cpu")
    print(json.dumps({"target": options.target, "ratios": ratios, "machine": machine.machine_class}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
