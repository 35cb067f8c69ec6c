"""Serving sessions in the forms of other load generators, against figures by hand and by numpy."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pytest

from draftrank.measure.records import BASELINE, CONTROL
from draftrank.measure.serving_records import Counters, Round, ServingResult
from draftrank.measure.summaries.other_clients import CLIENTS
from served_sessions import a_request, a_round, a_serving_result, a_serving_session, failed_request
from servings import a_serving

FILES = {
    "vllm-bench": "vllm-bench/{}-{}.json",
    "aiperf": "aiperf/{}-{}/profile_export_aiperf.json",
    "guidellm": "guidellm/{}/benchmarks.json",
}


def of_few_rounds(client: str, *, arm: str = BASELINE, **changes) -> dict:
    """Three requests in two rounds that count, one of them failed, and a round that was measured again."""
    rounds = (
        a_round(
            arm,
            requests=(a_request(arrivals_us=(10_000, 20_000, 30_000), **changes), failed_request(1)),
            wall_s=0.5,
            counters=Counters(drafts=4, proposed=12, accepted=6) if changes else None,
        ),
        a_round(arm, index=1, wall_s=9.0),  # measured again
        a_round(
            arm,
            index=1,
            attempt=1,
            requests=(a_request(1, arrivals_us=(30_000, 40_000, 60_000), **changes),),
            wall_s=0.25,
            counters=Counters(drafts=6, proposed=18, accepted=9) if changes else None,
        ),
    )
    ((name, document),) = CLIENTS[client](ServingResult(session=a_serving_session(), rounds=rounds))
    assert name == FILES[client].format(arm, 1)
    return document


def test_vllm_bench_by_hand():
    found = of_few_rounds("vllm-bench")
    assert (found["num_prompts"], found["completed"], found["failed"]) == (3, 2, 1)
    assert (found["duration"], found["total_input_tokens"], found["total_output_tokens"]) == (0.75, 14, 12)
    assert found["output_throughput"] == pytest.approx(16.0)
    assert found["total_token_throughput"] == pytest.approx(26 / 0.75)
    assert (found["mean_ttft_ms"], found["median_ttft_ms"]) == pytest.approx((20, 20))
    assert found["std_ttft_ms"] == pytest.approx(10)
    assert found["p99_ttft_ms"] == pytest.approx(29.8)
    assert found["mean_tpot_ms"] == pytest.approx(15)  # five tokens in 50 and in 100 ms
    assert found["mean_itl_ms"] == pytest.approx(37.5)
    assert found["mean_e2el_ms"] == pytest.approx(95)
    assert (found["request_rate"], found["max_concurrency"]) == ("inf", 1)
    assert found["date"] == "20261130-100500"
    assert not any(name.startswith("spec_decode") for name in found)


def test_vllm_bench_has_the_counters_of_the_server():
    found = of_few_rounds("vllm-bench", arm="ngram", accepted=3, proposed=6)
    assert {name: value for name, value in found.items() if name.startswith("spec_decode")} == {
        "spec_decode_num_drafts": 10,
        "spec_decode_draft_tokens": 30,
        "spec_decode_accepted_tokens": 15,
        "spec_decode_acceptance_rate": 50.0,
        "spec_decode_acceptance_length": 2.5,
    }


def test_aiperf_by_hand():
    found = of_few_rounds("aiperf", arm="ngram", accepted=3, proposed=4)
    assert found["schema_version"] == "1.4"
    assert found["run_info"]["variation_values"] == {"phases.profiling.concurrency": 1}
    assert found["request_count"] == {"unit": "requests", "avg": 2}
    assert found["error_request_count"] == {"unit": "requests", "avg": 1}
    assert found["error_summary"] == [{"error_details": {"message": "nothing came for 9 s"}, "count": 1}]
    assert found["benchmark_duration"] == {"unit": "sec", "avg": 0.75}
    assert found["output_token_throughput"]["avg"] == pytest.approx(16)
    assert found["time_to_second_token"]["avg"] == pytest.approx(30)
    assert found["decode_duration"]["avg"] == pytest.approx(75)
    assert found["inter_token_latency"]["avg"] == pytest.approx(15)
    assert found["output_token_throughput_per_user"]["max"] == pytest.approx(100)  # 10 ms a token
    assert found["e2e_output_token_throughput"]["max"] == pytest.approx(100)  # six tokens in 60 ms
    assert found["inter_chunk_latency"]["count"] == 4
    assert found["spec_decode_draft_acceptance_rate"]["avg"] == pytest.approx(75)
    assert (found["total_accepted_draft_tokens"]["avg"], found["total_draft_tokens"]["avg"]) == (6, 8)
    assert found["spec_decode_overall_draft_acceptance_rate"] == {"unit": "%", "avg": 75}


def test_a_plain_server_has_no_figures_of_speculation_and_no_errors_without_any():
    whole = ServingResult(session=a_serving_session(), rounds=(a_round(),))
    for client in CLIENTS:
        ((_, document),) = CLIENTS[client](whole)
        assert "spec_decode" not in str(document)
    ((_, found),) = CLIENTS["aiperf"](whole)
    assert "error_request_count" not in found
    assert found["error_summary"] == []


def test_guidellm_by_hand():
    (found,) = of_few_rounds("guidellm")["benchmarks"]
    assert found["config"]["strategy"] == {"type_": "concurrent", "streams": 1}
    assert found["start_time"] == datetime(2026, 11, 30, 10, 5, 0, 123_000, tzinfo=UTC).timestamp()
    metrics = found["metrics"]
    assert metrics["request_totals"] == {"successful": 2, "errored": 1, "incomplete": 0, "total": 3}
    assert metrics["request_latency"]["successful"]["mean"] == pytest.approx(0.095)
    assert metrics["output_tokens_per_second"] == {"successful": {"mean": pytest.approx(16)}}
    assert metrics["requests_per_second"]["successful"]["mean"] == pytest.approx(2 / 0.75)
    assert metrics["time_per_output_token_ms"]["successful"]["total_sum"] == pytest.approx(190)
    assert metrics["inter_token_latency_ms"]["successful"]["count"] == 10
    assert metrics["inter_token_latency_ms"]["successful"]["median"] == pytest.approx(10)


def drafted(result: ServingResult, concurrency: int) -> list[Round]:
    return [one for one in result.rounds if (one.arm, one.concurrency) == ("ngram", concurrency)]


def test_distributions_are_those_of_numpy():
    result = a_serving({"ngram": 1.3}, concurrencies=(1, 4), noise=0.2)
    documents = {client: dict(of(result)) for client, of in CLIENTS.items()}
    for place, concurrency in enumerate((1, 4)):
        requests = [request for one in drafted(result, concurrency) for request in one.requests]
        ttft = np.array([request.arrivals_us[0] for request in requests]) / 1e3
        whole = np.array([sum(request.arrivals_us) for request in requests]) / 1e3
        tokens = np.array([request.tokens for request in requests])
        between = (whole - ttft) / (tokens - 1)

        bench = documents["vllm-bench"][f"vllm-bench/ngram-{concurrency}.json"]
        for name, values in (("ttft", ttft), ("tpot", between), ("e2el", whole)):
            expected = [values.mean(), np.median(values), values.std(), np.percentile(values, 99)]
            told = [bench[f"{kind}_{name}_ms"] for kind in ("mean", "median", "std", "p99")]
            assert told == pytest.approx(expected)

        aiperf = documents["aiperf"][f"aiperf/ngram-{concurrency}/profile_export_aiperf.json"]
        for name, values in (
            ("time_to_first_token", ttft),
            ("inter_token_latency", between),
            ("request_latency", whole),
            ("output_sequence_length", tokens),
        ):
            shares = (1, 5, 10, 25, 50, 75, 90, 95, 99)
            assert [aiperf[name][f"p{share}"] for share in shares] == pytest.approx(
                np.percentile(values, shares)
            )
            assert aiperf[name]["std"] == pytest.approx(values.std())
            assert (aiperf[name]["count"], aiperf[name]["sum"]) == (len(values), pytest.approx(values.sum()))

        report = documents["guidellm"]["guidellm/ngram/benchmarks.json"]
        metrics = report["benchmarks"][place]["metrics"]
        assert report["benchmarks"][place]["config"]["strategy"]["streams"] == concurrency
        for name, values in (
            ("time_to_first_token_ms", ttft),
            ("output_token_count", tokens),
            ("time_per_output_token_ms", np.repeat(whole / tokens, tokens)),
            ("inter_token_latency_ms", np.repeat(between, tokens - 1)),
        ):
            found = metrics[name]["successful"]
            shares = [0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999]
            assert list(found["percentiles"].values()) == pytest.approx(
                np.quantile(values, shares, method="inverted_cdf")
            )
            assert (found["mean"], found["variance"]) == pytest.approx((values.mean(), values.var()))
            assert (found["count"], found["total_sum"]) == (len(values), pytest.approx(values.sum()))
            assert np.sum(values == found["mode"]) == np.unique(values, return_counts=True)[1].max()


@pytest.mark.parametrize("client", CLIENTS)
def test_every_arm_and_concurrency_has_a_file(client):
    names = [name for name, _ in CLIENTS[client](a_serving_result())]
    expected = [
        FILES[client].format(arm, concurrency)
        for arm in (BASELINE, CONTROL, "ngram")
        for concurrency in (1, 4)
    ]
    assert names == list(dict.fromkeys(expected))


def test_open_loops_tell_their_rate():
    result = a_serving({}, concurrencies=(4,), rounds=2, rate=2.0)
    result = result.model_copy(
        update={"rounds": tuple(one.model_copy(update={"rate": 2.0}) for one in result.rounds)}
    )
    assert dict(CLIENTS["vllm-bench"](result))[f"vllm-bench/{BASELINE}-4.json"]["request_rate"] == 2.0
    (benchmark,) = dict(CLIENTS["guidellm"](result))[f"guidellm/{BASELINE}/benchmarks.json"]["benchmarks"]
    assert benchmark["config"]["strategy"] == {
        "type_": "poisson",
        "rate": 2.0,
        "max_concurrency": 4,
        "random_seed": 0,
    }
