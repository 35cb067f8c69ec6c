"""A server that speaks as vLLM's or llama.cpp's does, for tests: tokens follow a rule, steps a script, faults are asked for.

Started as a program it is given `FORM FAULT` and what the engine would be: with `--model DIR` it decodes with that model.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

VOCABULARY = 97


def next_token(context: list[int]) -> int:
    """The model: any rule will do that depends on what stands before."""
    return (7 * context[-1] + 3 * context[-2] + len(context)) % VOCABULARY


def output_of(prompt: list[int], limit: int, stop: frozenset[int] = frozenset()) -> list[int]:
    """What the model says, one token at a time."""
    context = list(prompt)
    while len(context) - len(prompt) < limit:
        context.append(next_token(context))
        if context[-1] in stop:
            break
    return context[len(prompt) :]


@dataclass
class Step:
    """What one step emitted, and what the server counts."""

    tokens: list[int]
    accepted: int = 0
    proposed: int = 0


@dataclass
class ModelServer:
    """How it behaves."""

    form: str = "vllm"
    script: tuple[int | None, ...] = ()
    """Accepted tokens of each step in turn, over and over; None: a step without proposals. Empty: no draft."""
    k: int = 3
    stop: frozenset[int] = frozenset()
    """llama.cpp knows its stop tokens by itself."""
    fault: str = ""
    name: str = "draftrank"
    unfinished: frozenset[int] = frozenset()
    """Tokens that llama.cpp does not stream, since they end within a character."""
    requests: list[dict[str, Any]] = field(default_factory=list)
    after: int = 0
    """Requests that it answers well before its fault shows."""
    delay_s: float = 0.0
    """Seconds that each step takes."""
    counts: list[int] = field(default_factory=lambda: [0, 0, 0])
    """Its counters: drafts, proposed and accepted tokens."""
    most: int = 0
    """Requests that were in work at once, at most."""
    working: int = 0
    authorizations: set[str | None] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def broken(self) -> str:
        """Its fault, once it shows."""
        return self.fault if len(self.requests) > self.after else ""

    def count(self, steps: list[Step]) -> None:
        """What a server that drafts counts for one request."""
        drafted = [step for step in steps[1:] if step.proposed]
        with self.lock:
            if self.broken == "resets counters":
                self.counts = [0, 0, 0]
            for place, number in enumerate(
                (len(drafted), sum(s.proposed for s in drafted), sum(s.accepted for s in drafted))
            ):
                self.counts[place] += number

    def metrics(self) -> str:
        """The counters as /metrics tells them; a plain server has none."""
        names = ("drafts", "draft_tokens", "accepted_tokens") if self.script else ()
        lines = [
            f'vllm:spec_decode_num_{name}_total{{model_name="{self.name}"}} {float(count)}\n'
            for name, count in zip(names, self.counts, strict=False)
        ]
        return "# HELP vllm:num_requests_running Requests.\nvllm:num_requests_running 0.0\n" + "".join(lines)

    def top(self, _context: list[int], token: int) -> dict[int, float]:
        """Log-probabilities of the two most likely tokens behind a context, the second first."""
        return {(token + 1) % VOCABULARY: -2.0, token: -0.5}

    def steps(self, prompt: list[int], limit: int, stop: frozenset[int]) -> list[Step]:
        """Decodes; the first is the prefill."""
        expected = output_of(prompt, limit, stop)
        if self.broken == "parts" and len(expected) > 3:
            parted = [*expected[:3], (expected[3] + 1) % VOCABULARY]
            expected = [*parted, *output_of([*prompt, *parted], limit - 4, stop)]
        steps = [Step(expected[:1])]
        done = 1
        while done < len(expected):
            scripted = self.script[(len(steps) - 1) % len(self.script)] if self.script else None
            accepted, proposed = (0, 0) if scripted is None else (scripted, self.k)
            if self.form == "llama.cpp" and proposed:
                proposed = min(proposed, limit - done - 1)
                accepted = min(accepted, proposed)
            emitted = expected[done : done + accepted + 1]
            steps.append(Step(emitted, accepted, proposed))
            done += len(emitted)
        return steps


@contextmanager
def serving(server: ModelServer, port: int = 0) -> Iterator[int]:
    """Serves in a thread; gives its port."""
    with ThreadingHTTPServer(("127.0.0.1", port), _handler(server)) as http:
        http.daemon_threads, http.block_on_close = True, False
        thread = threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield http.server_address[1]
        finally:
            http.shutdown()
            thread.join()


def _handler(server: ModelServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            server.authorizations.add(self.headers["Authorization"])
            if self.path == "/health":
                self._send(503 if server.fault == "never ready" else 200, {})
            elif self.path == "/v1/models":
                name = "another" if server.fault == "wrong model" else server.name
                self._send(200, {"data": [{"id": name}]})
            elif self.path == "/version":
                self._send(200, {"version": "0.32.0+cpu"})
            elif self.path == "/metrics":
                self._send(200, server.metrics())
            else:
                self._send(404, {"error": "not found"})

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with server.lock:
                server.requests.append(asked)
                server.working += 1
                server.most = max(server.most, server.working)
            self._works = True
            try:
                self._answer(asked)
            finally:
                self._rest()

        def _rest(self) -> None:
            """Before the last byte, behind which a client sends its next request."""
            if self._works:
                self._works = False
                with server.lock:
                    server.working -= 1

        def _answer(self, asked: dict[str, Any]) -> None:
            if server.broken == "refuses":
                self._send(400, {"error": {"message": "the prompt is too long"}})
                return
            forms = {"/v1/completions": _vllm, "/completion": _llama_cpp, "/generate": _sglang}
            answer = forms[self.path](server, asked)
            if not asked.get("stream"):
                self._rest()
                self._send(200, answer[-1])
                return
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for number, event in enumerate(answer):
                if number == 2:
                    self._fail()
                    if server.broken == "cut":
                        return
                time.sleep(server.delay_s)
                if server.broken == "no end" and number == len(answer) - 1:
                    break
                self._chunk(b"data: " + json.dumps(event).encode() + b"\n\n")
            if server.form == "vllm" and server.broken != "no end":
                self._chunk(b"data: [DONE]\n\n")
            self._rest()
            self._chunk(b"")

        def _fail(self) -> None:
            if server.broken == "dies":
                os._exit(7)
            if server.broken == "hangs":
                time.sleep(30)
            if server.broken == "cut":
                self._chunk(b'data: {"choi')
                self.close_connection = True

        def _chunk(self, content: bytes) -> None:
            self.wfile.write(f"{len(content):x}\r\n".encode() + content + b"\r\n")
            self.wfile.flush()

        def _send(self, status: int, value: Any) -> None:
            content = value.encode() if isinstance(value, str) else json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


def _vllm(server: ModelServer, asked: dict[str, Any]) -> list[dict[str, Any]]:
    steps = server.steps(asked["prompt"], asked["max_tokens"], frozenset(asked["stop_token_ids"]))
    server.count(steps)
    tokens = [token for step in steps for token in step.tokens]
    emitted = [step.tokens for step in steps]
    if server.broken == "joins steps":
        emitted = [emitted[0], emitted[1] + emitted[2], *emitted[3:]]
    events: list[dict[str, Any]] = []
    context = list(asked["prompt"])
    for number, part in enumerate(emitted):
        last = number == len(emitted) - 1
        ended = "stop" if tokens[-1] in asked["stop_token_ids"] else "length"
        choice: dict[str, Any] = {"token_ids": part, "finish_reason": ended if last else None}
        if asked.get("logprobs"):
            choice["logprobs"] = {"top_logprobs": []}
            for token in part:
                told = server.top(context, token)
                choice["logprobs"]["top_logprobs"].append({f"token_id:{one}": told[one] for one in told})
                context.append(token)
        events.append({"choices": [choice]})
    usage: dict[str, Any] = {"choices": [], "usage": {"completion_tokens": len(tokens)}}
    if server.script:
        drafted = [step for step in steps[1:] if step.proposed]
        accepted = [step.accepted for step in drafted]
        if server.broken == "wrong counts":
            accepted = [*accepted[:-1], accepted[-1] + 1, 1]
        usage["metrics"] = {
            "speculative_decoding": {
                "num_draft_tokens": sum(step.proposed for step in drafted),
                "num_accepted_draft_tokens": sum(accepted),
                "per_step_accepted": accepted,
            }
        }
    return [*events, usage]


def _llama_cpp(server: ModelServer, asked: dict[str, Any]) -> list[dict[str, Any]]:
    steps = server.steps(asked["prompt"], asked["n_predict"], server.stop)
    events: list[dict[str, Any]] = []
    proposed = accepted = emitted = 0
    tokens: list[int] = []

    def timings() -> dict[str, int]:
        drafted = {"draft_n": proposed, "draft_n_accepted": accepted} if proposed else {}
        return {"predicted_n": emitted, **drafted}

    for step in steps:
        proposed += step.proposed
        accepted += step.accepted
        for token in step.tokens:
            emitted += 1
            tokens.append(token)
            if token not in server.unfinished:
                events.append({"tokens": [token], "stop": False, "timings": timings()})
    if server.broken == "wrong counts":
        accepted += len(tokens)
    end = {"stop": True, "tokens": [] if asked.get("stream") else tokens, "timings": timings()}
    return [*events, end]


def _sglang(server: ModelServer, asked: dict[str, Any]) -> list[dict[str, Any]]:
    sampling = asked["sampling_params"]
    steps = server.steps(
        asked["input_ids"], sampling["max_new_tokens"], frozenset(sampling["stop_token_ids"])
    )
    events: list[dict[str, Any]] = []
    tokens: list[int] = []
    top: list[list[list[Any]]] = []
    for number, step in enumerate(steps):
        for token in step.tokens:
            told = server.top([*asked["input_ids"], *tokens], token)
            top.append([[told[one], one, None] for one in sorted(told, key=lambda one: -told[one])])
            tokens.append(token)
        meta: dict[str, Any] = {"completion_tokens": len(tokens), "finish_reason": None}
        if server.script:
            meta["spec_verify_ct"] = number
        if asked.get("return_logprob"):
            meta["output_top_logprobs"] = list(top)
        events.append({"output_ids": list(tokens), "meta_info": meta})
    end = events[-1]["meta_info"]
    end["finish_reason"] = None if server.broken == "no end" else {"type": "length"}
    if server.broken == "wrong counts" and server.script:
        end["spec_verify_ct"] = len(tokens) + 1
    return events


class DecodingServer(ModelServer):
    """Decodes with models of transformers, each forward anew over the whole text, and verifies a draft's chains."""

    def __init__(self, model: str, speculation: str | None, fault: str, name: str) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(1)
        told = json.loads(speculation) if speculation else {}
        super().__init__("vllm", (0,) if told else (), told.get("num_speculative_tokens", 0), name=name)
        self._target = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        self._draft = (
            AutoModelForCausalLM.from_pretrained(told["model"], dtype=torch.float32) if told else None
        )
        if self._draft is not None and fault == "swapped layers":
            layers = self._draft.model.layers
            layers[0], layers[1] = layers[1], layers[0]

    def top(self, context: list[int], _token: int) -> dict[int, float]:
        values, tokens = self._logits(self._target, context)[-1].log_softmax(-1).topk(2)
        return dict(zip(tokens.tolist()[::-1], values.tolist()[::-1], strict=True))

    def steps(self, prompt: list[int], limit: int, stop: frozenset[int]) -> list[Step]:
        context = [*prompt, int(self._logits(self._target, prompt)[-1].argmax())]
        steps = [Step(context[-1:])]
        while len(context) - len(prompt) < limit and context[-1] not in stop:
            proposed = list(context)
            for _ in range(self.k if self._draft is not None else 0):
                proposed.append(int(self._logits(self._draft, proposed)[-1].argmax()))
            choices = self._logits(self._target, proposed).argmax(-1)[len(context) - 1 :].tolist()
            candidates = proposed[len(context) :]
            accepted = next(
                (
                    at
                    for at, (one, other) in enumerate(zip(candidates, choices, strict=False))
                    if one != other
                ),
                len(candidates),
            )
            emitted = choices[: accepted + 1][: limit - len(context) + len(prompt)]
            ends = [at for at, token in enumerate(emitted) if token in stop]
            emitted = emitted[: ends[0] + 1] if ends else emitted
            steps.append(Step(emitted, accepted, len(candidates)))
            context += emitted
        return steps

    @staticmethod
    def _logits(model: Any, tokens: list[int]) -> Any:
        import torch

        with torch.inference_mode():
            return model(torch.tensor([tokens])).logits[0]


def _given(arguments: list[str], option: str) -> str | None:
    return arguments[arguments.index(option) + 1] if option in arguments else None


def main(form: str, fault: str, *arguments: str) -> None:
    """Serves until it is ended."""
    if "-c" in arguments:  # as Python: what is the version?
        print("0.32.0")
        return
    if fault == "ends at once":
        sys.exit("no weights here")
    given = list(arguments)
    model = _given(given, "--model")
    name = _given(given, "--served-model-name") or _given(given, "--alias") or "draftrank"
    form, _, toy = form.partition("-")
    fault, _, after = fault.partition(" after ")
    drafts = "--speculative-config" in given or "--spec-type" in given
    script = (1, 0, None) if model is None or drafts else ()
    server = ModelServer(form, script, fault=fault, name=name, after=int(after or 0))
    if fault == "slow":
        server.delay_s = 0.01
    if model is not None and not toy:
        server = DecodingServer(model, _given(given, "--speculative-config"), fault, name)
    print("listening", flush=True)
    with serving(server, int(_given(given, "--port") or 0)):
        threading.Event().wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
