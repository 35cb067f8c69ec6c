"""Searches the best draft for a target within a time budget.

An optimiser (TPE of Optuna) chooses models. Each is trained in rungs, and successive halving (Jamieson and Talwalkar
2016, arXiv:1502.07943) stops those with low predicted speedups. The prediction uses agreement on held-out text and
forward times, never a task, so nothing is fitted to the prompts that decide. Models that the workspace's recipes have
already trained take part as they are. The model with the highest predicted speedup is then trained on, twice as long
each time, while that pays and fits the budget; the remaining time goes into further models. One session finally
measures the best models: alone, in cascades with suffix decoding, as trees and in int8.

Every model is a recipe: what is trained lies in the cache, a longer training goes on from a shorter one, and a
search that was interrupted resumes.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from draftrank.board.reproduce import SEARCH
from draftrank.catalog.backend import is_dtype
from draftrank.catalog.base import sha256_of_json
from draftrank.catalog.recipe import Recipe
from draftrank.catalog.workspace import Workspace
from draftrank.errors import BuildError, IncompatibleDraftError, InvalidInputError
from draftrank.jobs.session import RunRequest, alone, choose_backend, plan_run
from draftrank.measure.journal import Journal
from draftrank.measure.records import SessionResult
from draftrank.measure.sessions.session import run_session
from draftrank.measure.summaries.summary import summarise
from draftrank.progress import SILENT, Progress, Stage
from draftrank.workflows.search.choice import FIRST, RUNGS, Choice, Shape
from draftrank.workflows.search.finalists import finalists
from draftrank.workflows.search.training import Training
from draftrank.workflows.search.tried import Tried, by_predicted_speedup

EXPLORING_SHARE = 0.4
"""Share of the budget after which no further model is begun, unless training the best one on gains nothing more."""
TRAINING_SHARE = 0.7
"""Share of the budget after which no training is begun at all: the rest is for measuring."""
PAYS = 1.005
"""Training on ends when it raises the predicted speedup by less than this factor."""
_MAX_REPEATS = 100
"""So often in a row the optimiser may choose what is known before the search ends."""


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
    workspace: Workspace,
    request: RunRequest,
    budget_s: float,
    journal: Journal,
    progress: Progress = SILENT,
) -> Found:
    """Searches the best draft for the target of a request within so many seconds.

    Its session belongs to a suite of its own (`<suite>-search`), so it never lands on a named board.

    Raises:
        InvalidInputError: the request is wrong, no model could be built in time, or Optuna is not installed.
        MissingDataError: the target, or the data of every task, cannot be had.
    """
    suite = workspace.suite(request.suite)
    suite = suite.model_copy(update={"id": f"{suite.id}{SEARCH}"})
    with alone(workspace, progress):
        request = _with_backend(workspace, request, progress)
        seeker = _Seeker(workspace, request, budget_s, progress)
        tried = seeker.try_models()
        recipes = finalists(tried, request, seeker.training)
        plan = plan_run(workspace, request, progress, recipes=recipes, suite=suite)
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


def _with_backend(workspace: Workspace, request: RunRequest, progress: Progress) -> RunRequest:
    """The request with what `auto` takes for the target; all models of a search are of its architecture."""
    choice = choose_backend(workspace, request, (), progress)
    if choice.backend == "llama.cpp" or not is_dtype(choice.dtype):
        raise InvalidInputError.single(
            "a search trains models of torch, which llama.cpp does not run",
            field="--backend",
            fix="leave it out",
        )
    progress.message(choice.sentence)
    return replace(request, backend=choice.backend, dtype=choice.dtype, device=choice.device)


class _Clock:
    """Seconds of a search's budget that are spent, those of earlier runs included."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._before = float(file.read_text()) if file.is_file() else 0.0
        self._noted = self._before
        self._began = time.monotonic()

    @property
    def spent_s(self) -> float:
        """Until now."""
        return self._before + time.monotonic() - self._began

    def note(self) -> float:
        """Keeps them for a later run; returns how many passed since the last note."""
        now = self.spent_s
        passed, self._noted = now - self._noted, now
        self._file.write_text(str(now))
        return passed


class _Seeker:
    """The optimiser, the clock, and what was tried."""

    def __init__(
        self, workspace: Workspace, request: RunRequest, budget_s: float, progress: Progress
    ) -> None:
        self._request, self._budget_s, self._progress = request, budget_s, progress
        self._optuna = _optuna()
        self.training = Training(workspace, request, budget_s, progress)
        # What another version would try first is another search, which this one cannot go on with.
        where = (request.target, request.suite, request.backend, request.dtype, request.device)
        asked = [*where, request.seed, budget_s, *map(asdict, FIRST)]
        self._state = workspace.state / "searches" / sha256_of_json(asked)[:12]
        self._state.mkdir(parents=True, exist_ok=True)
        self._clock = _Clock(self._state / "spent_s")
        self._deepened = self._state / "trained_on.json"
        self._trained = self._state / "trained.json"

    def try_models(self) -> list[Tried]:
        """Trains one model after the other until the time for it is over, and the best one on.

        Once over it stays so: what the budget leaves may not let the same search go on when it is asked for again.
        """
        if self._trained.is_file():
            return [Tried.read(one) for one in json.loads(self._trained.read_text("utf-8"))]
        until = self._budget_s * TRAINING_SHARE
        with self._progress.stage("search", int(until)) as stage:
            stage.advance(int(self._clock.spent_s))
            tried = self._explore(self._known(), EXPLORING_SHARE, stage)
            tried = self._train_on(tried, stage)
            tried = self._explore(tried, TRAINING_SHARE, stage)
        if by_predicted_speedup(tried):
            self._trained.write_text(json.dumps([asdict(one) for one in tried]), "utf-8")
        return tried

    def _known(self) -> list[Tried]:
        """What an earlier run of this search has tried, and what recipes have trained."""
        trials = self._study.trials
        told = [trial.user_attrs["tried"] for trial in trials if "tried" in trial.user_attrs]
        return [*(Tried.read(json.loads(text)) for text in told), *self.training.begun()]

    def _explore(self, tried: list[Tried], share: float, stage: Stage) -> list[Tried]:
        """The same and further models, begun until a share of the budget is spent."""
        study, tried, repeated = self._study, list(tried), 0
        until = self._budget_s * share
        longest = max((one.seconds for one in tried), default=0.0)
        known = {one.choice for one in tried}
        while self._clock.spent_s + longest < until and repeated < _MAX_REPEATS:
            trial = study.ask()
            choice = suggest(trial, self.training.shape)
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
            stage.advance(int(self._clock.note()), one.in_words())
        return tried

    def _train_on(self, tried: list[Tried], stage: Stage) -> list[Tried]:
        """The same with the model of the highest predicted speedup trained longer, for as long as that pays and fits."""
        until = self._budget_s * TRAINING_SHARE
        if self._deepened.is_file():
            deepened = Tried.read(json.loads(self._deepened.read_text("utf-8")))
            tried = [deepened if one.choice == deepened.choice else one for one in tried]
        while able := by_predicted_speedup(tried):
            best = able[0]
            now = best.choice.passes_on(best.rung)
            longer_s = best.last_s * best.choice.passes_on(best.rung + 1) / now if now else 0.0
            if best.note or self._clock.spent_s + longer_s > until:
                break
            try:
                one = self.training.look(best.choice, best.rung + 1)
            except BuildError as error:
                one = replace(best, note=str(error))
            else:
                assert one.prediction is not None
                assert best.prediction is not None
                seconds = best.seconds + one.last_s
                # A recipe's own training was judged on other text, so its first one here is judged by what was before it.
                if not now and one.agreement is not None and one.agreement_before is not None:
                    pays = one.agreement > one.agreement_before
                else:
                    pays = one.prediction.speedup >= PAYS * best.prediction.speedup
                if not pays:
                    better = one if one.prediction.speedup > best.prediction.speedup else best
                    one = replace(better, note="trained until it gained nothing more")
                one = replace(one, seconds=seconds)
            tried = [one if each.choice == one.choice else each for each in tried]
            self._deepened.write_text(json.dumps(asdict(one)), "utf-8")
            stage.advance(int(self._clock.note()), one.in_words())
        return tried

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
            for first in FIRST:
                if first.fits(self.training.shape):
                    study.enqueue_trial({name: value or 0 for name, value in asdict(first).items()})
        return study

    def _tell(self, study: Any, trial: Any, one: Tried) -> None:
        if one.prediction is None:
            study.tell(trial, state=self._optuna.trial.TrialState.FAIL)
        elif one.rung < RUNGS:
            study.tell(trial, state=self._optuna.trial.TrialState.PRUNED)
        else:
            study.tell(trial, one.prediction.speedup)

    def _try(self, choice: Choice, trial: Any) -> Tried:
        began = time.monotonic()
        one = Tried(choice, 0, None, None, None, 0.0)
        for rung in range(1, RUNGS + 1):
            try:
                one = self.training.look(choice, rung)
            except (BuildError, IncompatibleDraftError) as error:
                one = Tried(choice, 0, None, None, None, 0.0, note=str(error))
                break
            assert one.prediction is not None
            trial.report(one.prediction.speedup, rung)
            if rung < RUNGS and trial.should_prune():
                one = replace(one, note="given up")
                break
        return replace(one, seconds=time.monotonic() - began)


def suggest(trial: Any, shape: Shape) -> Choice:
    """Asks the optimiser for a choice that the target allows."""
    depths = [depth for depth in (1, 2, 3, 4, 6) if depth < shape.layers]
    vocabularies = [size for size in (4_096, 8_192, 16_384, 32_768) if size < shape.vocabulary]
    layers = trial.suggest_categorical("layers", [0, *depths]) or None
    channels = trial.suggest_categorical("ffn_channels", [0, shape.ffn_channels // 2]) or None
    return Choice(
        layers=layers,
        vocabulary=trial.suggest_categorical("vocabulary", [*vocabularies, 0]) or None,
        ffn_channels=channels if layers else None,
    )


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise InvalidInputError.single(
            "searching needs Optuna, which is not installed", fix="pip install 'draftrank[search]'"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
