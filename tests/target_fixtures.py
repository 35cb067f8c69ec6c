"""Small random targets with a real byte-level tokenizer, saved as ordinary folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from draftrank.building.pipeline import BuiltDraft, build_draft
from draftrank.building.working_draft import BuildContext, WorkingDraft
from draftrank.catalog.recipe import Recipe
from draftrank.catalog.sources.base import FetchContext
from draftrank.catalog.target import Target
from draftrank.models.attention_windows import context_window
from draftrank.models.loading import load_model, load_tokenizer
from draftrank.models.target_folder import TargetFolder, ensure_target
from draftrank.progress import Progress, SilentProgress
from models import ARCHITECTURES, small_model, small_tokenizer

CHATML = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LAYERS = 4


@pytest.fixture(autouse=True)
def _one_thread():
    """As many threads in every test, so that equal work gives equal bits; one, because it is small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., PreTrainedTokenizerBase]:
    def make(template: str | None = CHATML) -> PreTrainedTokenizerBase:
        return small_tokenizer(template)

    return make


@pytest.fixture(scope="session")
def make_target(tmp_path_factory, make_tokenizer) -> Callable[..., tuple[Target, TargetFolder]]:
    """Saves a random target of an architecture and prepares it as `ensure_target` does."""
    made: dict[tuple[Any, ...], tuple[Target, TargetFolder]] = {}

    def make(architecture: str = "llama", prompt_format: str = "chat") -> tuple[Target, TargetFolder]:
        key = (architecture, prompt_format)
        if key not in made:
            root = tmp_path_factory.mktemp("targets")
            tokenizer = make_tokenizer(CHATML if prompt_format == "chat" else None)
            depth = {"layers": LAYERS} if architecture in ARCHITECTURES else {}  # others list their layers
            model = small_model(architecture, **depth, vocabulary=len(tokenizer))
            model.save_pretrained(root / "model")
            tokenizer.save_pretrained(root / "model")
            fields = {
                "schema_version": 1,
                "id": "tiny",
                "title": "Tiny",
                "licence": "Apache-2.0",
                "source": {"kind": "local", "path": "model"},
                "prompt_format": prompt_format,
                **({} if context_window(model.config) else {"context_window": 256}),
            }
            target = Target.model_validate_json(json.dumps(fields))
            made[key] = target, ensure_target(target, FetchContext(root / "cache", (root,)))
        return made[key]

    return make


@pytest.fixture
def make_context(tmp_path, make_target) -> Callable[..., BuildContext]:
    def make(
        architecture: str = "llama", prompt_format: str = "chat", scratch: str = "scratch", progress=None
    ) -> BuildContext:
        target, folder = make_target(architecture, prompt_format)
        path = tmp_path / scratch
        path.mkdir(exist_ok=True)
        return BuildContext(
            target=target,
            target_folder=folder.path,
            target_weights_sha256=folder.weights_sha256,
            scratch=path,
            device="cpu",
            fetch=FetchContext(tmp_path / "cache", (tmp_path,), progress=progress or SilentProgress()),
        )

    return make


@pytest.fixture
def make_draft() -> Callable[[BuildContext], WorkingDraft]:
    def make(context: BuildContext) -> WorkingDraft:
        model = load_model(context.target_folder, "fp32", "cpu")
        return WorkingDraft(model, load_tokenizer(context.target_folder))

    return make


@pytest.fixture
def make_recipe() -> Callable[..., Recipe]:
    def make(*steps: dict[str, Any], draft: dict[str, Any] | None = None, **changes: Any) -> Recipe:
        # a head's first step is no step of a draft model
        kind = "cascade" if steps and steps[0]["kind"] == "eagle_head" else "draft_model"
        fields = {
            "schema_version": 1,
            "id": "small",
            "target": "tiny",
            "title": "Small",
            "authors": [{"name": "A"}],
            "draft": draft or {"kind": kind, "steps": list(steps)},
            "speculate": {"num_speculative_tokens": 3},
        }
        return Recipe.model_validate_json(json.dumps({**fields, **changes}))

    return make


@pytest.fixture
def build(tmp_path, make_target, make_recipe) -> Callable[..., BuiltDraft]:
    """Builds a recipe, or one of these steps, for a small target; its sources and its cache are in `tmp_path`."""

    def build(
        *asked: Recipe | dict[str, Any],
        architecture: str = "llama",
        prompt_format: str = "chat",
        cache: str = "",
        progress: Progress | None = None,
        **fields: Any,
    ) -> BuiltDraft:
        recipe = asked[0] if asked and isinstance(asked[0], Recipe) else make_recipe(*asked, **fields)
        fetch = FetchContext(tmp_path / cache, (tmp_path,), progress=progress or SilentProgress())
        return build_draft(recipe, *make_target(architecture, prompt_format), fetch)

    return build


@pytest.fixture
def in_fp32(monkeypatch) -> None:
    """Targets compute in fp32 while drafts are built, whatever this processor can do."""
    for module in ("text.corpus", "training.distillation"):
        monkeypatch.setattr(f"draftrank.building.{module}.compute_dtype", lambda _: "fp32")


@pytest.fixture
def interrupt_after() -> Callable[..., SilentProgress]:
    """A progress receiver that interrupts the stage of a label after some of its reports."""

    class Interrupting(SilentProgress):
        def __init__(self, label: str, reports: int) -> None:
            self.label, self.reports = label, reports

        @contextmanager
        def stage(self, label, total=None):
            outer = self

            class Counting:
                def advance(self, amount=1.0, note=None):
                    if label.startswith(outer.label):
                        outer.reports -= 1
                        if outer.reports < 0:
                            raise KeyboardInterrupt

            yield Counting()

    return Interrupting
