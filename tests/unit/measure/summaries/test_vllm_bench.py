"""Serving sessions in vLLM's own form, against figures by hand."""

from __future__ import annotations

import pytest

from draftrank.measure.records import BASELINE, CONTROL
from draftrank.measure.serving_records import ServingResult
from draftrank.measure.summaries.vllm_bench import vllm_bench_documents
from served_sessions import a_request, a_round, a_serving_result, a_serving_session, failed_request


def test_figures_are_those_of_the_requests_by_hand():
    rounds = (
        a_round(requests=(a_request(arrivals_us=(10_000, 20_000, 30_000)), failed_request(1)), wall_s=0.5),
        a_round(index=1, wall_s=9.0),  # measured again
        a_round(
            index=1, attempt=1, requests=(a_request(1, arrivals_us=(30_000, 40_000, 60_000)),), wall_s=0.25
        ),
    )
    result = ServingResult(session=a_serving_session(), rounds=rounds)
    ((name, found),) = vllm_bench_documents(result)
    assert name == f"{BASELINE}-1"
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


def test_every_arm_and_concurrency_has_a_document():
    names = [name for name, _ in vllm_bench_documents(a_serving_result())]
    assert names == [f"{arm}-{concurrency}" for arm in (BASELINE, CONTROL, "ngram") for concurrency in (1, 4)]
