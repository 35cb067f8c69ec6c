"""llama.cpp: its `llama-server`, given GGUF files.

Every event of the stream is one token with the counts of proposed and accepted tokens so far, so a step that proposed
some begins where the first count grows. The first tokens of a character that takes several are not in the stream; they
are asked for behind the tokens before them.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
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
)
from draftrank.serving.http import Client, ServerError

_OPTION = re.compile(r"spec-(ngram-[a-z0-9-]+|draft-(n-min|p-min|p-split|type-k|type-v|ctx-size))")
"""Options that a recipe may set; none of them names a file or an address."""
_CACHE_TYPES = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}


class LlamaCpp(Engine):
    """See `Engine`."""

    name: ClassVar[str] = "llama.cpp"
    variable: ClassVar[str] = "DRAFTRANK_LLAMA_SERVER"
    own_program: ClassVar[str] = "llama.cpp/build/bin/llama-server"
    asks_version: ClassVar[tuple[str, ...]] = ("--version",)
    get: ClassVar[str] = f"run `make engine-llama-cpp`, or name a llama-server by {variable}"
    methods: ClassVar[frozenset[Method]] = frozenset({"ngram", "draft_model", "eagle3"})
    own_methods: ClassVar[frozenset[str]] = frozenset(
        {
            *("draft-simple", "draft-eagle3", "draft-mtp", "draft-dflash", "draft-dspark"),
            *("ngram-simple", "ngram-map-k", "ngram-map-k4v", "ngram-mod", "ngram-cache"),
        }
    )

    @classmethod
    def on_path(cls) -> Path | None:
        command = shutil.which("llama-server")
        return Path(command) if command else None

    def version_in(self, output: str, errors: str) -> str | None:
        text = errors + output
        found = re.search(r"build (\d+)", text) or re.search(r"version: (\d+)", text)
        return f"b{found[1]}" if found else None

    def launch(self, served: Served, speculation: Speculation | None) -> Launch:
        cache = _CACHE_TYPES[served.dtype]
        command = [
            *(str(self.program), "--model", str(served.model), "--alias", served.name),
            *("--host", "127.0.0.1", "--port", str(served.port), "--no-webui", "--offline"),
            *("--ctx-size", str(served.context * served.max_requests)),  # shared out evenly
            *("--parallel", str(served.max_requests), "--cache-ram", "0"),
            *("--flash-attn", "off"),
            *("--cache-type-k", cache, "--cache-type-v", cache),
            *("--threads", str(served.threads), "--threads-batch", str(served.threads)),
        ]
        if _has_amx():  # its AMX kernels crash on some machines
            command.append("--no-repack")
        if speculation is not None:
            command += arguments(speculation, cache)
        return Launch((*command, *served.flags), served.environment)

    def takes_option(self, name: str) -> bool:
        return _OPTION.fullmatch(name) is not None

    async def served_version(self, client: Client) -> str:
        told = await client.json("/props")
        found = re.match(r"b(\d+)", str(told.get("build_info", ""))) if isinstance(told, dict) else None
        if found is None:
            raise ServerError("/props does not tell a build")
        return f"b{found[1]}"

    async def complete(self, client: Client, request: CompletionRequest) -> Completion:
        began = perf_counter()
        moments: list[float] = []
        tokens: list[int] = []
        counts: list[tuple[int, int, int]] = []
        top: list[tuple[tuple[int, float], ...]] = []
        end: dict[str, Any] | None = None
        async for arrived, event in client.events(
            "/completion", {**_body(request), "stream": True, "timings_per_token": True}
        ):
            if "error" in event:
                raise ServerError(f"llama-server refused the request: {event['error']}")
            if event.get("stop"):
                end = event
                moments.append(arrived)
            elif event.get("tokens"):
                moments.append(arrived)
                tokens += event["tokens"]
                counts.append(_counts(event["timings"]))
                top += [_most_likely(entry) for entry in event.get("completion_probabilities", ())]
        emitted, proposed, accepted = _counts(end["timings"]) if end else (0, 0, 0)
        if not emitted:
            raise ServerError(f"llama-server's answer ended after {len(tokens)} tokens without saying why")
        gaps = frozenset(range(emitted)) - {count[0] - 1 for count in counts}
        accepted -= past_the_end(counts, emitted)
        disagreement = None
        if len(tokens) + len(gaps) != emitted:
            disagreement = f"it counts {emitted} tokens, and {len(tokens)} came"
        elif request.stop_tokens & set(tokens[:-1]):
            disagreement = "it went on behind a stop token: its file names others"
        elif not 0 <= accepted <= max(0, emitted - 1):
            disagreement = f"it counts {accepted} accepted tokens among {emitted}"
        return Completion(
            token_ids=tuple(tokens),
            finish="stop" if request.stop_tokens & set(tokens[-1:]) else "length",
            accepted=accepted,
            proposed=proposed,
            began=began,
            arrivals=_arrivals(moments, counts, emitted),
            disagreement=disagreement,
            gaps=gaps,
            top=tuple(top),
        )

    async def filled(self, client: Client, request: CompletionRequest, completion: Completion) -> Completion:
        came, came_top = list(completion.token_ids), list(completion.top)
        tokens: list[int] = []
        top: list[tuple[tuple[int, float], ...]] = []
        emitted = len(came) + len(completion.gaps)
        for left_out, run in groupby(range(emitted), key=completion.gaps.__contains__):
            count = len(list(run))
            if not left_out:
                tokens += came[:count]
                top += came_top[:count]
                del came[:count], came_top[:count]
                continue
            known = came[:1]  # the token behind them, which shows that the server goes on as in its stream
            asked = replace(request, prompt=(*request.prompt, *tokens), max_new_tokens=count + len(known))
            answer = await client.json("/completion", {**_body(asked), "stream": False})
            found = list(answer.get("tokens", ()))
            if len(found) != asked.max_new_tokens or found[count:] != known:
                raise ServerError(
                    f"its stream left out tokens {len(tokens)} to {len(tokens) + count - 1}, and asked for them it goes "
                    "on otherwise than in its stream"
                )
            tokens += found[:count]
            top += map(_most_likely, answer.get("completion_probabilities", ())[:count])
        return replace(completion, token_ids=tuple(tokens), top=tuple(top), gaps=frozenset())


def _body(request: CompletionRequest) -> dict[str, Any]:
    body: dict[str, Any] = {
        "prompt": list(request.prompt),
        "n_predict": request.max_new_tokens,
        "temperature": 0,
        "cache_prompt": False,
        "return_tokens": True,
    }
    return {**body, "n_probs": request.top} if request.top else body


def arguments(speculation: Speculation, cache: str) -> list[str]:
    """The options for a draft; `cache` is the type of its KV cache."""
    k = str(speculation.num_speculative_tokens)
    if speculation.own:
        named = ["--spec-type", speculation.method]
        named += ["--spec-draft-model", str(speculation.model)] if speculation.model else []
        named += ["--spec-draft-n-max", k] if speculation.method.startswith("draft-") else []
        return [
            *named,
            *(word for name, value in speculation.options.items() for word in (f"--{name}", str(value))),
        ]
    if speculation.method == "ngram":
        # It looks up runs of one length, and proposes nothing where fewer tokens than that follow the match.
        return [
            *("--spec-type", "ngram-simple", "--spec-ngram-simple-size-n", str(speculation.min_ngram)),
            *("--spec-ngram-simple-size-m", k),
        ]
    kind = "draft-eagle3" if speculation.method == "eagle3" else "draft-simple"
    return [
        *("--spec-type", kind, "--spec-draft-model", str(speculation.model)),
        *("--spec-draft-n-max", k, "--spec-draft-n-min", "0", "--spec-draft-p-min", "0"),
        *("--spec-draft-type-k", cache, "--spec-draft-type-v", cache),
    ]


def past_the_end(counts: Sequence[tuple[int, int, int]], emitted: int) -> int:
    """How many accepted tokens lie behind the end of an output.

    Args:
        counts: at every token of the stream: tokens emitted, proposed and accepted so far.
        emitted: tokens of the whole output.
    """
    if not counts:
        return 0
    proposed, accepted = counts[-1][1:]
    begun = next(index for index, count in enumerate(counts) if count[1] == proposed)
    if begun == 0:  # nothing was ever proposed, or nothing but that is in the stream
        return 0
    of_last_step = accepted - counts[begun - 1][2]
    return max(0, of_last_step + 1 - (emitted - counts[begun][0] + 1))


def _counts(timings: dict[str, Any]) -> tuple[int, int, int]:
    return timings["predicted_n"], timings.get("draft_n", 0), timings.get("draft_n_accepted", 0)


def _arrivals(
    moments: Sequence[float], counts: Sequence[tuple[int, int, int]], emitted: int
) -> tuple[tuple[float, int], ...]:
    """Of each event, the last one included, which brings no token: a token that the stream left out counts with the event
    behind it."""
    so_far = [*(count[0] for count in counts), emitted]
    sizes = [now - before for before, now in zip([0, *so_far], so_far, strict=False)]
    return tuple((moment, size) for moment, size in zip(moments, sizes, strict=True) if size > 0)


def _most_likely(entry: dict[str, Any]) -> tuple[tuple[int, float], ...]:
    return tuple((one["id"], one["logprob"]) for one in entry["top_logprobs"])


def _has_amx() -> bool:
    try:
        return "amx_tile" in Path("/proc/cpuinfo").read_text("utf-8", "replace")
    except OSError:
        return False
