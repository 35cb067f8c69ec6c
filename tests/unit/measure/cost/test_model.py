"""The cost model: exact where the counts say so, marked where it guesses, blind to drift."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders import arm_of, result, trial
from draftrank.measure.cost.forward_times import ForwardTimes
from draftrank.measure.cost.model import MAX_K, predict
from draftrank.measure.cost.step_counts import StepCounts
from draftrank.measure.records import ForwardLatency
from draftrank.measure.summaries.summary import summarise


def latency(part, tokens, seconds, context=64):
    return ForwardLatency(part=part, tokens=tokens, context=context, median_s=seconds, samples=5)


TIMES = tuple(
    [latency("target", tokens, 0.1 + 0.01 * (tokens - 1)) for tokens in range(1, 10)]
    + [latency("draft", 1, 0.02), latency("draft", 2, 0.025)]
)


def trial_of(steps, k, **changes):
    """A trial whose steps proposed and accepted so many tokens."""
    histogram = tuple(sum(accepted == n for _, accepted in steps) for n in range(k + 1))
    sizes = tuple(sum(proposed == n for proposed, _ in steps) for n in range(k + 1))
    offered = tuple(sum(p > n and a >= n for p, a in steps) for n in range(k))
    proposed = sum(p for p, _ in steps)
    counts = {"offered": offered, "proposed": proposed, "draft_forwards": proposed, "proposal_sizes": sizes}
    return trial("d", histogram=histogram, **(counts | changes))


step_lists = st.integers(1, 6).flatmap(
    lambda k: st.tuples(
        st.just(k),
        st.lists(
            st.integers(0, k).flatmap(lambda m: st.tuples(st.just(m), st.integers(0, m))),
            min_size=1,
            max_size=30,
        ),
    )
)


@given(step_lists, st.integers(1, 6))
def test_a_smaller_k_follows_exactly_from_what_was_seen(seen, smaller):
    k, steps = seen
    smaller = min(k, smaller)
    cut = [(min(m, smaller), min(a, smaller)) for m, a in steps]
    found = StepCounts.of([trial_of(steps, k)]).at(smaller)
    assert found.steps == len(steps)
    assert found.emitted == pytest.approx(sum(1 + a for _, a in cut))
    assert found.sizes == tuple(sum(m == n for m, _ in cut) for n in range(smaller + 1))
    assert found.full == pytest.approx(sum(m > 0 and a == m for m, a in cut))
    assert found.draft_forwards == sum(m for m, _ in cut)


def test_the_formula_of_the_methodology():
    k, steps = 3, [(3, 3)] * 4 + [(3, 0)] * 6
    found = predict(arm_of("d", k, latencies=TIMES), [trial_of(steps, k)], [])
    length, plain = 2.2, 0.1
    step = 3 * 0.02 + 0.4 * 0.005 + 0.13
    assert found.speedup == pytest.approx(length * plain / step)
    assert found.tasks == {"chat": pytest.approx(found.speedup)}
    assert (found.engine_efficiency, found.step) == (None, None)
    assert found.bounds.free_draft == pytest.approx(length * plain / 0.13)
    assert found.bounds.perfect_draft == pytest.approx(4 * plain / (2 * 0.02 + 0.025 + 0.13))
    assert found.bounds.ceiling == pytest.approx(4 * plain / 0.13)


def test_further_tokens_are_assumed_to_be_accepted_as_the_last_one_was_and_marked():
    steps = [(2, 2)] * 4 + [(2, 1)] * 4 + [(2, 0)] * 8
    found = predict(arm_of("d", 2, latencies=TIMES), [trial_of(steps, 2)], [])
    assert [at.extrapolated for at in found.by_k] == [False] * 2 + [True] * (MAX_K - 2)
    assert [at.acceptance_length for at in found.by_k[:4]] == pytest.approx([1.5, 1.75, 1.875, 1.9375])
    assert found.by_k[1].speedup == found.speedup
    assert found.best == max(found.by_k, key=lambda at: at.speedup)


@given(step_lists)
def test_a_free_and_perfect_draft_bounds_every_prediction(seen):
    k, steps = seen
    found = predict(arm_of("d", k, latencies=TIMES), [trial_of(steps, k)], [])
    slack = 1 + 1e-9
    assert found.speedup <= found.bounds.free_draft * slack <= found.bounds.ceiling * slack**2
    assert found.bounds.perfect_draft <= found.bounds.ceiling * slack


def modelled(slowness=1.0, loop=1.0):
    """A session whose trials took exactly what the model says, in minutes `slowness` times as slow as those
    in which the forwards were timed, in a loop that makes decoding `loop` times as long."""
    steps = [(3, 3), (3, 1), (3, 0), (3, 2), (1, 1), (0, 0)]
    emitted = sum(1 + a for _, a in steps)
    seconds = {
        "baseline": slowness * emitted * 0.1,
        "d": slowness * (13 * 0.02 + 2 * 0.005 + sum(0.1 + 0.01 * m for m, _ in steps)),
    }

    def change(found):
        if found.arm != "d":
            took = seconds["baseline"]
            return trial(
                found.arm, **_cell(found), tokens=emitted + 1, decode_s=took, verify_s=took, prompt_tokens=50
            )
        return trial_of(
            steps,
            3,
            **_cell(found),
            decode_s=loop * seconds["d"],
            propose_s=slowness * 0.27,
            verify_s=slowness * 0.73,
            prompt_tokens=50,
        )

    return summarise(result({"d": 1.0}, arms=[arm_of("d", latencies=TIMES)], change=change))


def _cell(found):
    return {"task": found.task, "prompt": found.prompt, "repeat": found.repeat}


def the_draft(summary):
    return next(arm for arm in summary.arms if arm.arm.id == "d")


def test_a_session_that_follows_the_model_is_predicted_whatever_the_minutes_were_like():
    quiet, slow = the_draft(modelled()), the_draft(modelled(slowness=1.7))
    for arm in (quiet, slow):
        assert arm.prediction.speedup == pytest.approx(arm.speedup.value, rel=1e-6)
        assert arm.prediction.engine_efficiency == pytest.approx(1.0, rel=1e-6)
        assert arm.prediction.step.predicted_ms == pytest.approx(arm.prediction.step.total_ms, rel=1e-6)
    assert slow.prediction.speedup == quiet.prediction.speedup
    assert slow.prediction.step.draft_ms == pytest.approx(1.7 * quiet.prediction.step.draft_ms)


def test_what_the_loop_costs_shows_as_efficiency():
    arm = the_draft(modelled(loop=1.25))
    assert arm.prediction.engine_efficiency == pytest.approx(1 / 1.25)
    step = arm.prediction.step
    assert step.rest_ms == pytest.approx(0.25 * step.predicted_ms)
    assert step.total_ms == pytest.approx(1.25 * step.predicted_ms)


def test_autoregressive_arms_and_arms_without_times_are_not_predicted():
    summary = modelled()
    assert [arm.prediction is None for arm in summary.arms] == [True, True, False]
    steps = [trial_of([(3, 1)], 3)]
    assert predict(arm_of("d", latencies=()), steps, []) is None
    assert predict(arm_of("d", latencies=TIMES), [], []) is None
    targets_only = tuple(entry for entry in TIMES if entry.part == "target")
    assert predict(arm_of("d", latencies=targets_only), steps, []) is None


def test_a_draft_without_a_model_pays_for_its_look_ups():
    targets_only = tuple(entry for entry in TIMES if entry.part == "target")
    steps = [(3, 2), (0, 0), (3, 0)]
    found = predict(
        arm_of("d", latencies=targets_only), [trial_of(steps, 3, draft_forwards=0, propose_s=0.01)], []
    )
    assert found.speedup == pytest.approx(5 * 0.1 / (2 * 0.13 + 0.1 + 0.01))


def test_trials_of_older_versions_are_estimated_from_their_sums():
    steps = [(3, 3), (3, 0), (3, 1), (0, 0)]
    told, untold = trial_of(steps, 3), trial_of(steps, 3, proposal_sizes=None)
    arm = arm_of("d", latencies=TIMES)
    assert predict(arm, [untold], []).speedup == pytest.approx(predict(arm, [told], []).speedup)


def test_times_between_those_taken_are_interpolated_and_beyond_them_stated_otherwise():
    times = ForwardTimes.of(
        [
            latency("target", 1, 0.1, 100),
            latency("target", 3, 0.2, 100),
            latency("target", 1, 0.2, 300),
            latency("target", 3, 0.4, 300),
        ]
    )
    assert times.target_s(2, 100) == pytest.approx(0.15)
    assert times.target_s(2, 200) == pytest.approx(0.225)
    assert times.target_s(5, 100) == pytest.approx(0.3)
    assert times.target_s(1, 10) == 0.1
    assert times.target_s(1, 9000) == 0.2
    assert not times.has_draft
    assert ForwardTimes.of([latency("target", 1, 0.0), latency("draft", 1, 0.1)]) is None
