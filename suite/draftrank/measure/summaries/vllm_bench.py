"""A serving session in the form that `vllm bench serve --save-result` writes, for people who compare with it.

One document for each arm and concurrency, over the rounds that count: of a block that was measured again the last attempt.
Times are milliseconds. `tpot` is a request's mean time per token after its first event, `itl` the time between events.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from draftrank.measure.serving_records import Round, ServedRequest, ServingResult


def vllm_bench_documents(result: ServingResult) -> Iterator[tuple[str, dict[str, Any]]]:
    """A name, and the document, for each arm and concurrency that has a complete request."""
    for arm in result.session.arms:
        for concurrency in result.session.concurrencies:
            counted = {
                one.index: one
                for one in sorted(result.rounds, key=lambda one: one.attempt)
                if (one.arm, one.concurrency) == (arm.id, concurrency)
            }
            rounds = [counted[index] for index in sorted(counted)]
            if any(request.end != "failed" for one in rounds for request in one.requests):
                yield f"{arm.id}-{concurrency}", _document(result, arm.id, concurrency, rounds)


def _document(result: ServingResult, arm: str, concurrency: int, rounds: Sequence[Round]) -> dict[str, Any]:
    session = result.session
    requests = [request for one in rounds for request in one.requests if request.end != "failed"]
    sent = sum(len(one.requests) for one in rounds)
    duration = math.fsum(one.wall_s for one in rounds)
    read = sum(session.turns[request.turn].prompt_tokens for request in requests)
    written = sum(request.tokens for request in requests)
    times = {
        "ttft": [request.arrivals_us[0] / 1e3 for request in requests],
        "tpot": [request.tpot_s * 1e3 for request in requests if request.tpot_s is not None],
        "itl": [gap / 1e3 for request in requests for gap in request.arrivals_us[1:]],
        "e2el": [_whole_ms(request) for request in requests],
    }
    document: dict[str, Any] = {
        "date": rounds[0].started_at,
        "backend": session.engine,
        "label": arm,
        "model_id": session.target,
        "tokenizer_id": session.target,
        "num_prompts": sent,
        "request_rate": session.rate if session.rate is not None else "inf",
        "max_concurrency": concurrency,
        "duration": duration,
        "completed": len(requests),
        "failed": sent - len(requests),
        "total_input_tokens": read,
        "total_output_tokens": written,
        "request_throughput": len(requests) / duration,
        "output_throughput": written / duration,
        "total_token_throughput": (read + written) / duration,
    }
    for name, found in times.items():
        document |= _statistics(name, found)
    return document


def _statistics(name: str, found: Sequence[float]) -> dict[str, float]:
    ordered = sorted(found) or [0.0]
    mean = math.fsum(ordered) / len(ordered)
    spread = math.sqrt(math.fsum((one - mean) ** 2 for one in ordered) / len(ordered))
    return {
        f"mean_{name}_ms": mean,
        f"median_{name}_ms": _percentile(ordered, 0.5),
        f"std_{name}_ms": spread,
        f"p99_{name}_ms": _percentile(ordered, 0.99),
    }


def _percentile(ordered: Sequence[float], share: float) -> float:
    """Between the two nearest values, in proportion."""
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def _whole_ms(request: ServedRequest) -> float:
    return sum(request.arrivals_us) / 1e3
