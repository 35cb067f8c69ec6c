"""Speculative decoding whose steps need no host: verification, acceptance and the next proposal follow each other on the
device, and the host is told afterwards."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from draftrank.decoding.device_tokens import DeviceTokens
from draftrank.decoding.runtimes.captured.decoder import MOST_ROWS, TILE
from draftrank.decoding.runtimes.captured.recording import Recording, Reports

if TYPE_CHECKING:
    from draftrank.decoding.proposer import Proposal
    from draftrank.decoding.runtimes.captured.runtime import CapturedRuntime
    from draftrank.decoding.stamps import DeviceStamp, HostStamp


@dataclass(frozen=True, slots=True)
class Outcome:
    """One step."""

    proposed: list[int]
    """At most k token ids."""
    choices: list[int]
    """The target's k + 1 most likely tokens, the first behind none of these, the next behind each."""
    began: DeviceStamp | HostStamp
    """When verification began."""
    verified: DeviceStamp | HostStamp
    """When the choices were known."""


class DeviceSteps:
    """Greedy steps of a target and of a draft that goes on with its own choices, a chain of the same length each time."""

    def __init__(
        self,
        target: CapturedRuntime,
        draft: CapturedRuntime,
        count: int,
        first: Callable[[Sequence[int], int], Proposal],
        chain: int | None = None,
        copying: Callable[[Sequence[int], int], Proposal] | None = None,
    ) -> None:
        """Prepares steps of at most `count` proposed tokens; nothing is recorded yet.

        Args:
            target: what verifies.
            draft: what proposes.
            count: k.
            first: what the draft proposes behind a context that the host knows, so that it holds all of it.
            chain: how many tokens the draft proposes; None: k.
            copying: what else may be proposed behind a context, instead of what the draft has found meanwhile. The host
                then sees a step before it asks for the next; otherwise the next is under way already.
        """
        self.chain = count if chain is None else min(chain, count)
        """Tokens that the draft proposes in each step, one forward each."""
        self._target = target
        self._draft = draft
        self._count = count
        self._first = first
        self._copying = copying
        self._report = torch.zeros(2 * count + 3, dtype=torch.int64, device=target.decoder.device)
        self._made_for: tuple[object, ...] = ()
        self._verify: Recording | None = None
        self._propose: Recording | None = None

    @torch.inference_mode()
    def run(self, context: Sequence[int]) -> Iterator[Outcome]:
        """Goes on without end.

        Args:
            context: what stands, all but its last token held by the target; it has grown by what was accepted whenever
                the next step is asked for.
        """
        found = self._first(context, self.chain).tokens
        assert isinstance(found, DeviceTokens)
        proposed = found.on_device.clone()  # what is recorded is done once, and proposes too
        verify, propose = self._recorded()
        start = self._target.length
        self._target.say([context[-1], *([0] * self.chain)], proposed)
        self._draft.say(context[-1:])  # what its tokens see of each other stays as it is said here
        reports = Reports(self._report)
        begins: deque[DeviceStamp | HostStamp] = deque()
        emitted = 0
        while True:
            while reports.under_way < (2 if self._copying is None else 1):
                begins.append(self._target.stamp())
                verify.replay()
                reports.ask()
                propose.replay()
            (accepted, offered, *tokens), stamp = reports.read()
            choices, candidates = tokens[: self._count + 1], tokens[self._count + 1 :]
            emitted += accepted + 1
            self._target.stands_at(start + emitted)
            self._draft.stands_at(start + emitted + 1)
            yield Outcome(candidates[:offered], choices, begins.popleft(), stamp)
            if self._copying is not None:
                copied = self._copying(context, self._count).tokens
                if copied:
                    self._target.offer_instead(context[-1], copied)

    def _recorded(self) -> tuple[Recording, Recording]:
        target, draft = self._target, self._draft
        made_for = (*target.recorded_for, *draft.recorded_for)
        if self._verify is None or self._propose is None or self._made_for != made_for:
            self._verify = target.recording(self._verifying, draft)
            self._propose = draft.recording(self._proposing, target)
            self._made_for = made_for
        return self._verify, self._propose

    def _verifying(self) -> None:
        self._target.start_forward(self._count + 1)
        self._target.decoder.judge(self._draft.decoder, self._count, self._report)

    def _proposing(self) -> None:
        draft, fusion = self._draft.decoder, self._draft.decoder.fusion
        if fusion is not None:
            states = self._target.states_of(fusion.layers)
            if fusion.reduction is None:
                draft.offered.copy_(states)
            else:
                draft.reduce(states, TILE if self._count < TILE else MOST_ROWS, draft.offered)
        self._draft.start_forward(self._count + 1)
        self._draft.start_chain(self.chain)
        self._target.decoder.deliver(draft, self.chain)
