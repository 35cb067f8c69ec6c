"""A serving session in the forms of other load generators, for people who compare with them.

Each form has the names, units and formulas of its program (`docs/serving.md` names the versions), over the rounds that
count. What the session does not know is left out. Three things differ from a run of the program itself: the duration is the
sum of the rounds' wall times, since rounds of other arms lie between them; output tokens are those of the engine, not a
tokenizer's count of the text; and a proposed token counts as accepted only if it was emitted, unless it comes from the
server's counters.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from statistics import fmean, median, pstdev
from typing import Any

import numpy as np

from draftrank.measure.serving_records import Round, ServedRequest, ServingArm, ServingResult, ServingSession
from draftrank.measure.statistics.serving import standing_rounds

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Load:
    """One arm at one concurrency, over its rounds that count; at least one request is complete."""

    session: ServingSession
    arm: ServingArm
    concurrency: int
    rounds: tuple[Round, ...]
    requests: tuple[ServedRequest, ...]
    """The complete ones."""

    @property
    def name(self) -> str:
        return f"{self.arm.id}-{self.concurrency}"

    @property
    def failures(self) -> list[str]:
        found = (request.failure for one in self.rounds for request in one.requests)
        return [failure for failure in found if failure is not None]

    @property
    def duration_s(self) -> float:
        return math.fsum(one.wall_s for one in self.rounds)

    @property
    def read(self) -> list[int]:
        """Prompt tokens of each request."""
        return [self.session.turns[request.turn].prompt_tokens for request in self.requests]

    @property
    def written(self) -> list[int]:
        """Output tokens of each request."""
        return [request.tokens for request in self.requests]


def vllm_bench(result: ServingResult) -> Iterator[tuple[str, Document]]:
    """What `vllm bench serve --save-result` writes, for each arm and concurrency."""
    for load in _loads(result):
        yield f"vllm-bench/{load.name}.json", _vllm_bench(load)


def aiperf(result: ServingResult) -> Iterator[tuple[str, Document]]:
    """AIPerf's summary, in a folder for each arm and concurrency."""
    for load in _loads(result):
        yield f"aiperf/{load.name}/profile_export_aiperf.json", _aiperf(load)


def guidellm(result: ServingResult) -> Iterator[tuple[str, Document]]:
    """A report as GuideLLM writes it for each arm, with a benchmark for each concurrency."""
    reports: dict[str, list[Document]] = defaultdict(list)
    for load in _loads(result):
        reports[load.arm.id].append(_guidellm(load, len(reports[load.arm.id])))
    for arm, benchmarks in reports.items():
        yield f"guidellm/{arm}/benchmarks.json", {"metadata": {"version": 2}, "benchmarks": benchmarks}


CLIENTS: Mapping[str, Callable[[ServingResult], Iterator[tuple[str, Document]]]] = {
    "vllm-bench": vllm_bench,
    "aiperf": aiperf,
    "guidellm": guidellm,
}
"""By the name of a form, what gives its files: paths and JSON documents."""


def _loads(result: ServingResult) -> Iterator[_Load]:
    """Every arm and concurrency that has a complete request."""
    blocks = standing_rounds(result.rounds)
    for arm in result.session.arms:
        for concurrency in result.session.concurrencies:
            rounds = tuple(
                block[arm.id] for (at, _), block in blocks.items() if at == concurrency and arm.id in block
            )
            complete = tuple(request for one in rounds for request in one.requests if request.end != "failed")
            if complete:
                yield _Load(result.session, arm, concurrency, rounds, complete)


# -- vllm bench serve ----------------------------------------------------------------------------


def _vllm_bench(load: _Load) -> Document:
    session, requests = load.session, load.requests
    read, written = sum(load.read), sum(load.written)
    document: Document = {
        "date": datetime.fromisoformat(load.rounds[0].started_at).strftime("%Y%m%d-%H%M%S"),
        "backend": session.engine,
        "label": load.arm.id,
        "model_id": session.target,
        "tokenizer_id": session.target,
        "num_prompts": len(requests) + len(load.failures),
        "request_rate": session.rate if session.rate is not None else "inf",
        "max_concurrency": load.concurrency,
        "duration": load.duration_s,
        "completed": len(requests),
        "failed": len(load.failures),
        "total_input_tokens": read,
        "total_output_tokens": written,
        "request_throughput": len(requests) / load.duration_s,
        "output_throughput": written / load.duration_s,
        "total_token_throughput": (read + written) / load.duration_s,
    }
    counters = [one.counters for one in load.rounds if one.counters is not None]
    drafts, proposed, accepted = (
        sum(getattr(one, name) for one in counters) for name in ("drafts", "proposed", "accepted")
    )
    if len(counters) == len(load.rounds) and drafts and proposed:
        document |= {
            "spec_decode_acceptance_rate": 100 * accepted / proposed,
            "spec_decode_acceptance_length": 1 + accepted / drafts,
            "spec_decode_num_drafts": drafts,
            "spec_decode_draft_tokens": proposed,
            "spec_decode_accepted_tokens": accepted,
        }
    for name, times in {
        "ttft": list(map(_first_ms, requests)),
        "tpot": list(_token_ms(requests)),
        "itl": list(_gaps_ms(requests)),
        "e2el": list(map(_whole_ms, requests)),
    }.items():
        values = times or [0.0]
        document |= {
            f"mean_{name}_ms": fmean(values),
            f"median_{name}_ms": median(values),
            f"std_{name}_ms": pstdev(values),
            f"p99_{name}_ms": float(np.percentile(values, 99)),
        }
    return document


# -- AIPerf --------------------------------------------------------------------------------------


def _aiperf(load: _Load) -> Document:
    session, requests = load.session, load.requests
    read, written, failures = load.read, load.written, load.failures
    drafted = [request for request in requests if request.proposed]
    token_ms = list(_token_ms(requests))
    whole_s = [_whole_ms(request) / 1e3 for request in requests]
    records: dict[str, tuple[str, Sequence[float]]] = {
        "time_to_first_token": ("ms", list(map(_first_ms, requests))),
        "time_to_second_token": ("ms", [one.arrivals_us[1] / 1e3 for one in requests if one.arrivals_us[1:]]),
        "inter_token_latency": ("ms", token_ms),
        "inter_chunk_latency": ("ms", list(_gaps_ms(requests))),
        "request_latency": ("ms", list(map(_whole_ms, requests))),
        "decode_duration": ("ms", list(map(_decode_ms, requests))),
        "input_sequence_length": ("tokens", read),
        "output_sequence_length": ("tokens", written),
        "output_token_count": ("tokens", written),
        "output_token_throughput_per_user": ("tokens/sec/user", [1e3 / one for one in token_ms if one]),
        "e2e_output_token_throughput": (
            "tokens/sec/user",
            [tokens / whole for tokens, whole in zip(written, whole_s, strict=True) if whole],
        ),
        "spec_decode_accepted_draft_tokens": ("tokens", [one.accepted or 0 for one in drafted]),
        "spec_decode_draft_tokens": ("tokens", [one.proposed or 0 for one in drafted]),
        "spec_decode_draft_acceptance_rate": (
            "%",
            [100 * (one.accepted or 0) / (one.proposed or 1) for one in drafted],
        ),
    }
    totals: dict[str, tuple[str, float]] = {
        "request_count": ("requests", len(requests)),
        "request_throughput": ("requests/sec", len(requests) / load.duration_s),
        "output_token_throughput": ("tokens/sec", sum(written) / load.duration_s),
        "total_token_throughput": ("tokens/sec", (sum(read) + sum(written)) / load.duration_s),
        "total_isl": ("tokens", sum(read)),
        "total_osl": ("tokens", sum(written)),
        "total_output_tokens": ("tokens", sum(written)),
        "benchmark_duration": ("sec", load.duration_s),
    }
    if drafted:
        accepted, proposed = (
            sum(records[f"spec_decode_{name}_tokens"][1]) for name in ("accepted_draft", "draft")
        )
        totals |= {
            "total_accepted_draft_tokens": ("tokens", accepted),
            "total_draft_tokens": ("tokens", proposed),
            "spec_decode_overall_draft_acceptance_rate": ("%", 100 * accepted / proposed),
        }
    if failures:
        totals["error_request_count"] = ("requests", len(failures))
    return {
        "schema_version": "1.4",
        "benchmark_id": f"{session.id}-{load.name}",
        "start_time": load.rounds[0].started_at,
        "run_info": {
            "random_seed": session.seed,
            "run_label": load.arm.id,
            "variation_label": f"concurrency_{load.concurrency}",
            "variation_values": {"phases.profiling.concurrency": load.concurrency},
        },
        **{name: _aiperf_record(unit, values) for name, (unit, values) in records.items() if values},
        **{name: {"unit": unit, "avg": value} for name, (unit, value) in totals.items()},
        "error_summary": [
            {"error_details": {"message": message}, "count": count}
            for message, count in Counter(failures).items()
        ],
    }


def _aiperf_record(unit: str, values: Sequence[float]) -> Document:
    return {
        "unit": unit,
        "avg": fmean(values),
        **{f"p{share}": float(np.percentile(values, share)) for share in (1, 5, 10, 25, 50, 75, 90, 95, 99)},
        "min": min(values),
        "max": max(values),
        "std": pstdev(values),
        "count": len(values),
        "sum": math.fsum(values),
    }


# -- GuideLLM ------------------------------------------------------------------------------------

_GUIDELLM_SHARES = {
    "p001": 0.001, "p01": 0.01, "p05": 0.05, "p10": 0.1, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p90": 0.9, "p95": 0.95,
    "p99": 0.99, "p999": 0.999,
}  # fmt: skip


def _guidellm(load: _Load, index: int) -> Document:
    session, requests, failed = load.session, load.requests, len(load.failures)
    read, written, whole_ms = load.read, load.written, list(map(_whole_ms, requests))
    values: dict[str, Iterable[float]] = {
        "request_latency": [whole / 1e3 for whole in whole_ms],
        "prompt_token_count": read,
        "output_token_count": written,
        "total_token_count": map(sum, zip(read, written, strict=True)),
        "time_to_first_token_ms": map(_first_ms, requests),
    }
    weighed: dict[str, list[tuple[float, int]]] = {
        **{name: [(value, 1) for value in found] for name, found in values.items()},
        "time_per_output_token_ms": [
            (whole / tokens, tokens) for whole, tokens in zip(whole_ms, written, strict=True)
        ],
        "inter_token_latency_ms": list(
            zip(_token_ms(requests), [tokens - 1 for tokens in written if tokens > 1], strict=True)
        ),
    }
    rates = {
        "requests_per_second": len(requests),
        "prompt_tokens_per_second": sum(read),
        "output_tokens_per_second": sum(written),
        "tokens_per_second": sum(read) + sum(written),
    }
    strategy: Document = {"type_": "concurrent", "streams": load.concurrency}
    if session.rate is not None:
        strategy = {
            "type_": "poisson",
            "rate": session.rate,
            "max_concurrency": load.concurrency,
            "random_seed": session.seed,
        }
    return {
        "type_": "generative_benchmark",
        "config": {
            "id_": f"{session.id}-{load.name}",
            "run_id": session.id,
            "run_index": index,
            "strategy": strategy,
        },
        "start_time": datetime.fromisoformat(load.rounds[0].started_at).timestamp(),
        "duration": load.duration_s,
        "metrics": {
            "request_totals": {
                "successful": len(requests),
                "errored": failed,
                "incomplete": 0,
                "total": len(requests) + failed,
            },
            **{name: {"successful": {"mean": value / load.duration_s}} for name, value in rates.items()},
            **{name: {"successful": _guidellm_summary(found)} for name, found in weighed.items() if found},
        },
    }


def _guidellm_summary(found: Sequence[tuple[float, int]]) -> Document:
    """Of values with weights. A percentile is the smallest value at or below which that share of the weight lies."""
    values, weights = (np.array(column, dtype=float) for column in zip(*found, strict=True))
    mean = float(np.average(values, weights=weights))
    variance = float(np.average((values - mean) ** 2, weights=weights))
    at = np.quantile(values, list(_GUIDELLM_SHARES.values()), weights=weights, method="inverted_cdf")
    percentiles = dict(zip(_GUIDELLM_SHARES, at.tolist(), strict=True))
    distinct, place = np.unique(values, return_inverse=True)
    return {
        "mean": mean,
        "median": percentiles["p50"],
        "mode": float(distinct[np.bincount(place, weights).argmax()]),
        "variance": variance,
        "std_dev": math.sqrt(variance),
        "min": float(values.min()),
        "max": float(values.max()),
        "count": int(weights.sum()),
        "total_sum": float(values @ weights),
        "percentiles": percentiles,
    }


# -- times and their statistics ------------------------------------------------------------------


def _first_ms(request: ServedRequest) -> float:
    return request.arrivals_us[0] / 1e3


def _whole_ms(request: ServedRequest) -> float:
    return sum(request.arrivals_us) / 1e3


def _decode_ms(request: ServedRequest) -> float:
    return sum(request.arrivals_us[1:]) / 1e3


def _gaps_ms(requests: Iterable[ServedRequest]) -> Iterator[float]:
    """Times between events."""
    return (gap / 1e3 for request in requests for gap in request.arrivals_us[1:])


def _token_ms(requests: Iterable[ServedRequest]) -> Iterator[float]:
    """Of each request with two tokens or more: time after its first event ÷ tokens after its first, as all three programs
    compute it, even where the first event brought several."""
    return (_decode_ms(request) / (request.tokens - 1) for request in requests if request.tokens > 1)
