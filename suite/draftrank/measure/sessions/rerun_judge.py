"""Where the outputs of a published session and of its re-run here part: a tie, or a break?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from draftrank.engine.backends.registry import load_runtime
from draftrank.measure.fidelity.divergence import Judged
from draftrank.measure.fidelity.numerics import largest_deviation
from draftrank.measure.records import BASELINE, SessionResult, Trial
from draftrank.measure.sessions.bench import Bench
from draftrank.measure.sessions.plan import SessionPlan
from draftrank.progress import Progress

if TYPE_CHECKING:
    from draftrank.engine.backends.base import Runtime
    from draftrank.measure.sessions.texts import SessionTexts


class RerunJudge:
    """Judges places where outputs part, by the target in transformers and fp32; loaded when the first one comes up.

    Two builds of a backend, or two processors, add in different orders even where all forwards of one session
    round alike, so a session's own rounding (`Session.numerics`) says nothing here. Each program chose a token that is
    its best one. So a difference is a tie if both tokens lie, in the reference, within this backend's largest
    deviation from the reference of the best one.
    """

    def __init__(self, plan: SessionPlan, again: SessionResult, progress: Progress) -> None:
        self._plan, self._again, self._progress = plan, again, progress
        self._lossy = {arm.id for arm in again.session.arms if arm.lossy}
        self._texts: SessionTexts
        self._reference: Runtime | None = None
        self._deviation = 0.0

    def __call__(self, published: Trial, again: Trial, index: int) -> Judged:
        # A sampler and a lossy rule may choose tokens far from the best one, so gaps say nothing.
        if not self._again.session.mode.greedy or again.arm in self._lossy:
            return "unjudged"
        tokens = [trial.token_ids[index : index + 1] for trial in (published, again)]
        if not all(tokens):  # one is the beginning of the other, which no choice among tokens explains
            return "break"
        reference = self._load()
        task = next(i for i, one in enumerate(self._plan.tasks) if one.task.id == again.task)
        prompt = next(i for i, one in enumerate(self._plan.tasks[task].prompts) if one.id == again.prompt)
        answers = {
            trial.turn: trial.token_ids
            for trial in self._again.trials
            if (trial.arm, *trial.cell[:2]) == (BASELINE, again.task, again.prompt)
            and (trial.repeat, trial.attempt) == (0, 0)
        }
        context = self._texts.render(task, prompt, again.turn, [answers[turn] for turn in range(again.turn)])
        reference.reset()
        reference.reserve(len(context) + index + 1)
        row = reference.forward((*context, *again.token_ids[:index]), keep=1)[-1].float()
        known = all(token < len(row) for (token,) in tokens)
        near = known and all(float(row.max() - row[token]) <= self._deviation for (token,) in tokens)
        return "tie" if near else "break"

    def _load(self) -> Runtime:
        if self._reference is None:
            plan = self._plan
            bench = Bench.load(plan, self._progress)
            self._texts = bench.texts
            self._reference = load_runtime(plan.target_folder.path, "fp32", plan.device, "transformers")
            texts = self._texts.rounding_texts(self._again.trials)
            with self._progress.stage("measure rounding", len(texts)) as stage:
                self._deviation = largest_deviation(bench.target, self._reference, texts, stage)
        return self._reference
