"""How calm the machine was over a whole session."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from draftrank.measure.evidence import Conditions
from draftrank.measure.machine.disturbance import RULES, Kind, disturbances
from draftrank.measure.records import Session, Trial
from draftrank.measure.statistics.standing import standing_trials


@dataclass(frozen=True, slots=True)
class RuleCount:
    """How often one rule was broken."""

    rule: str
    """Id of the rule."""
    kind: Kind
    """See `Rule.kind`."""
    prompt_turns: int
    """Prompt turns that stayed so."""
    example: str
    """The reason of the first of them, in words."""
    fix: str
    """What to do about it."""


@dataclass(frozen=True, slots=True)
class Stability:
    """What the watch saw, over the prompt turns (of every repeat) of a session."""

    prompt_turns: int
    """Decoded by some arm."""
    watched: int
    """Those of them with counters that could be read; 0: nobody knows how calm the machine was."""
    repeated: int
    """Decoded more than once because the machine was disturbed."""
    disturbed: int
    """Watched ones whose trials that count were disturbed by others."""
    throttled: int
    """Watched ones whose trials that count ran on a machine that was slowed down."""
    rules: tuple[RuleCount, ...]
    """The broken rules, the most frequent first."""

    def share(self, kind: Kind) -> float:
        """Share of the watched prompt turns that stayed so; 0 without any."""
        count = self.disturbed if kind == "disturbed" else self.throttled
        return count / self.watched if self.watched else 0.0

    def worst(self, kind: Kind) -> RuleCount | None:
        """The most frequent of the broken rules of this kind."""
        return next((rule for rule in self.rules if rule.kind == kind), None)


def stability_of(session: Session, trials: Iterable[Trial]) -> Stability:
    """Judges all prompt turns of a session by the conditions kept with the trials that count, given all of every
    attempt."""
    trials = sorted(trials, key=lambda trial: (trial.started_at, trial.key))
    stretches: dict[tuple[str, str, int, int], list[Conditions]] = defaultdict(list)
    for trial in standing_trials(trials):
        watched = trial.conditions is not None and trial.conditions != Conditions()
        stretches[trial.cell] += [trial.conditions] if trial.conditions is not None and watched else []
    kinds: Counter[str] = Counter()
    rules: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for stretch in stretches.values():
        found = disturbances(stretch, session.machine.cores)
        kinds.update({disturbance.rule.kind for disturbance in found})
        for disturbance in found:
            rules[disturbance.rule.id] += 1
            examples.setdefault(disturbance.rule.id, disturbance.reason)
    known = {rule.id: rule for rule in RULES}
    return Stability(
        len(stretches),
        sum(bool(stretch) for stretch in stretches.values()),
        len({trial.cell for trial in trials if trial.attempt}),
        kinds["disturbed"],
        kinds["throttled"],
        tuple(
            RuleCount(rule, known[rule].kind, count, examples[rule], known[rule].fix)
            for rule, count in rules.most_common()
        ),
    )
