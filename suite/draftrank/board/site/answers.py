"""Which draft to use for a target on a machine: what the landing page answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from draftrank.board.order import Place
from draftrank.board.rows import Board, BoardRow
from draftrank.catalog.target import Target


@dataclass(frozen=True, slots=True)
class BackendAnswer:
    """One backend: its plain decoding, and the draft that leads its board."""

    label: str
    """Backend and dtype."""
    board: Board
    plain: float | None
    """Plain decoding, in tokens per second."""
    leader: BoardRow | None
    """The leading lossless draft; None without one."""
    leader_plain: float | None
    """Plain decoding in the leader's own session, in tokens per second."""

    @property
    def gains(self) -> bool:
        """Whether the leader is surely faster than plain decoding."""
        ci = self.leader.ci if self.leader else None
        return ci is not None and ci[0] > 1

    @property
    def reached(self) -> float:
        """Tokens per second of the faster one of the leader and plain decoding; 0 where both are unknown."""
        drafted = self.leader.tokens_per_second if self.leader and self.gains else None
        return max(self.plain or 0.0, drafted or 0.0)


@dataclass(frozen=True, slots=True)
class Answer:
    """One target on one machine class."""

    target: str
    title: str
    """The target's, for people."""
    machine_class: str
    hardware: str
    """The processor or GPU by name."""
    archived: bool
    backends: tuple[BackendAnswer, ...]
    """The backends, that with the fastest plain decoding first; never empty."""

    @property
    def first(self) -> BackendAnswer:
        """The fastest backend."""
        return self.backends[0]

    @property
    def faster(self) -> BackendAnswer | None:
        """A backend in which the leading draft makes up for slower plain decoding; None without one."""
        best = max(self.backends, key=lambda backend: backend.reached)
        return best if best.reached > self.first.reached else None

    @property
    def equals(self) -> int:
        """Other drafts of the fastest backend's board that its leader is not surely ahead of."""
        leader = self.first.leader
        return leader.rank[1] - 1 if leader and leader.rank else 0


def answers_of(places: Sequence[Place], declared: Mapping[str, Target]) -> tuple[Answer, ...]:
    """One answer per target and machine class, in the order of the places; of places that several versions measured the
    first counts."""
    found: dict[tuple[str, str, str], Answer] = {}
    for place in places:
        key = place.lead.key
        where = key.target, key.target_weights_sha256, key.machine_class
        if where not in found:
            found[where] = _answer(place, declared.get(key.target))
    return tuple(found.values())


def _answer(place: Place, target: Target | None) -> Answer:
    key, machine = place.lead.key, place.lead.newest.machine
    return Answer(
        key.target,
        target.title if target else key.target,
        key.machine_class,
        machine.gpu or machine.cpu,
        key.archived,
        tuple(map(_backend, (boards[0] for boards in place.backends))),
    )


def _backend(board: Board) -> BackendAnswer:
    plain = {session.id: session.baseline_tokens_per_second for session in board.sessions}
    leader = board.fastest
    return BackendAnswer(
        board.key.backend_and_dtype,
        board,
        board.newest.baseline_tokens_per_second,
        leader,
        plain.get(leader.session) if leader else None,
    )
