"""What holds for every kind of step: same recipe, same weights; and all of them compose."""

from __future__ import annotations

import json

import pytest
import torch

from draftrank import kinds
from draftrank.errors import BuildError
from draftrank.models.loading import load_model, load_tokenizer

DATA = {"kind": "self_generated", "tokens": 1_000, "sequence_tokens": 64}
DISTILL = {"kind": "distill", "data": DATA, "batch_sequences": 4, "learning_rate": 0.01}
STEPS = [
    {"kind": "random", "seed": 3},
    {"kind": "eagle_head", "aux_hidden_states": [1, 3]},
    {"kind": "drop_layers", "keep": 2, "select": "block_influence"},
    {"kind": "drop_layers", "keep": 2, "select": "angular"},
    {"kind": "drop_layers", "keep": 2, "select": "loss"},
    {"kind": "merge_layers", "keep": 2},
    {"kind": "prune_ffn", "keep_channels": 24, "importance": "taylor"},
    {"kind": "prune_heads", "keep_heads_per_group": 1},
    {"kind": "prune_hidden", "keep_channels": 16},
    {"kind": "factorize", "keep_parameters": 0.5},
    {"kind": "tie_layers", "blocks": 2},
    {"kind": "trim_vocabulary", "keep_tokens": 40},
    {"kind": "factorize_head", "rank": 8},
    {"kind": "sparsify", "method": "sparsegpt", "sparsity": 0.5},
    DISTILL,
    {"kind": "quantize", "scheme": "dynamic_int8"},
]
NOT_FOR = {("prune_heads", "gpt2"), ("prune_hidden", "gpt2")}
SPARSE_HYBRID = [
    {"kind": "drop_layers", "keep": 3, "select": "block_influence"},
    {"kind": "prune_ffn", "keep_channels": 24},
    {"kind": "trim_vocabulary", "keep_tokens": 200},
    {"kind": "factorize_head", "rank": 8},
    {"kind": "sparsify", "method": "wanda", "pattern": "2:4"},
    DISTILL,
    {"kind": "quantize", "scheme": "dynamic_int8"},
]
THIN_HYBRID = [
    {"kind": "merge_layers", "keep": 3},
    {"kind": "factorize", "keep_parameters": 0.8, "matrices": "attention"},
    {"kind": "tie_layers", "blocks": 2},
    DISTILL,
    {"kind": "quantize", "scheme": "dynamic_int8", "keep_precise": ["lm_head"]},
]
EAGLE_HYBRID = [
    {"kind": "eagle_head", "aux_hidden_states": [1, 2, 3]},
    {"kind": "trim_vocabulary", "keep_tokens": 200},
    {"kind": "sparsify", "method": "wanda", "pattern": "2:4"},
    {"kind": "norm_before_residual"},
    DISTILL | {"ttt_steps": 2},
    {"kind": "quantize", "scheme": "dynamic_int8"},
]
OF_LAYERS = {
    "eagle_head",
    "drop_layers",
    "merge_layers",
    "prune_ffn",
    "prune_heads",
    "prune_hidden",
    "factorize",
    "tie_layers",
    "sparsify",
}
IDS = torch.arange(3, 43).reshape(2, 20)


def name_of(step):
    return "-".join(str(step[field]) for field in ("kind", "select", "method") if field in step)


def test_no_kind_of_step_is_left_out():
    # `pretrained` needs a model of somebody else, `write_gguf` a target that is a file: see test_origins and
    # test_llama_cpp_session; `norm_before_residual` needs a head and stands in a hybrid
    elsewhere = {"pretrained", "write_gguf", "norm_before_residual"}
    assert {step["kind"] for step in STEPS} == set(kinds.STEPS) - elsewhere


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt2"])
@pytest.mark.parametrize("step", STEPS, ids=name_of)
def test_the_same_recipe_gives_the_same_weights(build, make_target, architecture, step):
    _, folder = make_target(architecture)
    if (step["kind"], architecture) in NOT_FOR:
        with pytest.raises(BuildError, match=r"gpt2|GPT-2"):
            build(step, architecture=architecture)
        return
    first, second = (build(step, architecture=architecture, cache=place) for place in "ab")
    assert first.folder != second.folder
    assert first.weights_sha256 == second.weights_sha256
    logits = load_model(first.folder, "fp32", "cpu")(IDS).logits
    assert logits.shape == (2, 20, len(load_tokenizer(folder.path)))
    assert not logits.isnan().any()


def test_steps_that_need_no_layers_run_where_none_are_found(build):
    """HRM runs two stacks several times, so that no list is as long as its configuration says."""
    steps = [
        {"kind": "trim_vocabulary", "keep_tokens": 200},
        {"kind": "factorize_head", "rank": 8},
        DISTILL | {"learning_rate": 5e-4, "passes": 8},
        {"kind": "quantize", "scheme": "dynamic_int8"},
    ]
    built = build(*steps, architecture="hrm_text")
    notes = json.loads((built.folder / "draftrank.json").read_text())["notes"]["distillation"]
    assert notes["last_loss"] < notes["first_loss"]


@pytest.mark.parametrize("step", [step for step in STEPS if step["kind"] in OF_LAYERS], ids=name_of)
def test_steps_that_need_layers_are_refused_where_none_are_found(build, step):
    with pytest.raises(
        BuildError, match=r"cannot be done: the layers of the architecture 'hrm_text' are not found"
    ):
        build(step, architecture="hrm_text")


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt2"])
@pytest.mark.parametrize(
    ("steps", "forms"),
    [
        (SPARSE_HYBRID, {"trimmed_head", "semi_structured", "dynamic_int8"}),
        (THIN_HYBRID, {"low_rank", "tied_layers", "dynamic_int8"}),
        (EAGLE_HYBRID, {"eagle3", "trimmed_head", "semi_structured", "dynamic_int8"}),
    ],
    ids=["sparse", "thin", "eagle"],
)
def test_steps_of_all_families_compose(build, make_target, architecture, steps, forms):
    _, folder = make_target(architecture)
    built = build(*steps, architecture=architecture)
    facts = json.loads((built.folder / "draftrank.json").read_text())
    assert {form["form"] for form in facts["forms"]} == forms
    assert facts["forms"][-1]["form"] == "dynamic_int8"
    assert facts["corpora"]
    logits = load_model(built.folder, "fp32", "cpu")(IDS).logits
    assert not logits.isnan().any()
    if steps is SPARSE_HYBRID:
        assert len(facts["notes"]["kept_layers"]) == 3
        assert facts["notes"]["zeros"] == pytest.approx(0.5)
        assert (logits == float("-inf")).sum(-1).unique().tolist() == [logits.shape[-1] - 200]
    assert built.parameters < folder.parameters
