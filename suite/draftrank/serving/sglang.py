"""SGLang: its server, started by module, asked over its native `/generate`, which takes token ids.

`meta_info.spec_verify_ct` counts the verification forwards of a request, so accepted tokens are those that no forward gave:
tokens − 1 − forwards. Proposed tokens are not told. Written to the documented interface of SGLang 0.5; it needs a GPU.
"""

from __future__ import annotations

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

_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
_ALGORITHMS = {"ngram": "NGRAM", "draft_model": "STANDALONE", "eagle3": "EAGLE3", "eagle": "EAGLE"}
_ASK_VERSION = "from importlib.metadata import version; print(version('sglang'))"
_OPTIONS = frozenset({"speculative-eagle-topk", "speculative-num-draft-tokens", "speculative-attention-mode"})
"""Options that a recipe may set; none of them names a place that code could come from."""


class Sglang(Engine):
    """See `Engine`."""

    name: ClassVar[str] = "sglang"
    variable: ClassVar[str] = "DRAFTRANK_SGLANG"
    own_program: ClassVar[str] = "sglang/bin/python"
    asks_version: ClassVar[tuple[str, ...]] = ("-c", _ASK_VERSION)
    get: ClassVar[str] = (
        f"install it on a machine with a GPU, and name that environment's Python by {variable}"
    )
    methods: ClassVar[frozenset[Method]] = frozenset({"ngram", "draft_model", "eagle3", "eagle"})
    own_methods: ClassVar[frozenset[str]] = frozenset({"eagle", "eagle3", "standalone", "ngram", "dflash"})

    def launch(self, served: Served, speculation: Speculation | None) -> Launch:
        command = [
            *(str(self.program), "-m", "sglang.launch_server"),
            *("--model-path", str(served.model), "--served-model-name", served.name),
            *("--host", "127.0.0.1", "--port", str(served.port)),
            *("--dtype", _DTYPES[served.dtype], "--context-length", str(served.context)),
            *("--max-running-requests", str(served.max_requests), "--random-seed", "0"),
            "--disable-radix-cache",
            *served.flags,
        ]
        if speculation is not None:
            command += arguments(speculation)
        return Launch(tuple(command), {"HF_HUB_OFFLINE": "1", **served.environment})

    def takes_option(self, name: str) -> bool:
        return name in _OPTIONS

    async def served_version(self, client: Client) -> str:
        told = await client.json("/get_server_info")
        if not isinstance(told, dict) or "version" not in told:
            raise ServerError("/get_server_info does not tell a version")
        return str(told["version"]).partition("+")[0]

    async def complete(self, client: Client, request: CompletionRequest) -> Completion:
        body: dict[str, Any] = {
            "input_ids": list(request.prompt),
            "sampling_params": {
                "temperature": 0,
                "max_new_tokens": request.max_new_tokens,
                "stop_token_ids": sorted(request.stop_tokens),
            },
            "stream": True,
        }
        if request.top:
            body |= {"return_logprob": True, "top_logprobs_num": request.top}
        began = perf_counter()
        arrivals: list[tuple[float, int]] = []
        tokens: list[int] = []
        told: dict[str, Any] = {}
        async for arrived, event in client.events("/generate", body):
            if "error" in event:
                raise ServerError(f"SGLang refused the request: {event['error']}")
            told = event["meta_info"]
            emitted = event["output_ids"][len(tokens) :]  # each event repeats what came before
            if emitted:
                arrivals.append((arrived, len(emitted)))
                tokens += emitted
        if not told.get("finish_reason") or not tokens:
            raise ServerError(f"SGLang's answer ended after {len(tokens)} tokens without saying why")
        forwards = told.get("spec_verify_ct")
        accepted = 0 if forwards is None else len(tokens) - 1 - forwards
        disagreement = None
        if told["completion_tokens"] != len(tokens):
            disagreement = f"it counts {told['completion_tokens']} tokens, and {len(tokens)} came"
        elif not 0 <= accepted <= len(tokens) - 1:
            disagreement = f"it counts {forwards} forwards for {len(tokens)} tokens"
        top = told.get("output_top_logprobs") or ()
        return Completion(
            token_ids=tuple(tokens),
            finish="stop" if tokens[-1] in request.stop_tokens else "length",
            accepted=accepted,
            proposed=None,
            began=began,
            arrivals=tuple(arrivals),
            disagreement=disagreement,
            figures=forwards is not None,
            top=tuple(tuple((int(one[1]), float(one[0])) for one in entry) for entry in top),
        )


def arguments(speculation: Speculation) -> list[str]:
    """The options for a draft: chains of k tokens."""
    k = speculation.num_speculative_tokens
    method = speculation.method
    algorithm = method.upper() if speculation.own else _ALGORITHMS[method]
    told = ["--speculative-algorithm", algorithm]
    if speculation.model is not None:
        told += ["--speculative-draft-model-path", str(speculation.model)]
    given = {f"--{name}": str(value) for name, value in speculation.options.items()}
    if algorithm != "NGRAM":
        told += ["--speculative-num-steps", str(k)]
        given.setdefault("--speculative-eagle-topk", "1")
    given.setdefault("--speculative-num-draft-tokens", str(k + 1))
    return [*told, *(word for pair in given.items() for word in pair)]
