"""The targets that are declared with a source on the hub, checked on tiny models of their families and real depth."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from draftrank.building.surgery.eagle_head import new_eagle3_head, published_layers
from draftrank.building.working_draft import WorkingDraft
from draftrank.catalog.workspace import Workspace
from draftrank.models.architecture_checks import short_logits
from draftrank.models.forms import FEATURES
from models import small_model, small_tokenizer
from workspaces import REPOSITORY

WORKSPACE = Workspace.open(REPOSITORY)
SHAPES = {
    "gemma-2-2b-it": ("gemma2", 26),
    "gpt-oss-20b": ("gpt_oss", 24),
    "gpt2": ("gpt2", 12),
    "llama-2-7b-chat": ("llama", 32),
    "llama-3.1-8b-instruct": ("llama", 32),
    "llama-3.2-1b-instruct": ("llama", 16),
    "mistral-7b-instruct-v0.3": ("mistral", 32),
    "olmo-2-1b": ("olmo2", 16),
    "olmo-2-1b-instruct": ("olmo2", 16),
    "phi-3-mini-4k-instruct": ("phi3", 32),
    "qwen2.5-0.5b-instruct": ("qwen2", 24),
    "qwen3-0.6b": ("qwen3", 28),
    "qwen3-1.7b": ("qwen3", 28),
    "qwen3-4b": ("qwen3", 36),
    "qwen3-8b": ("qwen3", 36),
    "smollm2-1.7b-instruct": ("llama", 24),
}
"""Family and number of layers of each, by its publisher's configuration."""
ROWS = 10_000
"""Of a vocabulary: more than any recipe keeps."""


def test_every_target_of_the_hub_is_known_here_and_has_recipes():
    of_the_hub = {
        target.id for target in WORKSPACE.check().targets if type(target.source).__name__ == "HubSource"
    }
    assert of_the_hub == set(SHAPES)
    for target_id, (_, layers) in SHAPES.items():
        assert f"{layers}-layer" in WORKSPACE.target(target_id).description
        kinds = {recipe.draft.kind for recipe in recipes_of(target_id)}
        assert kinds == {"ngram", "suffix", "early_exit", "eagle"}, target_id


def recipes_of(target_id):
    return [WORKSPACE.recipe(target_id, path.stem) for path in WORKSPACE.recipe_paths(target_id)]


@pytest.mark.parametrize(
    ("shape", "targets"),
    [(shape, [name for name in SHAPES if SHAPES[name] == shape]) for shape in sorted({*SHAPES.values()})],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_recipes_fit_their_family_at_its_depth(shape, targets, tmp_path):
    family, layers = shape
    tokenizer = small_tokenizer()
    small_model(family, layers=layers, vocabulary=ROWS).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    for recipe in (recipe for target_id in targets for recipe in recipes_of(target_id)):
        draft = WorkingDraft(small_model(family, layers=layers, vocabulary=ROWS), tokenizer)
        found, model = draft.architecture, draft.model
        if recipe.draft.kind == "early_exit":
            count = recipe.draft.layers
            assert count == round(layers / 3)
            found.require_cut(model, range(count))
            assert short_logits(found.first_layers(model, count)).isfinite().all()
        elif recipe.draft.kind == "eagle":
            head, _, *trainings = recipe.draft.build_steps
            assert {step.kind for step in trainings} == {"distill"}
            for step in recipe.draft.build_steps:
                step.check(draft, SimpleNamespace(model_folder=tmp_path))
            read = published_layers(layers)
            states = found.states_of_layers(model, torch.arange(3, 11)[None], read)
            made, form = new_eagle3_head(model, read)
            assert head.kind == "eagle_head"
            assert form.layers == read
            assert getattr(made, FEATURES).reduce(states).shape == (1, 8, made.config.hidden_size)
