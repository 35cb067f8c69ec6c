"""How much rounding is looked at, and on which texts."""

from __future__ import annotations

import pytest
import torch

from draftrank.engine.backends.transformers.runtime import TransformersRuntime
from draftrank.measure.fidelity.numerics import largest_deviation, measure_numerics
from draftrank.progress import SilentProgress
from models import small_model


def runtime(dtype):
    return TransformersRuntime(small_model("llama").to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_token_after_the_first_counts_once_for_each_size(dtype):
    texts = [((5, 6, 7), tuple(range(8, 20))), ((9,), (10, 11)), ((4,), (8,))]
    with SilentProgress().stage("test", 3) as stage:
        found = measure_numerics(runtime(dtype), texts, (2, 4), stage)
    assert found.positions == 2 * (11 + 1)
    assert len(found.quantiles) == len(found.gap_quantiles) == 101
    assert list(found.gap_quantiles) == sorted(found.gap_quantiles)
    if dtype == torch.float32:
        assert found.quantiles[-1] < 1e-3  # rounding is there, and tiny beside the gaps
        assert found.gap_quantiles[50] > 10 * found.quantiles[-1]


def test_outputs_of_a_single_token_say_nothing():
    with SilentProgress().stage("test", 1) as stage:
        found = measure_numerics(runtime(torch.bfloat16), [((4,), (8,))], (2,), stage)
    assert (found.positions, found.quantiles, found.gap_quantiles) == (0, (), ())


def test_a_deviation_is_that_of_the_gap_between_the_two_best_tokens():
    texts = [((5, 6, 7), tuple(range(8, 20))), ((9,), (10, 11)), ((4,), (8,))]
    rounding, exact = small_model("llama").to(torch.bfloat16), small_model("llama")
    with SilentProgress().stage("test", 3) as stage:
        found = largest_deviation(TransformersRuntime(rounding), TransformersRuntime(exact), texts, stage)
        none = largest_deviation(TransformersRuntime(exact), TransformersRuntime(exact), texts, stage)
    changes = []
    for prompt, output in texts:
        for end in range(1, len(output)):
            text = torch.tensor([[*prompt, *output[:end]]])
            rows = [model(text).logits[0, -1].float() for model in (rounding, exact)]
            first, second = rows[0].topk(2).indices
            gaps = [row[first] - row[second] for row in rows]
            changes.append(abs(float(gaps[0] - gaps[1])))
    assert found == pytest.approx(max(changes), rel=0.5)  # bf16 itself rounds by the size of a forward
    assert found > 100 * none
