"""What a cut computes is compared with what it must compute, numbers that are none included."""

from __future__ import annotations

import pytest

from draftrank.errors import BuildError
from draftrank.models.architecture_checks import require_equal, short_logits
from models import small_model


def test_a_model_equals_itself():
    model = small_model("llama")
    require_equal(short_logits(model), model, "nothing")


@pytest.mark.parametrize("factor", [float("nan"), float("inf"), 1.5])
def test_other_logits_are_refused(factor):
    model = small_model("llama")
    expected = short_logits(model)
    model.lm_head.weight.data[3] *= factor
    with pytest.raises(
        BuildError, match="dropping a layer changes what the others of this llama model compute"
    ):
        require_equal(expected, model, "dropping a layer")
