"""Steps stand where they make sense, or the recipe says why not."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from draftrank.engine.proposers.draft_model import EagleDraft, ModelDraft

DROP = {"kind": "drop_layers", "keep": 2, "select": "ends"}
FFN = {"kind": "prune_ffn", "keep_channels": 20}
HEAL = {"kind": "distill", "data": {"kind": "self_generated", "tokens": 1_000}}
INT8 = {"kind": "quantize", "scheme": "dynamic_int8"}
THIN = {"kind": "factorize", "keep_parameters": 0.5}
TIE = {"kind": "tie_layers", "blocks": 1}
TRIM = {"kind": "trim_vocabulary", "keep_tokens": 10}
SPARSE = {"kind": "sparsify", "method": "wanda", "sparsity": 0.5}
RANDOM = {"kind": "random"}


def declare(*steps):
    return ModelDraft.model_validate_json(json.dumps({"kind": "draft_model", "steps": steps}))


@pytest.mark.parametrize(
    "steps",
    [
        (DROP, FFN, HEAL, INT8),
        (FFN, DROP, HEAL, DROP, HEAL),
        (RANDOM, DROP, HEAL),
        (DROP, TRIM, HEAL, INT8),
        (DROP, HEAL, TRIM, INT8),
        (THIN, TIE, TRIM, HEAL),
        (SPARSE, HEAL),
    ],
)
def test_sensible_orders_are_taken(steps):
    assert len(declare(*steps).steps) == len(steps)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (
            (INT8, DROP),
            "quantize produces weights that later steps cannot change.*make quantize the last step",
        ),
        ((INT8, INT8), "quantize produces weights"),
        ((DROP, RANDOM), "random replaces the model that drop_layers made"),
        (
            (DROP, HEAL, FFN),
            "prune_ffn prunes a model that distill has already trained.*before distill, or train once more",
        ),
        ((TRIM, DROP), "drop_layers needs the architecture's own modules, and trim_vocabulary"),
        ((THIN, FFN), "put prune_ffn before factorize"),
        ((TIE, THIN), "put factorize before tie_layers"),
        ((SPARSE, FFN), "put prune_ffn before sparsify"),
        ((SPARSE, THIN), "factorize needs the architecture's own modules, and sparsify"),
        ((THIN, SPARSE), "sparsify needs the architecture's own modules, and factorize"),
        ((TIE, SPARSE), "put sparsify before tie_layers"),
    ],
)
def test_other_orders_are_refused_with_their_reason(steps, message):
    with pytest.raises(ValidationError, match=message):
        declare(*steps)


def eagle(*steps):
    return EagleDraft.model_validate_json(json.dumps({"kind": "eagle", "steps": steps}))


def test_the_state_of_an_eagle_head_alone_is_normed_and_once():
    """Before the build: the steps before it may train for hours."""
    normed = {"kind": "norm_before_residual"}
    with pytest.raises(ValidationError, match=r"has none \(fix: write `kind: eagle`"):
        declare(HEAL, normed)
    assert "norm before residual" in eagle(HEAL, normed, HEAL).traits
    with pytest.raises(ValidationError, match="write it once"):
        eagle(normed, HEAL, normed)


MATCHED = {**HEAL, "hidden_weight": 0.1}
READY = {"kind": "pretrained", "licence": "MIT", "source": {"kind": "local", "path": "model"}}
NF4 = {"kind": "quantize", "scheme": "nf4"}
GGUF = {"kind": "write_gguf"}
HEAD = {"kind": "factorize_head", "rank": 8}


@pytest.mark.parametrize(
    ("make", "steps", "message"),
    [
        (declare, (MATCHED,), "needs to know which of the target's layers.*put drop_layers before distill"),
        (
            declare,
            (DROP, {"kind": "merge_layers", "keep": 1}, MATCHED),
            "nothing else that changes the depth",
        ),
        (declare, (DROP, {"kind": "prune_hidden", "keep_channels": 8}, MATCHED), "remove prune_hidden"),
        (declare, (READY, DROP, MATCHED), "a ready-made model's came from none"),
        (eagle, (MATCHED,), "remove on_policy_share and hidden_weight"),
        (eagle, ({**HEAL, "on_policy_share": 0.5},), "remove on_policy_share and hidden_weight"),
        (eagle, ({"kind": "prune_hidden", "keep_channels": 8}, HEAL), "remove prune_hidden"),
        (declare, ({**HEAL, "ttt_steps": 2},), "write `kind: eagle`, or remove ttt_steps"),
        (
            declare,
            ({**HEAL, "data": {"kind": "self_generated", "tokens": 1_000, "sequence_tokens": 512}},),
            "a text of 2 sequences is too short",
        ),
        (declare, (TRIM, HEAL, TRIM), "trim_vocabulary has changed the head before"),
        (declare, (HEAD, HEAL, TRIM), "factorize_head has changed the head before"),
        (declare, (TRIM, HEAL, {**HEAD, "rank": 11}), "a head of 10 tokens has no rank 11"),
        (declare, (HEAD, HEAL, HEAD), "factorize_head stands twice"),
        (declare, (THIN, HEAL, {**THIN, "matrices": "attention"}), "factorize stands twice for the same"),
        (declare, (THIN, HEAL, NF4), "nf4 needs an ordinary model, and this one has factors"),
        (declare, (TRIM, TIE, HEAL, NF4), "has trimmed head, shared layers"),
        (eagle, (HEAL, NF4), "this one has EAGLE-3 head"),
        (declare, (TRIM, HEAL, GGUF), "GGUF cannot express trimmed head"),
    ],
)
def test_what_a_step_lacks_of_those_before_it_is_said_by_the_declaration(make, steps, message):
    """Some of these steps would be reached after hours."""
    with pytest.raises(ValidationError, match=message):
        make(*steps)


@pytest.mark.parametrize(
    ("make", "steps"),
    [
        (declare, (DROP, TIE, MATCHED)),
        (declare, ({**THIN, "matrices": "attention"}, {**THIN, "matrices": "feed_forward"})),
        (declare, (TRIM, {**HEAD, "rank": 10})),
        (declare, (SPARSE, NF4)),
        (declare, (TIE, HEAL, GGUF)),
        (eagle, ({**HEAL, "ttt_steps": 2},)),
    ],
)
def test_what_a_step_needs_is_enough(make, steps):
    assert make(*steps).steps
