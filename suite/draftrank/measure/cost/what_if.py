"""What a draft should give on a machine where it was not measured.

Acceptance belongs to draft, target and texts: it is the same on every machine, up to rounding. Forward times
belong to machine and architecture. So acceptance measured anywhere and forward times measured on one machine,
with this draft or one of the same architecture, give a prediction for that machine (`measure.cost.model`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from draftrank.errors import InvalidInputError, MissingDataError
from draftrank.measure.cost.model import Prediction, predict
from draftrank.measure.records import Arm, Session, SessionResult, Trial
from draftrank.measure.statistics.standing import standing_trials


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """A prediction for a machine, and what it rests on."""

    machine_class: str
    """The machine it is for."""
    draft: str
    k: int
    prediction: Prediction
    acceptance: Session
    """Whose trials the acceptance comes from."""
    steps: int
    """Steps it rests on."""
    times: Session
    """Whose forward times: a session on the machine."""
    times_arm: str
    """Of which of its arms."""
    assumptions: tuple[str, ...]
    """What is taken for granted, in sentences."""


@dataclass(frozen=True, slots=True)
class _Source:
    session: Session
    arm: Arm
    trials: tuple[Trial, ...]

    @property
    def recipe(self) -> str | None:
        return self.arm.draft.recipe_sha256 if self.arm.draft else None

    @property
    def steps(self) -> int:
        return sum(trial.steps for trial in self.trials)


def predict_elsewhere(
    results: Sequence[SessionResult], draft: str, machine: str, target: str | None = None
) -> Elsewhere:
    """Predicts a draft's speedup on a machine class.

    Args:
        results: every session there is, e.g. of the store and the published bundles.
        draft: the draft's id.
        machine: a machine class, or a part of the name of just one.
        target: the target's id; needed when the draft's id exists for several.

    Raises:
        InvalidInputError: the machine is unknown or ambiguous, or so is the target.
        MissingDataError: something has not been measured yet; the message names what to run where.
    """
    sources = _sources(results, draft, target)
    targets = {source.session.target for source in sources}
    if len(targets) > 1:
        raise InvalidInputError.single(
            f"the draft {draft!r} was measured for {', '.join(sorted(targets))}",
            field="--target",
            fix="name one",
        )
    if not sources:
        raise MissingDataError(
            f"no session has trials of {draft!r}: measure it once, on any machine, with "
            f"`draftrank run {target or 'TARGET'} --draft {draft}`"
        )
    machine_class = _machine_class(results, machine)
    for source in sources:
        for session, arm in _times(results, source, machine_class):
            found = predict(source.arm, source.trials, (), latencies_of=arm)
            if found is not None:
                return _elsewhere(source, session, arm, found)
    raise MissingDataError(_what_is_missing(results, sources[0], machine_class))


def _sources(results: Sequence[SessionResult], draft: str, target: str | None) -> list[_Source]:
    """Sessions with trials of the draft, the best first: of the newest recipe, with the most steps."""
    found = []
    for result in results:
        session = result.session
        arm = next((arm for arm in session.arms if arm.id == draft and arm.kind == "draft"), None)
        if arm is None or arm.draft is None or target not in (None, session.target):
            continue
        trials = tuple(trial for trial in standing_trials(result.trials) if trial.arm == draft)
        if any(trial.steps for trial in trials):
            found.append(_Source(session, arm, trials))
    found.sort(key=lambda source: source.session.created_at, reverse=True)
    newest = {source.session.target: source.recipe for source in reversed(found)}
    current = [source for source in found if source.recipe == newest[source.session.target]]
    return sorted(current, key=lambda source: -source.steps)


def _machine_class(results: Sequence[SessionResult], machine: str) -> str:
    known = sorted({result.session.machine.machine_class for result in results})
    if machine in known:
        return machine
    like = [name for name in known if machine.lower() in name.lower()]
    if len(like) == 1:
        return like[0]
    raise InvalidInputError.single(
        f"{machine!r} is no machine class with results"
        if not like
        else f"{machine!r} may be several machines",
        field="--machine",
        fix=f"one of {', '.join(like or known)}" if known else "measure something there first",
    )


def _times(
    results: Sequence[SessionResult], source: _Source, machine_class: str
) -> Iterator[tuple[Session, Arm]]:
    """Arms on the machine whose forward times serve this draft, the same draft's first, then the newest."""
    found: list[tuple[bool, bool, str, Session, Arm]] = []
    for session in (result.session for result in results):
        if not _same_ground(session, source.session) or session.machine.machine_class != machine_class:
            continue
        for arm in session.arms:
            if arm.latencies and _serves(arm, source.arm):
                reaches = arm.num_speculative_tokens >= source.arm.num_speculative_tokens
                found.append((arm.id == source.arm.id, reaches, session.created_at, session, arm))
    for *_, session, arm in sorted(found, key=lambda entry: entry[:3], reverse=True):
        yield session, arm


def _same_ground(session: Session, other: Session) -> bool:
    return (session.target_weights_sha256, session.dtype, session.backend) == (
        other.target_weights_sha256,
        other.dtype,
        other.backend,
    )


def _serves(arm: Arm, wanted: Arm) -> bool:
    """Whether an arm's forwards cost what the wanted one's would on the same machine."""
    if arm.kind != "draft" or wanted.draft is None:
        return False
    if not any(entry.part == "draft" for entry in wanted.latencies):
        return True  # without forwards of its own, any times of the target will do
    if arm.draft is None:
        return False
    if wanted.draft.weights_sha256 is not None and arm.draft.weights_sha256 == wanted.draft.weights_sha256:
        return True
    return arm.draft.recipe.get("draft") == wanted.draft.recipe.get("draft")


def _what_is_missing(results: Sequence[SessionResult], source: _Source, machine_class: str) -> str:
    there = [r.session for r in results if r.session.machine.machine_class == machine_class]
    of_target = [session for session in there if session.target == source.session.target]
    draft, target, dtype = source.arm.id, source.session.target, source.session.dtype
    backend = source.session.backend
    remedy = (
        f"run `draftrank run {target} --draft {draft} --backend {backend} --dtype {dtype}` there once, the smallest suite "
        "will do"
    )
    if not of_target:
        return f"nothing of the target {target!r} was measured on {machine_class}: {remedy}"
    if not any(_same_ground(session, source.session) for session in of_target):
        dtypes = ", ".join(sorted({session.backend_and_dtype for session in of_target}))
        return (
            f"{machine_class} has sessions of {target!r} in {dtypes}, none with the same weights "
            f"in {backend} {dtype}, in which the acceptance of {draft!r} was measured: {remedy}"
        )
    return (
        f"no draft with the weights or the recipe of {draft!r} was timed on {machine_class}, "
        f"so what its forward costs there is unknown: {remedy}"
    )


def _elsewhere(source: _Source, times: Session, arm: Arm, found: Prediction) -> Elsewhere:
    assumptions = [
        f"acceptance does not depend on the machine (measured on {source.session.machine.machine_class})"
        if source.session.machine.machine_class != times.machine.machine_class
        else "acceptance and forward times come from the same machine class",
        "the loop costs nothing beside the forwards",
    ]
    if not any(entry.part == "draft" for entry in source.arm.latencies):
        assumptions.append("looking tokens up takes as long as where the acceptance was measured")
    if arm.id != source.arm.id:
        assumptions.append(f"a forward costs what that of {arm.id} costs")
    largest = max(entry.tokens for entry in arm.latencies if entry.part == "target")
    if largest < source.arm.num_speculative_tokens + 1:
        assumptions.append(
            f"verifying more than {largest} tokens grows as verifying fewer does (no more were timed)"
        )
    return Elsewhere(
        times.machine.machine_class,
        source.arm.id,
        source.arm.num_speculative_tokens,
        found,
        source.session,
        source.steps,
        times,
        arm.id,
        tuple(assumptions),
    )
