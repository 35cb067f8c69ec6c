"""Trains the models of a search and predicts their speedups."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from draftrank.catalog.recipe import Recipe
from draftrank.catalog.self_generated import SelfGenerated
from draftrank.catalog.workspace import Workspace
from draftrank.jobs.session import RunRequest
from draftrank.measure.cost.forward_times import ForwardTimes
from draftrank.progress import Progress
from draftrank.workflows.search.choice import (
    MAX_COPIED_TOKENS,
    MIN_COPIED_TOKENS,
    RUNGS,
    Begun,
    Choice,
    DraftSettings,
    Shape,
    recipe_of,
)
from draftrank.workflows.search.prompt_prefixes import PROMPT_PREFIXES, PROMPT_TEMPERATURE
from draftrank.workflows.search.tried import Tried, most_copied, predict_speedup

if TYPE_CHECKING:
    from draftrank.building.pipeline import BuiltDraft
    from draftrank.models.target_folder import TargetFolder

MAX_K = 8
_TOKENS_PER_S = 45
"""Tokens of text for each second of the budget: a seventh of what two processors write, so that most of it trains."""
_MIN_TOKENS, _MAX_TOKENS = 8_000, 2_000_000
_CONTEXT = 256
"""Tokens held when forwards are timed."""


class Training:
    """The target and its text, and what is trained on it."""

    def __init__(
        self, workspace: Workspace, request: RunRequest, budget_s: float, progress: Progress
    ) -> None:
        """Fetches the target.

        Raises:
            MissingDataError: it cannot be had.
        """
        from draftrank.models.target_folder import ensure_target

        self._workspace, self._request, self._progress = workspace, request, progress
        self._target = workspace.target(request.target)
        self._folder: TargetFolder = ensure_target(self._target, workspace.fetch_context(progress))
        self.shape, window = _shape_of(self._folder)
        self.data = SelfGenerated(
            kind="self_generated",
            tokens=int(min(_MAX_TOKENS, max(_MIN_TOKENS, budget_s * _TOKENS_PER_S))),
            sequence_tokens=min(256, window),
            prompt_temperature=PROMPT_TEMPERATURE,
            prompt_prefixes=PROMPT_PREFIXES,
            seed=request.seed + 1,  # other text than recipes were trained on, which leave it as it is
        )

    def begun(self) -> list[Tried]:
        """Models that are at hand, as recipes of the workspace have trained them."""
        from draftrank.building.pipeline import find_draft

        found: dict[str, Tried] = {}
        target, fetch = self._target, self._workspace.fetch_context(self._progress)
        paths = self._workspace.recipe_paths(target.id)
        for recipe in sorted(
            (self._workspace.recipe(target.id, path.stem) for path in paths), key=_own_steps
        ):
            choice = Begun.of(recipe)
            if choice is None or choice.done in found:
                continue
            alone = self._recipe(choice, RUNGS)
            if find_draft(alone, target, self._folder, fetch) is not None:
                found[choice.done] = self.look(choice, RUNGS)
        return list(found.values())

    def _recipe(self, choice: Choice | Begun, rung: int) -> Recipe:
        """Of a model alone."""
        steps = choice.steps(self.shape, self.data, rung)
        return recipe_of(self._request.target, choice.id, choice.id, steps, DraftSettings(k=1))

    def look(self, choice: Choice | Begun, rung: int) -> Tried:
        """Trains a model until this rung, or finds it so, and predicts its speedup.

        Raises:
            BuildError: it cannot be built.
        """
        began = time.monotonic()
        recipe = self._recipe(choice, rung)
        built = self._build(recipe)
        notes = _notes_of(built)
        agreements = [notes["held_out_agreement_after"], *notes.get("held_out_agreement_ahead", ())]
        times = self._times(recipe, built)
        predicted = predict_speedup(agreements, times, _CONTEXT, MAX_K)
        cost = times.draft_s(1, _CONTEXT) / times.target_s(1, _CONTEXT)
        copied = most_copied(times, _CONTEXT, MIN_COPIED_TOKENS, MAX_COPIED_TOKENS)
        last_s = time.monotonic() - began
        before = notes.get("held_out_agreement_before")
        return Tried(
            choice, rung, predicted, agreements[0], cost, last_s, last_s, copied, agreement_before=before
        )

    def _build(self, recipe: Recipe) -> BuiltDraft:
        from draftrank.building.pipeline import build_draft

        return build_draft(
            recipe,
            self._target,
            self._folder,
            self._workspace.fetch_context(self._progress),
            device="cuda" if self._request.device == "cuda" else "cpu",
        )

    def _times(self, recipe: Recipe, built: BuiltDraft) -> ForwardTimes:
        """Forward times of the draft and the target, in turn."""
        from draftrank.engine.backends.registry import load_runtime
        from draftrank.engine.proposer import ProposerContext
        from draftrank.measure.cost.latency import measure_latencies

        request = self._request
        dtype, device, backend = request.dtype, request.device, request.backend
        assert dtype != "auto" and device != "auto" and backend != "auto"  # noqa: PT018
        target = load_runtime(self._folder.path, dtype, device, backend)
        proposer = recipe.draft.open(
            ProposerContext(target, built.folder, self._folder.path, dtype, device, backend)
        )
        room = min(_CONTEXT, target.context_window // 2)
        text = tuple(number % target.vocabulary_size for number in range(room))
        (found,) = measure_latencies(target, [(proposer.runtime(), MAX_K)], [text])
        times = ForwardTimes.of(found)
        assert times is not None  # a forward takes time
        return times


def _shape_of(folder: TargetFolder) -> tuple[Shape, int]:
    """What bounds the choices, and the target's window in tokens."""
    config = json.loads((folder.path / "config.json").read_text("utf-8"))

    def number(*names: str) -> int:
        return int(next(config[name] for name in names if config.get(name) is not None))

    width = number("hidden_size", "n_embd")
    ffn = config.get("intermediate_size") or config.get("n_inner") or 4 * width
    shape = Shape(number("num_hidden_layers", "n_layer"), int(ffn), number("vocab_size"))
    return shape, folder.context_window


def _notes_of(built: BuiltDraft) -> dict[str, Any]:
    """What the last training noted."""
    assert built.folder is not None
    facts = json.loads((built.folder / "draftrank.json").read_text("utf-8"))
    notes: dict[str, Any] = facts["notes"]["distillation"]
    return notes


def _own_steps(recipe: Recipe) -> tuple[int, str]:
    """The recipe that does least beside what others do too comes first, and gives its name."""
    return len(recipe.draft.build_steps), recipe.id
