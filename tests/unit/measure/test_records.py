"""Records refuse what cannot be true."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from draftrank.measure.machine.fingerprint import read_machine
from draftrank.measure.records import Trial

GOOD = {
    "arm": "a", "task": "t", "prompt": "p", "turn": 0, "repeat": 0, "position": 0, "process": 0,
    "started_at": "2026-01-01T00:00:00.000Z", "prompt_tokens": 3, "token_ids": [5, 6, 7, 8], "finish": "length",
    "steps": 2, "accept_histogram": [1, 1, 0], "offered": [2, 1], "proposed": 4, "draft_forwards": 4,
    "prefill_s": 0.1, "decode_s": 0.2, "propose_s": 0.05, "verify_s": 0.1,
}  # fmt: skip


def test_a_trial_that_adds_up():
    trial = Trial.model_validate(GOOD)
    assert (trial.decode_tokens, trial.accepted) == (3, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"token_ids": [5, 6, 7]}, "tokens differ from steps plus accepted"),
        ({"token_ids": []}, "at least one token"),
        ({"steps": 3}, "steps differ from the histogram"),
        ({"accept_histogram": [2, 0, 0]}, "tokens differ"),
        ({"offered": [2]}, "one entry fewer"),
        ({"decode_s": -0.1}, "greater than or equal to 0"),
        ({"decode_s": float("nan")}, "finite number"),
        ({"extra": 1}, "Extra inputs"),
    ],
)
def test_a_trial_that_does_not(change, message):
    with pytest.raises(ValidationError, match=message):
        Trial.model_validate({**GOOD, **change})


def test_the_token_hash_tells_outputs_apart():
    trial = Trial.model_validate(GOOD)
    other = Trial.model_validate({**GOOD, "token_ids": [5, 6, 78, 8]})
    assert trial.token_ids_sha256 != other.token_ids_sha256
    joined = Trial.model_validate({**GOOD, "token_ids": [56, 7, 8, 0]})
    assert trial.token_ids_sha256 != joined.token_ids_sha256


def test_this_machine_has_a_class():
    machine = read_machine("cpu")
    assert machine.machine_class == read_machine("cpu").machine_class
    assert machine.machine_class.replace("-", "").isalnum()
    assert machine.packages["torch"]
    assert machine.cores >= 1
