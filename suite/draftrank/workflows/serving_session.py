"""A serving session, measured: first the plain server alone, then blocks of rounds, then the plain server as judge.

A block has one round of every arm at one concurrency, in an order that is drawn for each block. Only one server has load
at a time; the others are paused. Where memory does not hold all servers they are measured in groups, each with the plain
server in blocks of its own. Every round is stored as it ends, so that the same command goes on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from draftrank.errors import DraftrankError
from draftrank.measure.evidence import Conditions, utc_now
from draftrank.measure.machine.conditions import Watch, watching
from draftrank.measure.machine.disturbance import disturbance_of
from draftrank.measure.machine.energy import EnergyMeter
from draftrank.measure.records import BASELINE
from draftrank.measure.serving_records import Round, ServingArm, ServingSession
from draftrank.measure.serving_rounds import (
    Place,
    ServingMachine,
    counters_between,
    diverged,
    judged,
    moments_of,
    order_of,
    requests_of,
    told_at,
)
from draftrank.measure.sessions.schedule import round_order
from draftrank.progress import Progress
from draftrank.serving.base import CompletionRequest, Speculation
from draftrank.serving.http import ServerError
from draftrank.serving.load import counters_of, put_load
from draftrank.serving.sending import in_turn, with_whole_outputs
from draftrank.store.serving import ServingSessions
from draftrank.workflows.serving_arms import OpenServer, Servers

MAX_ATTEMPTS = 3
"""How often a block is measured at most while the machine is disturbed."""
WARM_UP_TOKENS = 8
"""Tokens of each request that warms a server up."""


@dataclass(slots=True)
class Run:
    """One process's part in a session."""

    servers: Servers
    store: ServingSessions
    session: ServingSession
    speculations: Mapping[str, Speculation | None]
    """Of each arm that can run; those whose draft could not be had are missing."""
    prompts: Sequence[CompletionRequest]
    """The request of every turn."""
    rounds: list[Round]
    """Those that are stored."""
    progress: Progress
    process: int = field(init=False)
    _energy: EnergyMeter | None = field(init=False)
    _machine: ServingMachine | None = field(init=False)
    _watch: Watch | None = field(init=False)

    def __post_init__(self) -> None:
        self.process = 1 + max((one.process for one in self.rounds), default=-1)
        here = not self.servers.declared.attach
        self._energy = EnergyMeter(self.session.device) if here else None
        self._machine = ServingMachine(self.session.device) if watching() else None
        self._watch = Watch(self._machine) if self._machine else None

    def measure(self) -> None:
        """Measures what is missing, with the plain server open already.

        Raises:
            ServerError: the plain server failed; what was measured is stored.
        """
        plain = self.servers.opened[BASELINE]
        size = plain.process.memory_bytes() if plain.process else 0
        room = self.servers.hold(size)
        others = [arm for arm in self.session.arms if arm.id in self.speculations and arm.id != BASELINE]
        if others and not room:
            raise DraftrankError(
                f"memory holds one server of {size / 2**30:.1f} GiB, and two are compared "
                "(close other programs, or lower kv_cache_gib in the server's file)"
            )
        plan = self._groups(others, room)
        total = (
            len(self.session.concurrencies) * self.session.rounds * sum(len(one) + 1 for one in plan.values())
        )
        if len(plan) > 1 and len(others) > room:
            self._warn(
                f"memory held {room + 1} servers at once, so that drafts were measured in {len(plan)} groups"
            )
        with self.progress.stage("measure rounds", total) as stage:
            for number, group in plan.items():
                if self._complete(number, group):
                    stage.advance(len(self.session.concurrencies) * self.session.rounds * (len(group) + 1))
                    continue
                for arm in group:
                    self._open(arm)
                for block in range(self.session.rounds):
                    for concurrency in self.session.concurrencies:
                        index = number * self.session.rounds + block
                        # The plain server alone is measured once.
                        if not number or any(arm.id in self.servers.opened for arm in group):
                            self._block(concurrency, index, [BASELINE, *(arm.id for arm in group)])
                        stage.advance(len(group) + 1, note=f"{concurrency} in flight, block {index}")
                for arm in group:
                    self.servers.close(arm.id)

    def _groups(self, arms: Sequence[ServingArm], room: int) -> dict[int, list[ServingArm]]:
        """See `groups`. Arms that failed before are tried again behind all others, in blocks of their own: the plain server's
        rounds in the blocks that they missed are of another time."""
        blocks = self.session.rounds
        plan = groups([arm for arm in arms if arm.failure is None], self.rounds, blocks, room)
        failed = [arm for arm in arms if arm.failure is not None]
        if failed:
            begun = max((one.index // blocks for one in self.rounds), default=0)
            behind = 1 + max(begun, *plan)
            plan |= {behind + number: group for number, group in groups(failed, [], blocks, room).items()}
        return plan

    def judge(self) -> None:
        """Lets the plain server judge every output that left its own."""
        turns, plain = self.session.turns, self.servers.opened[BASELINE]
        places = list(diverged(self.rounds, turns))
        if not places:
            return
        plain.resume()
        with self.progress.stage("judge divergences", len(places)) as stage:
            told = told_at(self.servers.engine, plain.client, self.prompts, turns, places, stage.advance)
        for number, one in enumerate(self.rounds):
            looked = judged(one, turns, told)
            if looked != one:
                self.store.judge_round(self.session.id, looked)
                self.rounds[number] = looked

    # -- servers ---------------------------------------------------------------------------------

    def _open(self, arm: ServingArm) -> None:
        """Starts and warms an arm's server; a failure is recorded."""
        try:
            with self.progress.stage(f"start {arm.id}"):
                opened = self.servers.open(arm, self.speculations[arm.id])
                warm_up(self.servers, opened, self.prompts, max(self.session.concurrencies))
        except ServerError as error:
            self._fail(arm.id, error)
        else:
            self._note(arm.id, flags=opened.flags, start_s=opened.start_s)
            opened.pause()

    def _fail(self, arm: str, error: ServerError) -> None:
        self.progress.message(f"{arm} failed: {error.reason.splitlines()[0]}")
        tail = None if error.log_tail is None else self.servers.shown(error.log_tail)
        self._note(arm, failure=self.servers.shown(error.reason), log_tail=tail)
        self.servers.close(arm)

    def _note(self, arm_id: str, **changes: object) -> None:
        """Keeps what is now known of an arm."""
        arms = [arm.model_copy(update=changes) if arm.id == arm_id else arm for arm in self.session.arms]
        self.session = self.session.model_copy(update={"arms": tuple(arms)})
        self.store.update_arm(self.session.id, next(arm for arm in arms if arm.id == arm_id))

    def _warn(self, text: str) -> None:
        self.progress.message(text)
        self.store.add_warnings(self.session.id, (text,))

    def _complete(self, number: int, group: Sequence[ServingArm]) -> bool:
        """Whether a group has all its blocks, so that its servers need not be started."""
        found = {(one.arm, one.concurrency, one.index) for one in self.rounds}
        blocks = range(number * self.session.rounds, (number + 1) * self.session.rounds)
        return all(
            (arm, concurrency, index) in found
            for arm in (BASELINE, *(one.id for one in group))
            for concurrency in self.session.concurrencies
            for index in blocks
        )

    # -- rounds ----------------------------------------------------------------------------------

    def _block(self, concurrency: int, index: int, arms: Sequence[str]) -> None:
        """Measures the rounds that a block lacks, and the whole block again while the machine is disturbed."""
        of_block = [one for one in self.rounds if (one.concurrency, one.index) == (concurrency, index)]
        attempt = max((one.attempt for one in of_block), default=0)
        order = round_order(arms, self.session.plan_sha256, concurrency, index)
        while True:
            found = {one.arm: one for one in of_block if one.attempt == attempt}
            for position, arm in enumerate(order):
                if arm in self.servers.opened and arm not in found:
                    place = Place(arm, concurrency, self.session.rate, index, position, attempt, self.process)
                    found[arm] = self._round(place)
            disturbed = self._disturbed([one.conditions for one in found.values()])
            if disturbed is None or attempt + 1 == MAX_ATTEMPTS:
                return
            self.progress.message(
                f"block {index} at concurrency {concurrency} is measured again: {disturbed}"
            )
            attempt += 1

    def _disturbed(self, conditions: Sequence[Conditions | None]) -> str | None:
        found = disturbance_of(conditions, self._machine.processors) if self._machine else None
        return found.reason if found else None

    def _round(self, place: Place) -> Round:
        """Measures and stores a round.

        Raises:
            ServerError: the plain server ended, or answered nothing.
        """
        opened, engine = self.servers.opened[place.arm], self.servers.engine
        session = self.session
        order = order_of(len(session.turns), place, session.seed)
        opened.resume()
        self._touch(opened)
        before = counters_of(engine, opened.client)
        if self._machine is not None and self._watch is not None:
            self._machine.server_cpu_s = opened.cpu_s
            self._watch.start_anew()
            self._watch.begin()
        if self._energy:
            self._energy.begin()
        started_at, cpu_s = utc_now(), opened.cpu_s()
        load = put_load(
            engine,
            opened.client,
            self.prompts,
            order,
            place.concurrency,
            moments=moments_of(len(order), place, session.seed),
            alive=lambda: opened.alive,
        )
        energy_j = self._energy.end() if self._energy else None
        cpu_s = max(0.0, opened.cpu_s() - cpu_s)
        conditions = self._watch.end() if self._watch else None
        counters, anew = counters_between(before, counters_of(engine, opened.client))
        opened.started += anew
        memory = opened.process.memory_bytes() if opened.process else None
        load = with_whole_outputs(engine, opened.client, self.prompts, load)
        opened.pause()
        wall_s = max(load.wall_s, 1e-6)
        one = Round(
            **{name: getattr(place, name) for name in Place.__slots__},
            started_at=started_at,
            wall_s=wall_s,
            requests=requests_of(load, session.turns, drafted=self._k(place.arm) > 0),
            counters=counters,
            conditions=conditions,
            client_cpu=round(load.client_cpu_s / wall_s, 4),
            server_cpu=round(cpu_s / wall_s, 4) if opened.process else None,
            server_started=opened.started,
            memory_bytes=memory or None,
            energy_j=energy_j,
        )
        self.store.add_round(session.id, one)
        self.rounds.append(one)
        if not opened.alive:
            self._out(place.arm, opened.ended("the server ended in a round"))
        elif load.failed == len(load.answers):
            self._out(place.arm, opened.ended(f"every request of a round failed: {load.answers[0].failure}"))
        else:
            self._recovered(place.arm)
        return one

    def _recovered(self, arm_id: str) -> None:
        """Forgets that an arm had failed, once it has a round again, and says so in the session."""
        arm = next(arm for arm in self.session.arms if arm.id == arm_id)
        if arm.failure is not None:
            self._warn(f"{arm_id} was tried again after it had failed: {arm.failure.splitlines()[0]}")
            self._note(arm_id, failure=None, log_tail=None)

    def _out(self, arm: str, error: ServerError) -> None:
        self._fail(arm, error)
        if arm == BASELINE:
            raise error

    def _touch(self, opened: OpenServer) -> None:
        """One short request, after a pause; what is wrong with the server shows in the round."""
        try:
            in_turn(self.servers.engine, opened.client, [_short(self.prompts[0])])
        except ServerError:
            pass

    def _k(self, arm_id: str) -> int:
        return next(arm.num_speculative_tokens for arm in self.session.arms if arm.id == arm_id)


def groups(
    arms: Sequence[ServingArm], rounds: Sequence[Round], blocks: int, room: int
) -> dict[int, list[ServingArm]]:
    """Which arms are measured together with the plain server, by the number of their group.

    Arms with rounds stay in the group of their last blocks. The others fill up the last group while it has only begun, and then
    make new ones.

    Args:
        arms: without the plain server.
        rounds: what has been measured.
        blocks: of each concurrency and group.
        room: arms that memory holds at once.
    """
    member = {one.arm: one.index // blocks for one in sorted(rounds, key=lambda one: one.index)}
    found: dict[int, list[ServingArm]] = {}
    for arm in arms:
        if arm.id in member:
            found.setdefault(member[arm.id], []).append(arm)
    last = max(member.values(), default=0)
    if any(one.index > last * blocks for one in rounds):
        last += 1
    for arm in arms:
        if arm.id not in member:
            if len(found.get(last, ())) >= room:
                last += 1
            found.setdefault(last, []).append(arm)
    if not found:  # the plain server alone
        found[0] = []
    return dict(sorted(found.items()))


def warm_up(
    servers: Servers, opened: OpenServer, prompts: Sequence[CompletionRequest], concurrency: int
) -> None:
    """Lets a server do once what rounds will ask of it.

    Raises:
        ServerError: it answers nothing.
    """
    short = [_short(prompt) for prompt in prompts]
    order = [place % len(short) for place in range(concurrency)]
    for at_once in sorted({1, concurrency}):
        load = put_load(servers.engine, opened.client, short, order, at_once, alive=lambda: opened.alive)
        if load.failed == len(load.answers):
            raise opened.ended(f"it does not answer: {load.answers[0].failure}")


def _short(prompt: CompletionRequest) -> CompletionRequest:
    return CompletionRequest(prompt.prompt, min(WARM_UP_TOKENS, prompt.max_new_tokens), prompt.stop_tokens)
