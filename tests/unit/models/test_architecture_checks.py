"""What a cut computes is compared with what it must compute, numbers that are none included."""

from __future__ import annotations

import copy

import pytest

from draftrank.errors import BuildError
from draftrank.models.architecture_checks import require_equal, require_every_layer, short_logits
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


def test_a_list_of_layers_that_the_model_does_not_run_is_refused():
    model = small_model("llama")
    model.model.spare = copy.deepcopy(model.model.layers)
    require_every_layer(model, "model.layers")
    with pytest.raises(BuildError, match=r"model\.spare of this llama model is not .* without number 0"):
        require_every_layer(model, "model.spare")


def test_a_layer_that_is_the_identity_by_its_weights_is_a_layer():
    model = small_model("llama")
    layer = model.model.layers[1]
    layer.self_attn.o_proj.weight.zero_()
    layer.mlp.down_proj.weight.zero_()
    require_every_layer(model, "model.layers")
