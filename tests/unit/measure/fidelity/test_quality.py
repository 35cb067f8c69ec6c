"""Quality of outputs that need not be the target's own."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from draftrank.engine.backends.transformers.runtime import TransformersRuntime
from draftrank.engine.loop import Request, autoregressive
from draftrank.measure.fidelity.quality import is_correct, mean_log_likelihood, rouge_l
from models import small_model

ids = st.lists(st.integers(0, 5), min_size=1, max_size=12)


def longest_common(first, second):
    table = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
    for i, one in enumerate(first):
        for j, other in enumerate(second):
            table[i + 1][j + 1] = table[i][j] + 1 if one == other else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


@given(ids, ids)
def test_rouge_l_is_the_f1_of_the_longest_common_subsequence(output, baseline):
    common = longest_common(output, baseline)
    precision, recall = common / len(output), common / len(baseline)
    f1 = 2 * precision * recall / (precision + recall) if common else 0.0
    assert rouge_l(output, baseline) == pytest.approx(f1)


def test_log_likelihood_is_the_models_own():
    model = small_model("llama")
    prompt, output = [1, 5, 9], [7, 3, 3, 8]
    logits = model(torch.tensor([prompt + output])).logits[0].log_softmax(dim=-1)
    expected = sum(float(logits[len(prompt) - 1 + i, token]) for i, token in enumerate(output)) / 4
    assert mean_log_likelihood(TransformersRuntime(model), prompt, output) == pytest.approx(
        expected, abs=1e-5
    )
    assert mean_log_likelihood(TransformersRuntime(model), prompt, output[:1]) == pytest.approx(
        float(logits[2, 7]), abs=1e-5
    )


def test_the_targets_own_output_is_likelier_than_another():
    runtime = TransformersRuntime(small_model("llama"))
    own = autoregressive(runtime, Request((1, 5, 9), 12)).token_ids
    other = tuple((token + 3) % 61 for token in own)
    assert mean_log_likelihood(runtime, (1, 5, 9), own) > mean_log_likelihood(runtime, (1, 5, 9), other)
    assert math.isfinite(mean_log_likelihood(runtime, (1, 5, 9), other))


@pytest.mark.parametrize(
    ("text", "reference", "correct"),
    [
        ("so 3 + 4 = 7.", "7", True),
        ("The answer is 1,250", "#### 1250", True),
        ("7 apples, not 8", "7", False),
        ("no number", "7", False),
        ("it is -2.50", "-2.5", True),
        ("7", None, None),
        ("7", "no number", None),
    ],
)
def test_the_last_number_is_the_answer(text, reference, correct):
    assert is_correct(text, reference) is correct
