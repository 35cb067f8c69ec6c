"""Speculative decoding whose steps need no host: verification, acceptance and the next proposal follow each other on the
device, and the host is told afterwards."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from draftrank.engine.backends.cuda_graphs.decoder import TILE
from draftrank.engine.backends.cuda_graphs.recording import Recording, Reports
from draftrank.engine.backends.cuda_graphs.state import MAX_ROWS
from draftrank.engine.proposer import DeviceStep, DeviceSteps, DeviceTokens
from draftrank.engine.verification import coupled

if TYPE_CHECKING:
    from draftrank.catalog.decoding_mode import DecodingMode
    from draftrank.engine.backends.cuda_graphs.runtime import CudaGraphsRuntime
    from draftrank.engine.proposer import Proposal
    from draftrank.engine.sampling import Sampler
    from draftrank.engine.stamps import DeviceStamp, HostStamp


class CudaGraphSteps(DeviceSteps):
    """Steps of a target and of a draft that goes on with its own choices, a chain of the same length each time."""

    def __init__(
        self,
        target: CudaGraphsRuntime,
        draft: CudaGraphsRuntime,
        count: int,
        mode: DecodingMode,
        first: Callable[[Sequence[int], int], Proposal],
        chain: int | None = None,
        copying: Callable[[Sequence[int], int], Proposal] | None = None,
    ) -> None:
        """Prepares steps; arguments as of `Runtime.device_steps`. Nothing is recorded yet. Where something is copied the
        host sees a step before it asks for the next; otherwise the next is under way already."""
        self.chain = count if chain is None else min(chain, count)
        self._target = target
        self._draft = draft
        self._count = count
        self._mode = mode
        self._first = first
        self._copying = copying
        device = target.decoder.device
        self._report = torch.zeros(2 * count + 3, dtype=torch.int64, device=device)
        drawn = 0 if mode.greedy else count
        self._drafted = torch.zeros(drawn, target.vocabulary_size, device=device)
        """Distributions of what is proposed, where tokens are drawn."""
        self._uniforms = torch.zeros(count + 1 + self.chain, device=device)
        """A step's random numbers: the verification's k + 1, then one for each token of the chain behind it."""
        self._made_for: tuple[object, ...] = ()
        self._verify: Recording | None = None
        self._propose: Recording | None = None

    @torch.inference_mode()
    def run(self, context: Sequence[int], sampler: Sampler) -> Iterator[DeviceStep]:
        found = self._first(context, self.chain)
        copied = () if self._copying is None else self._copying(context, self._count).tokens
        if copied:
            proposed = torch.tensor(copied, device=self._report.device)
        elif isinstance(found.tokens, DeviceTokens):
            proposed = found.tokens.on_device.clone()  # what is recorded is done once, and proposes too
        else:
            proposed = torch.tensor(found.tokens, device=self._report.device)
        verify, propose = self._recorded()
        start = self._target.length
        self._target.say([context[-1], *([0] * len(proposed))], proposed)
        if copied:
            self._draft_certainly()
        elif found.probabilities is not None:
            self._drafted[: self.chain] = found.probabilities
        self._draft.say(context[-1:])  # what its tokens see of each other stays as it is said here
        reports = Reports(self._report)
        begins: deque[DeviceStamp | HostStamp] = deque()
        emitted = 0
        while True:
            while reports.under_way < (2 if self._copying is None else 1):
                if not self._mode.greedy:
                    self._uniforms.copy_(sampler.uniforms(len(self._uniforms)), non_blocking=True)
                begins.append(self._target.stamp())
                verify.replay()
                reports.ask()
                propose.replay()
            (accepted, offered, *tokens), stamp = reports.read()
            choices, candidates = tokens[: self._count + 1], tokens[self._count + 1 :]
            emitted += accepted + 1
            self._target.stands_at(start + emitted)
            self._draft.stands_at(start + emitted + 1)
            yield DeviceStep(candidates[:offered], choices, begins.popleft(), stamp)
            if self._copying is not None:
                self._copy(context)

    def _copy(self, context: Sequence[int]) -> None:
        """Offers what is found to copy, if anything is."""
        assert self._copying is not None
        copied = self._copying(context, self._count).tokens
        if not copied:
            return
        self._target.offer_instead(context[-1], copied)
        self._draft_certainly()

    def _draft_certainly(self) -> None:
        """Gives what the target reads next, which was copied, all of the probability."""
        if not self._mode.greedy:
            self._drafted.zero_().scatter_(1, self._target.proposed(self._count)[:, None], 1.0)

    def _recorded(self) -> tuple[Recording, Recording]:
        target, draft = self._target, self._draft
        made_for = (*target.recorded_for, *draft.recorded_for)
        if self._verify is None or self._propose is None or self._made_for != made_for:
            self._verify = target.recording(self._verifying, draft)
            self._propose = draft.recording(self._proposing, target)
            self._made_for = made_for
        return self._verify, self._propose

    def _verifying(self) -> None:
        target, count = self._target, self._count
        target.start_forward(count + 1)
        if not self._mode.greedy:
            uniforms, likely = self._uniforms[: count + 1], target.distributions(self._mode, count + 1)
            target.decoder.choices[: count + 1] = coupled(
                likely, self._drafted, target.proposed(count), uniforms, target.offered
            )
        target.decoder.judge(self._draft.decoder, count, self._report)

    def _proposing(self) -> None:
        draft, fusion = self._draft.decoder, self._draft.decoder.fusion
        if fusion is not None:
            states, rows = self._target.states_of(fusion.layers), TILE if self._count < TILE else MAX_ROWS
            draft.reduce(states, rows, draft.offered)
        self._draft.start_forward(self._count + 1)
        self._draft.start_chain(self.chain, None if self._mode.greedy else self._draw)
        self._target.decoder.deliver(draft, self.chain)

    def _draw(self, index: int) -> None:
        """Draws the chain's next token in place of the most likely one."""
        begin = self._count + 1 + index
        self._drafted[index] = self._draft.draw(self._mode, self._uniforms[begin : begin + 1])
