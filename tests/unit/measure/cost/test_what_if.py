"""Predictions for another machine: what they rest on, and what they refuse to guess."""

from __future__ import annotations

import pytest

from builders import MACHINE, arm_of, build, result, sha
from draftrank.errors import InvalidInputError, MissingDataError
from draftrank.measure.cost.what_if import predict_elsewhere
from draftrank.measure.records import ForwardLatency


def timed(target_s, draft_s=None):
    found = [
        ForwardLatency(part="target", tokens=tokens, context=64, median_s=target_s, samples=5)
        for tokens in range(1, 5)
    ]
    if draft_s is not None:
        found.append(ForwardLatency(part="draft", tokens=1, context=64, median_s=draft_s, samples=5))
    return tuple(found)


def model(name, recipe="steps", weights="weights"):
    made = build(name, weights_sha256=sha(weights))
    return made.model_copy(
        update={"recipe": {**made.recipe, "draft": {"kind": "draft_model", "steps": recipe}}}
    )


def session(speedups, arms, machine="cpu-2core", **changes):
    where = MACHINE.model_copy(update={"machine_class": machine})
    return result(speedups, arms=arms, machine=where, **changes)


def here(draft=None):
    return session({"a": 2.0}, [arm_of("a", draft=draft or model("a"), latencies=timed(0.1, 0.01))])


def there(arm, machine="gpu-x", **changes):
    return session({arm.id: 1.2}, [arm], machine, id="20261102-there", **changes)


def test_acceptance_from_here_and_times_from_there():
    # Every step accepts three of three tokens; there a draft forward costs half a target forward.
    results = [here(), there(arm_of("a", draft=model("a"), latencies=timed(0.2, 0.1)))]
    found = predict_elsewhere(results, "a", "gpu-x")
    assert found.prediction.speedup == pytest.approx(4 * 0.2 / (3 * 0.1 + 0.2))
    assert found.prediction.bounds.ceiling == pytest.approx(4.0)
    assert (found.machine_class, found.times.id, found.times_arm) == ("gpu-x", "20261102-there", "a")
    own = predict_elsewhere(results, "a", "cpu-2core")
    assert own.prediction.speedup == pytest.approx(4 * 0.1 / (3 * 0.01 + 0.1))


@pytest.mark.parametrize(
    "twin", [model("b", recipe="other steps"), model("b", weights="other weights")], ids=["weights", "recipe"]
)
def test_a_draft_of_the_same_weights_or_recipe_stands_in(twin):
    found = predict_elsewhere([here(), there(arm_of("b", draft=twin, latencies=timed(0.2, 0.1)))], "a", "gpu")
    assert found.times_arm == "b"
    assert "a forward costs what that of b costs" in found.assumptions


def test_a_draft_without_a_model_needs_only_the_targets_times():
    plain = session(
        {"n": 2.0},
        [arm_of("n", latencies=timed(0.1))],
        change=lambda one: one.model_copy(update={"draft_forwards": 0, "propose_s": 0.0}),
    )
    other = arm_of("b", draft=model("b"), latencies=timed(0.3, 0.1))
    found = predict_elsewhere([plain, there(other)], "n", "gpu-x")
    assert found.prediction.speedup == pytest.approx(4.0)
    assert any("looking tokens up" in sentence for sentence in found.assumptions)


def stranger(name="b"):
    return arm_of(name, draft=model(name, "other steps", "other weights"), latencies=timed(0.2, 0.1))


@pytest.mark.parametrize(
    ("arm", "changes", "message"),
    [
        (stranger(), {}, "no draft with the weights or the recipe of 'a' was timed on gpu-x"),
        (
            arm_of("b", draft=model("b"), latencies=timed(0.2, 0.1)),
            {"dtype": "bf16"},
            "in transformers bf16, none .* in transformers fp32",
        ),
        (stranger(), {"target": "another", "target_weights_sha256": sha("x")}, "nothing of the target"),
    ],
)
def test_what_is_missing_is_said_with_the_command_that_measures_it(arm, changes, message):
    with pytest.raises(MissingDataError, match=message) as caught:
        predict_elsewhere([here(), there(arm, **changes)], "a", "gpu-x")
    assert "draftrank run tiny-target --draft a --backend transformers --dtype fp32" in str(caught.value)


def test_unknown_and_ambiguous_names_are_refused():
    with pytest.raises(MissingDataError, match="no session has trials of 'z'"):
        predict_elsewhere([here()], "z", "cpu")
    with pytest.raises(InvalidInputError, match=r"no machine class with results.*one of cpu-2core"):
        predict_elsewhere([here()], "a", "tpu")
    twins = [here(), there(stranger(), "cpu-4core")]
    with pytest.raises(InvalidInputError, match="may be several machines"):
        predict_elsewhere(twins, "a", "cpu")
    other = session(
        {"a": 1.0},
        [arm_of("a", draft=model("a"))],
        id="20261103-o",
        target="second",
        created_at="2026-11-03T1Z",
    )
    with pytest.raises(InvalidInputError, match="second, tiny-target"):
        predict_elsewhere([here(), other], "a", "cpu-2core")


def test_an_older_recipe_under_the_same_id_is_history():
    older = session(
        {"a": 2.0},
        [
            arm_of(
                "a",
                draft=model("a").model_copy(update={"recipe_sha256": sha("old")}),
                latencies=timed(0.1, 0.09),
            )
        ],
        id="20261001-old",
        created_at="2026-10-01T10:00:00Z",
    )
    assert predict_elsewhere([older, here()], "a", "cpu-2core").acceptance.id == "20261101-a"
