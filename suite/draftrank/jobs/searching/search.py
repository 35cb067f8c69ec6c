"""Searches the best draft for a target within a time budget.

An optimiser (TPE of Optuna) chooses models; each is trained in rungs, and what promises less than others on its
rung is given up (successive halving, Jamieson and Talwalkar 2016, arXiv:1502.07943). The promise comes from agreement
on text kept aside and from forward times, never from a task, so that nothing is fitted to the prompts that decide.
Models that recipes of the workspace have trained already take part as they are. The model that promises most is then
trained on, twice as long each time, for as long as that pays and fits; what time that leaves goes into further models.
The most promising ones, alone, behind copying, as trees and in int8, are then measured side by side in one session.

Every model is a recipe: what is trained lies in the cache, a longer training goes on from a shorter one, and a
search that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from draftrank.board.reproduce import SEARCH
from draftrank.catalog.base import sha256_of_json
from draftrank.catalog.precision import Forward
from draftrank.catalog.recipe import Recipe
from draftrank.catalog.self_generated import SelfGenerated
from draftrank.catalog.workspace import Workspace
from draftrank.errors import BuildError, InvalidInputError
from draftrank.jobs.running import RunRequest, alone, plan_run
from draftrank.jobs.searching.choice import (
    LEAST_COPIED_TOKENS,
    MOST_COPIED_TOKENS,
    RUNGS,
    Begun,
    Choice,
    Shape,
    Use,
    copying_recipes,
    recipe_of,
)
from draftrank.jobs.searching.openings import OPENINGS, PROMPT_TEMPERATURE
from draftrank.jobs.searching.promise import Promise, most_copied, promise
from draftrank.measure.cost.forward_times import ForwardTimes
from draftrank.measure.journal import Journal
from draftrank.measure.records import SessionResult
from draftrank.measure.sessions.session import run_session
from draftrank.measure.summaries.summary import summarise
from draftrank.progress import Progress, SilentProgress, Stage

if TYPE_CHECKING:
    from pathlib import Path

    from draftrank.drafting.pipeline import BuiltDraft
    from draftrank.drafting.target_folder import TargetFolder

MOST_K = 8
FINALISTS = 2
"""Models that are measured in the end."""
EXPLORING_SHARE = 0.4
"""Share of the budget after which no further model is begun, unless training the best one on gains nothing more."""
TRAINING_SHARE = 0.7
"""Share of the budget after which no training is begun at all: the rest is for measuring."""
PAYS = 1.005
"""A longer training that promises less than this much more is the last."""
_TOKENS_PER_S = 45
"""Tokens of text for each second of the budget: a seventh of what two processors write, so that most of it trains."""
_LEAST_TOKENS, _MOST_TOKENS = 8_000, 2_000_000
_CONTEXT = 256
"""Tokens held when forwards are timed."""
_CONFIDENCE = 0.4
"""A chain that the model is less sure of ends."""
_FIRST = (
    {"layers": 1, "features": True, "vocabulary": 8_192, "ffn_channels": 0},
    {"layers": 4, "features": False, "vocabulary": 8_192, "ffn_channels": 0},
)
"""What is tried first, as far as the target allows it: what was fastest for others."""
_MOST_REPEATS = 100
"""So often in a row the optimiser may choose what is known before the search ends."""


@dataclass(frozen=True, slots=True)
class SearchRequest:
    """What to search."""

    target: str
    """Id of the target."""
    suite: str = "quick"
    """Id of the suite that decides."""
    dtype: Literal["fp32", "bf16", "fp16"] = "bf16"
    """Precision of the target."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where to compute."""
    forward: Forward = "eager"
    """How torch runs forwards."""
    budget_s: float = 7200.0
    """Seconds for all of it."""
    seed: int = 0
    """Seed of the choices."""


@dataclass(frozen=True, slots=True)
class Tried:
    """One model, as far as it was trained."""

    choice: Choice | Begun
    rung: int
    """How far, from 1 on; 0 when nothing could be built."""
    promise: Promise | None
    """None when nothing could be built."""
    agreement: float | None
    """Share of tokens on text kept aside that it and the target agree on."""
    cost: float | None
    """One of its forwards in forwards of the target."""
    seconds: float
    """To build it, all rungs together."""
    last_s: float = 0.0
    """Those of the last rung."""
    copied: int = MOST_COPIED_TOKENS
    """How many copied tokens are worth verifying, by its look at the target."""
    note: str = ""
    """Why it ended: given up, or what went wrong."""
    agreement_before: float | None = None
    """As `agreement`, on the same text, before the last training."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a search gave."""

    tried: tuple[Tried, ...]
    """In the order they were tried."""
    session: SessionResult
    """In which the finalists were measured."""
    recipes: tuple[Recipe, ...]
    """Of the finalists."""
    best: Recipe | None
    """The fastest as measured; None when none could be measured."""


def search(
    workspace: Workspace, request: SearchRequest, journal: Journal, progress: Progress | None = None
) -> Found:
    """Searches the best draft for a target.

    Its session belongs to a suite of its own (`<suite>-search`), so it never lands on a named board.

    Raises:
        InvalidInputError: the request is wrong, no model could be built in time, or Optuna is not installed.
        MissingDataError: the target, or the data of every task, cannot be had.
    """
    progress = progress or SilentProgress()
    suite = workspace.suite(request.suite)
    suite = suite.model_copy(update={"id": f"{suite.id}{SEARCH}"})
    with alone(workspace, progress):
        seeker = _Seeker(workspace, request, progress)
        tried = seeker.try_models()
        recipes = seeker.finalists(tried)
        asked = RunRequest(
            request.target,
            suite=request.suite,
            dtype=request.dtype,
            device=request.device,
            forward=request.forward,
            seed=request.seed,
        )
        plan = plan_run(workspace, asked, progress, recipes=recipes, suite=suite)
        result = run_session(plan, journal, progress=progress)
    measured = {
        arm.arm.id: arm.speedup.value
        for arm in summarise(result).arms
        if arm.arm.kind == "draft" and arm.speedup is not None
    }
    best = max(
        (recipe for recipe in recipes if recipe.id in measured),
        key=lambda recipe: measured[recipe.id],
        default=None,
    )
    return Found(tuple(tried), result, recipes, best)


class _Seeker:
    """The target, its text, the clock, and what was tried."""

    def __init__(self, workspace: Workspace, request: SearchRequest, progress: Progress) -> None:
        from draftrank.drafting.target_folder import ensure_target

        self._workspace, self._request, self._progress = workspace, request, progress
        self._optuna = _optuna()
        self._target = workspace.target(request.target)
        self._folder: TargetFolder = ensure_target(self._target, workspace.fetch_context(progress))
        self._shape, window = _shape_of(self._folder)
        self._data = SelfGenerated(
            kind="self_generated",
            tokens=int(min(_MOST_TOKENS, max(_LEAST_TOKENS, request.budget_s * _TOKENS_PER_S))),
            sequence_tokens=min(256, window),
            prompt_temperature=PROMPT_TEMPERATURE,
            openings=OPENINGS,
            seed=request.seed + 1,  # other text than recipes were trained on, which leave it as it is
        )
        self._state = workspace.state / "searches" / sha256_of_json(asdict(request))[:12]
        self._state.mkdir(parents=True, exist_ok=True)
        self._clock = _Clock(self._state / "spent_s")
        self._deepened = self._state / "trained_on.json"
        self._trained = self._state / "trained.json"

    def try_models(self) -> list[Tried]:
        """Trains one model after the other until the time for it is over, and the most promising one on.

        Once over it stays so: what the budget leaves may not let the same search go on when it is asked for again.
        """
        if self._trained.is_file():
            return [_read(one) for one in json.loads(self._trained.read_text("utf-8"))]
        until = self._request.budget_s * TRAINING_SHARE
        with self._progress.stage("search", int(until)) as stage:
            stage.advance(int(self._clock.spent_s))
            tried = self._explore(self._known(), EXPLORING_SHARE, stage)
            tried = self._train_on(tried, stage)
            tried = self._explore(tried, TRAINING_SHARE, stage)
        if _by_promise(tried):
            self._trained.write_text(json.dumps([asdict(one) for one in tried]), "utf-8")
        return tried

    def _known(self) -> list[Tried]:
        """What an earlier run of this search has tried, and what recipes have trained."""
        trials = self._study.trials
        told = [trial.user_attrs["tried"] for trial in trials if "tried" in trial.user_attrs]
        return [*(_read(json.loads(text)) for text in told), *self._begun()]

    def _explore(self, tried: list[Tried], share: float, stage: Stage) -> list[Tried]:
        """The same and further models, begun until a share of the budget is spent."""
        study, tried, repeated = self._study, list(tried), 0
        until = self._request.budget_s * share
        longest = max((one.seconds for one in tried), default=0.0)
        known = {one.choice for one in tried}
        while self._clock.spent_s + longest < until and repeated < _MOST_REPEATS:
            trial = study.ask()
            choice = suggest(trial, self._shape)
            if choice in known:  # nothing is learnt twice
                study.tell(trial, state=self._optuna.trial.TrialState.FAIL)
                repeated += 1
                continue
            repeated = 0
            known.add(choice)
            one = self._try(choice, trial)
            tried.append(one)
            trial.set_user_attr("tried", json.dumps(asdict(one)))
            self._tell(study, trial, one)
            longest = max(longest, one.seconds)
            stage.advance(int(self._clock.note()), _told(one))
        return tried

    def _train_on(self, tried: list[Tried], stage: Stage) -> list[Tried]:
        """The same with the most promising model trained longer, for as long as that pays and fits."""
        until = self._request.budget_s * TRAINING_SHARE
        if self._deepened.is_file():
            deepened = _read(json.loads(self._deepened.read_text("utf-8")))
            tried = [deepened if one.choice == deepened.choice else one for one in tried]
        while able := _by_promise(tried):
            best = able[0]
            now = best.choice.passes_on(best.rung)
            longer_s = best.last_s * best.choice.passes_on(best.rung + 1) / now if now else 0.0
            if best.note or self._clock.spent_s + longer_s > until:
                break
            try:
                one = self._look(best.choice, best.rung + 1)
            except BuildError as error:
                one = replace(best, note=str(error))
            else:
                assert one.promise is not None
                assert best.promise is not None
                seconds = best.seconds + one.last_s
                # A recipe's own training was judged on other text, so its first one here is judged by what was before it.
                if not now and one.agreement is not None and one.agreement_before is not None:
                    pays = one.agreement > one.agreement_before
                else:
                    pays = one.promise.speedup >= PAYS * best.promise.speedup
                if not pays:
                    better = one if one.promise.speedup > best.promise.speedup else best
                    one = replace(better, note="trained until it gained nothing more")
                one = replace(one, seconds=seconds)
            tried = [one if each.choice == one.choice else each for each in tried]
            self._deepened.write_text(json.dumps(asdict(one)), "utf-8")
            stage.advance(int(self._clock.note()), _told(one))
        return tried

    def finalists(self, tried: list[Tried]) -> tuple[Recipe, ...]:
        """The most promising models in the ways they can be used, and copying alone."""
        able = _by_promise(tried)
        if not able:
            notes = "; ".join(one.note for one in tried if one.note)
            raise InvalidInputError.single(
                f"no model could be built within the budget{': ' + notes if notes else ''}",
                field="--budget",
                fix="allow more time",
            )
        copied = able[0].copied
        recipes = list(copying_recipes(self._request.target, copied))
        for place, one in enumerate(able[:FINALISTS]):
            promised = one.promise
            assert promised is not None
            steps = one.choice.steps(self._shape, self._data, one.rung)
            uses = [
                Use(promised.k, copied, mixed=True, stop_below_confidence=_CONFIDENCE),
                Use(promised.k, copied, mixed=True, tree=True),
            ]
            if self._request.device == "cpu":
                uses += [replace(use, int8=True) for use in uses]
            if not place:
                uses.append(Use(promised.k, stop_below_confidence=_CONFIDENCE))
            for use in uses:
                words = [one.choice.in_words()]
                words += ["behind copying"] if use.mixed else []
                words += ["as a tree"] if use.tree else []
                words += ["in int8"] if use.int8 else []
                name = use.name_of(one.choice)
                recipes.append(recipe_of(self._request.target, name, ", ".join(words), steps, use))
        return tuple(recipes)

    @cached_property
    def _study(self) -> Any:
        optuna = self._optuna
        journal = optuna.storages.journal.JournalFileBackend(str(self._state / "study.log"))
        study = optuna.create_study(
            study_name="search",
            direction="maximize",
            sampler=optuna.samplers.TPESampler(
                seed=self._request.seed, multivariate=True, n_startup_trials=6
            ),
            pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2),
            storage=optuna.storages.JournalStorage(journal),
            load_if_exists=True,
        )
        if not study.trials:
            for first in _FIRST:
                if first["layers"] < self._shape.layers and first["vocabulary"] < self._shape.vocabulary:
                    study.enqueue_trial(first)
        return study

    def _tell(self, study: Any, trial: Any, one: Tried) -> None:
        if one.promise is None:
            study.tell(trial, state=self._optuna.trial.TrialState.FAIL)
        elif one.rung < RUNGS:
            study.tell(trial, state=self._optuna.trial.TrialState.PRUNED)
        else:
            study.tell(trial, one.promise.speedup)

    def _try(self, choice: Choice, trial: Any) -> Tried:
        began = time.monotonic()
        one = Tried(choice, 0, None, None, None, 0.0)
        for rung in range(1, RUNGS + 1):
            try:
                one = self._look(choice, rung)
            except BuildError as error:
                one = Tried(choice, 0, None, None, None, 0.0, note=str(error))
                break
            assert one.promise is not None
            trial.report(one.promise.speedup, rung)
            if rung < RUNGS and trial.should_prune():
                one = replace(one, note="given up")
                break
        return replace(one, seconds=time.monotonic() - began)

    def _begun(self) -> list[Tried]:
        """Models that are at hand, as recipes of the workspace have trained them."""
        from draftrank.drafting.pipeline import find_draft

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
            if find_draft(alone, target, self._folder, fetch=fetch, progress=self._progress) is not None:
                found[choice.done] = self._look(choice, RUNGS)
        return list(found.values())

    def _recipe(self, choice: Choice | Begun, rung: int) -> Recipe:
        """Of a model alone."""
        steps = choice.steps(self._shape, self._data, rung)
        return recipe_of(self._request.target, choice.id, choice.id, steps, Use(k=1))

    def _look(self, choice: Choice | Begun, rung: int) -> Tried:
        began = time.monotonic()
        recipe = self._recipe(choice, rung)
        built = self._build(recipe)
        notes = _notes_of(built)
        agreements = [notes["held_out_agreement_after"], *notes.get("held_out_agreement_ahead", ())]
        times = self._times(recipe, built)
        promised = promise(agreements, times, _CONTEXT, MOST_K)
        cost = times.draft_s(1, _CONTEXT) / times.target_s(1, _CONTEXT)
        copied = most_copied(times, _CONTEXT, LEAST_COPIED_TOKENS, MOST_COPIED_TOKENS)
        last_s = time.monotonic() - began
        before = notes.get("held_out_agreement_before")
        return Tried(
            choice,
            rung,
            promised,
            agreements[0],
            cost,
            last_s,
            last_s,
            copied=copied,
            agreement_before=before,
        )

    def _build(self, recipe: Recipe) -> BuiltDraft:
        from draftrank.drafting.pipeline import build_draft

        return build_draft(
            recipe,
            self._target,
            self._folder,
            cache=self._workspace.cache,
            device=self._request.device,
            fetch=self._workspace.fetch_context(self._progress),
            progress=self._progress,
        )

    def _times(self, recipe: Recipe, built: BuiltDraft) -> ForwardTimes:
        """Forward times of the draft and the target, in turn."""
        from draftrank.decoding.proposer import ProposerContext
        from draftrank.decoding.runtimes.opening import load_runtime
        from draftrank.measure.cost.latency import measure_latencies

        request = self._request
        target = load_runtime(self._folder.path, request.dtype, request.device, request.forward)
        proposer = recipe.draft.open(
            ProposerContext(
                target,
                built.folder,
                self._folder.path,
                request.dtype,
                request.device,
                forward=request.forward,
            )
        )
        room = min(_CONTEXT, target.context_window // 2)
        text = tuple(number % target.vocabulary_size for number in range(room))
        times = ForwardTimes.of(measure_latencies(target, proposer.runtime(), MOST_K, [text]))
        assert times is not None  # a forward takes time
        return times


class _Clock:
    """Seconds spent so far, those of earlier runs included."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._before = float(file.read_text()) if file.is_file() else 0.0
        self._noted = self._before
        self._began = time.monotonic()

    @property
    def spent_s(self) -> float:
        return self._before + time.monotonic() - self._began

    def note(self) -> float:
        """Keeps them for a later run; returns how many passed since the last note."""
        now = self.spent_s
        passed, self._noted = now - self._noted, now
        self._file.write_text(str(now))
        return passed


def _by_promise(tried: list[Tried]) -> list[Tried]:
    """What could be built, the most promising first; of two the one that was trained for longer."""
    able = [one for one in tried if one.promise is not None]
    return sorted(able, key=lambda one: (-min(one.rung, RUNGS), -one.promise.speedup if one.promise else 0.0))


def suggest(trial: Any, shape: Shape) -> Choice:
    """Asks the optimiser for a choice that the target allows."""
    depths = [depth for depth in (1, 2, 3, 4, 6) if depth < shape.layers]
    vocabularies = [size for size in (4_096, 8_192, 16_384, 32_768) if size < shape.vocabulary]
    return Choice(
        layers=trial.suggest_categorical("layers", depths),
        features=trial.suggest_categorical("features", [True, False]),
        vocabulary=trial.suggest_categorical("vocabulary", [*vocabularies, 0]) or None,
        ffn_channels=trial.suggest_categorical("ffn_channels", [0, shape.ffn_channels // 2]) or None,
    )


def _shape_of(folder: TargetFolder) -> tuple[Shape, int]:
    """What bounds the choices, and the target's window in tokens."""
    config = json.loads((folder.path / "config.json").read_text("utf-8"))

    def number(*names: str) -> int:
        return int(next(config[name] for name in names if config.get(name) is not None))

    width = number("hidden_size", "n_embd")
    ffn = config.get("intermediate_size") or config.get("n_inner") or 4 * width
    shape = Shape(number("num_hidden_layers", "n_layer"), int(ffn), number("vocab_size"))
    return shape, number("max_position_embeddings", "n_positions")


def _notes_of(built: BuiltDraft) -> dict[str, Any]:
    """What the last training noted."""
    assert built.folder is not None
    facts = json.loads((built.folder / "draftrank.json").read_text("utf-8"))
    notes: dict[str, Any] = facts["notes"]["distillation"]
    return notes


def _told(one: Tried) -> str:
    what = "could not be built" if one.promise is None else f"promises {one.promise.speedup:.2f}×"
    return f"{one.choice.id} {what}"


def _read(fields: dict[str, Any]) -> Tried:
    """From what `asdict` made of it."""
    promised, chosen = fields["promise"], fields["choice"]
    choice = Begun(**chosen) if "recipe" in chosen else Choice(**chosen)
    return Tried(**fields | {"choice": choice, "promise": Promise(**promised) if promised else None})


def _own_steps(recipe: Recipe) -> tuple[int, str]:
    """The recipe that does least beside what others do too comes first, and gives its name."""
    return len(recipe.draft.build_steps), recipe.id


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise InvalidInputError.single(
            "searching needs Optuna, which is not installed", fix="pip install 'draftrank[search]'"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
