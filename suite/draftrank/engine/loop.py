"""The decoding loops: one token per step, or proposed tokens verified together.

Time is taken where it passes: prefill (until the first token), proposing, verifying. Everything else
between the first token's arrival and the last is the loop's own cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal

from draftrank.catalog.decoding_mode import DecodingMode
from draftrank.engine.proposer import DeviceTokens, Proposal, Proposer
from draftrank.engine.sampling import Sampler
from draftrank.engine.stamps import HostStamp
from draftrank.engine.token_tree import TokenTree
from draftrank.engine.verification import Verdict, verify, verify_choices
from draftrank.errors import DraftrankError

if TYPE_CHECKING:
    from torch import Tensor

    from draftrank.catalog.recipe import TypicalAcceptance
    from draftrank.engine.backends.base import Runtime
    from draftrank.engine.stamps import DeviceStamp


class ContextOverflowError(DraftrankError):
    """Prompt and output together do not fit the context window."""

    exit_code = 2


class ProposerError(DraftrankError):
    """A proposer broke its contract, so nothing that it says can be counted."""


@dataclass(frozen=True, slots=True)
class Request:
    """One sequence to decode."""

    prompt: tuple[int, ...]
    """Token ids to start from; at least one."""
    max_new_tokens: int
    """Length limit of the output, at least 1."""
    stop_tokens: frozenset[int] = frozenset()
    """Any of these ends the output and is its last token."""
    mode: DecodingMode = DecodingMode()
    """How tokens are chosen."""
    seed: int | None = None
    """Seed of this sequence; default: the mode's."""


@dataclass(frozen=True, slots=True)
class Decoding:
    """An output and how it came about."""

    token_ids: tuple[int, ...]
    """Emitted tokens; the first comes from the prefill."""
    finish: Literal["stop", "length"]
    """What ended it."""
    steps: int
    """Target forwards after the prefill."""
    accept_histogram: tuple[int, ...]
    """Entry i: steps that emitted i accepted tokens and one more; length k+1.

    The last token of a step stands for the bonus: when a stop token lies within the accepted run,
    what follows it does not count, so tokens = steps + accepted holds always.
    """
    offered: tuple[int, ...]
    """Entry i: steps whose (i+1)-th token was proposed and whose first i were accepted; length k."""
    proposal_sizes: tuple[int, ...]
    """Entry i: steps that verified exactly i proposed tokens; length k+1."""
    proposed: int
    """Tokens proposed over all steps, up to a stop token that ended the output."""
    draft_forwards: int
    """Forwards of the draft model after its prefill."""
    prefill_s: float
    """Seconds to the first token, the draft's prefill included."""
    decode_s: float
    """Seconds from the first token to the last."""
    propose_s: float
    """Part of `decode_s` spent proposing."""
    verify_s: float
    """Part of `decode_s` spent in target forwards."""
    proposals: tuple[tuple[int, Proposal], ...] = ()
    """For each step, how many tokens of the output stood before it, and what was proposed; greedy modes only."""

    @property
    def acceptance_length(self) -> float:
        """Emitted tokens per step after the prefill; 1 when there was no step."""
        return (len(self.token_ids) - 1) / self.steps if self.steps else 1.0


def autoregressive(target: Runtime, request: Request) -> Decoding:
    """Decodes one token per forward.

    Raises:
        ContextOverflowError: prompt and limit do not fit the target's window.
    """
    _check_room(target, request)
    sampler = Sampler(request.mode, request.seed)
    target.reset()
    target.reserve(len(request.prompt) + request.max_new_tokens)
    target.synchronize()
    started = perf_counter()
    token = sampler.choose(target.forward(request.prompt, keep=1), target)
    arrived = perf_counter()
    tokens = [token]
    clock = _Clock(target)
    clock.begin()
    if target.capabilities.device:
        if token not in request.stop_tokens:
            decoded = target.decode_alone(token, request.max_new_tokens - 1, sampler)
            for token, stamp in decoded:
                clock.verified(stamp)
                tokens.append(token)
                clock.begin(stamp)
                if token in request.stop_tokens:
                    break
    else:
        while token not in request.stop_tokens and len(tokens) < request.max_new_tokens:
            logits = target.forward((token,))
            clock.verified()
            token = sampler.choose(logits, target)
            tokens.append(token)
            clock.begin()
    ended = perf_counter()
    steps = len(tokens) - 1
    return Decoding(
        token_ids=tuple(tokens),
        finish="stop" if token in request.stop_tokens else "length",
        steps=steps,
        accept_histogram=(steps,),
        offered=(),
        proposal_sizes=(steps,),
        proposed=0,
        draft_forwards=0,
        prefill_s=arrived - started,
        decode_s=ended - arrived,
        propose_s=0.0,
        verify_s=clock.verify_s(),
    )


def speculative(
    target: Runtime,
    proposer: Proposer,
    request: Request,
    num_speculative_tokens: int,
    typical: TypicalAcceptance | None = None,
) -> Decoding:
    """Decodes with proposed tokens: each step verifies up to k of them in one forward.

    Args:
        target: the model whose output it is.
        proposer: what proposes.
        request: the sequence.
        num_speculative_tokens: k, at least 1.
        typical: accept typical tokens (lossy) instead of only what leaves the output unchanged.

    Raises:
        ContextOverflowError: prompt and limit do not fit the target's window. A draft whose window is shorter
            proposes nothing behind it.
        ProposerError: more was proposed than asked for, a tree to a target that reads chains only, or by a model of
            another vocabulary size.
    """
    k = num_speculative_tokens
    _check_room(target, request)
    draft = proposer.runtime()
    if draft is not None and not proposer.translates and draft.vocabulary_size != target.vocabulary_size:
        raise ProposerError(
            f"its logits have {draft.vocabulary_size} entries and the target's {target.vocabulary_size}: open the "
            "draft with the target's number of rows"
        )
    sampler = Sampler(request.mode, request.seed)
    target.reset()
    reserve = len(request.prompt) + request.max_new_tokens
    target.reserve(reserve)
    target.synchronize()

    started = perf_counter()
    token = sampler.choose(target.forward(request.prompt, keep=1), target)
    proposer.begin(request.prompt, sampler, reserve)
    target.synchronize()
    arrived = perf_counter()

    context = [*request.prompt, token]
    limit = len(request.prompt) + request.max_new_tokens
    tally = _Tally(k, context, request)
    clock = _Clock(target)
    clock.begin()
    within = draft is None or limit <= draft.context_window
    on_device = proposer.device_steps(target, sampler, k) if within else None
    if typical is None and on_device is not None and not tally.stopped and len(context) < limit:
        for outcome in on_device.run(context, sampler):
            clock.proposed(outcome.began)
            clock.verified(outcome.verified)
            # As if the last steps had proposed no more than can stand.
            room = min(k, limit - len(context) - 1)
            proposal = Proposal(outcome.proposed[:room], forwards=on_device.chain)
            tally.add(proposal, verify_choices(outcome.choices.__getitem__, proposal))
            clock.begin(outcome.verified)
            if tally.stopped or len(context) >= limit:
                break
        target.rollback(target.length - len(context) + 1)
    while not tally.stopped and len(context) < limit:
        # The step emits one token more than it accepts, so the last one needs no proposal.
        room = min(k, limit - len(context) - 1)
        proposal = proposer.propose(context, room) if room else Proposal([])
        if len(proposal.tokens) > room:
            raise ProposerError(f"it proposed {len(proposal.tokens)} tokens where at most {room} can stand")
        clock.proposed()
        logits = _verification(target, context[-1], proposal)
        clock.verified()
        verdict = verify(logits, proposal, sampler, typical, target)
        path = _path(verdict)
        target.commit(len(context) - 1, (0, *(index + 1 for index in path)))
        if room:
            proposer.accept([proposal.tokens[index] for index in path])
        tally.add(proposal, verdict)
        clock.begin()
    now = perf_counter()
    return Decoding(
        token_ids=tuple(context[len(request.prompt) :]),
        finish="stop" if tally.stopped else "length",
        steps=sum(tally.histogram),
        accept_histogram=tuple(tally.histogram),
        offered=tuple(tally.offered),
        proposal_sizes=tuple(tally.sizes),
        proposed=tally.proposed,
        draft_forwards=tally.draft_forwards,
        prefill_s=arrived - started,
        decode_s=now - arrived,
        propose_s=clock.propose_s(),
        verify_s=clock.verify_s(),
        proposals=tuple(tally.proposals),
    )


class _Tally:
    """What has been emitted, and what came of all that was proposed."""

    def __init__(self, k: int, context: list[int], request: Request) -> None:
        """Starts with the first token, the context's last; the context grows by what is emitted."""
        self._context = context
        self._prompt = len(request.prompt)
        self._greedy = request.mode.greedy
        self._stop_tokens = request.stop_tokens
        self.stopped = context[-1] in request.stop_tokens
        """Whether the last token ends the output."""
        self.histogram = [0] * (k + 1)
        self.offered = [0] * k
        self.sizes = [0] * (k + 1)
        self.proposed = 0
        self.draft_forwards = 0
        self.proposals: list[tuple[int, Proposal]] = []

    def add(self, proposal: Proposal, verdict: Verdict) -> None:
        """Counts one step."""
        path = _path(verdict)
        emitted = [*(proposal.tokens[index] for index in path), verdict.next_token]
        # On its way to the last token that was judged, the step was offered this many in turn.
        offers = len(path) + bool(proposal.children(path[-1] if path else -1))
        judged = len(proposal.tokens)
        for index, candidate in enumerate(emitted):
            if candidate in self._stop_tokens:
                self.stopped = True
                if index < verdict.accepted:
                    # An accepted stop token stands for the bonus, and nothing after it was judged.
                    offers, judged = index, _until(proposal, index)
                del emitted[index + 1 :]
                break
        if self._greedy:  # drawn ones hold distributions over the vocabulary
            self.proposals.append((len(self._context) - self._prompt, proposal))
        self._context += emitted
        self.histogram[len(emitted) - 1] += 1
        self.sizes[len(proposal.tokens)] += 1
        for index in range(offers):
            self.offered[index] += 1
        self.proposed += judged
        self.draft_forwards += proposal.forwards


def _path(verdict: Verdict) -> Sequence[int]:
    """Indices in the proposal of what was accepted."""
    return range(verdict.accepted) if verdict.path is None else verdict.path


def _verification(target: Runtime, last: int, proposal: Proposal) -> Tensor:
    """Logits after the context's last token and after each proposed one."""
    if isinstance(proposal.tokens, DeviceTokens) and target.capabilities.device:
        return target.forward_after(last, proposal.tokens)
    tokens = (last, *proposal.tokens)
    if proposal.parents is None:
        return target.forward(tokens)
    if not target.capabilities.trees:
        raise ProposerError(f"it proposed a tree, which the backend {target.name} cannot verify")
    return target.forward(tokens, tree=TokenTree.behind(proposal.parents))


def _until(proposal: Proposal, depth: int) -> int:
    """How many tokens were proposed at the first `depth` positions."""
    if proposal.parents is None:
        return depth
    depths = TokenTree.behind(proposal.parents).depths
    return sum(one <= depth for one in depths[1:])


class _Clock:
    """When proposing and verifying began and ended: on the device's own clock where it has one, and by waiting elsewhere."""

    def __init__(self, target: Runtime) -> None:
        self._target = target
        self._clocked = target if target.capabilities.device else None
        self._steps: list[tuple[Any, Any, Any]] = []
        self._began: Any = None
        self._proposed: Any = None

    def begin(self, at: HostStamp | DeviceStamp | None = None) -> None:
        """A step begins, now or at a moment known; whatever the one before asked for is done."""
        if at is None:
            at = HostStamp() if self._clocked is None else self._clocked.stamp()
        self._began = self._proposed = at

    def proposed(self, at: HostStamp | DeviceStamp | None = None) -> None:
        """Its tokens are proposed."""
        self._proposed = at or self._now()

    def verified(self, at: HostStamp | DeviceStamp | None = None) -> None:
        """The target has read them."""
        self._steps.append((self._began, self._proposed, at or self._now()))

    def propose_s(self) -> float:
        """Seconds of all steps that went into proposing."""
        return fsum(proposed.since(began) for began, proposed, _ in self._steps)

    def verify_s(self) -> float:
        """The same of the target's forwards."""
        return fsum(verified.since(proposed) for _, proposed, verified in self._steps)

    def _now(self) -> HostStamp | DeviceStamp:
        if self._clocked is not None:
            return self._clocked.stamp()
        self._target.synchronize()
        return HostStamp()


def _check_room(target: Runtime, request: Request) -> None:
    if not request.prompt:
        raise ContextOverflowError("the prompt is empty: at least one token is needed to decode from")
    needed = len(request.prompt) + request.max_new_tokens
    if needed > target.context_window:
        raise ContextOverflowError(
            f"{len(request.prompt)} prompt tokens and {request.max_new_tokens} new ones do not fit the "
            f"target's context window of {target.context_window}: shorten the prompt or lower max_new_tokens"
        )
