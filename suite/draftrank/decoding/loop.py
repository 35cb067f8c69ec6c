"""The decoding loops: one token per step, or proposed tokens verified together.

Time is taken where it passes: prefill (until the first token), proposing, verifying. Everything else
between the first token's arrival and the last is the loop's own cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Literal

from draftrank.catalog.decoding_mode import DecodingMode
from draftrank.decoding.proposer import Proposal, Proposer
from draftrank.decoding.runtime import TreeRuntime
from draftrank.decoding.sampling import Sampler
from draftrank.decoding.token_tree import TokenTree
from draftrank.decoding.verification import Verdict, verify
from draftrank.errors import DraftrankError

if TYPE_CHECKING:
    from torch import Tensor

    from draftrank.catalog.recipe import TypicalAcceptance
    from draftrank.decoding.runtime import Runtime


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

    @property
    def acceptance_length(self) -> float:
        """Emitted tokens per step after the prefill; 1 when there was no step."""
        return (len(self.token_ids) - 1) / self.steps if self.steps else 1.0


def autoregressive(target: Runtime, request: Request) -> Decoding:
    """Decodes one token per forward.

    Raises:
        ContextOverflowError: prompt and limit do not fit the target's window.
    """
    _check_room(target, request, "target")
    sampler = Sampler(request.mode, request.seed)
    target.reset()
    target.reserve(len(request.prompt) + request.max_new_tokens)
    target.synchronize()
    started = perf_counter()
    token = sampler.choose(target.feed(request.prompt, keep=1))
    arrived = perf_counter()
    tokens = [token]
    verify_s = 0.0
    before = arrived
    while token not in request.stop_tokens and len(tokens) < request.max_new_tokens:
        logits = target.feed((token,))
        target.synchronize()
        verify_s += perf_counter() - before
        token = sampler.choose(logits)
        tokens.append(token)
        before = perf_counter()
    ended = before
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
        verify_s=verify_s,
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
        ContextOverflowError: prompt and limit do not fit the window of target or draft.
        ProposerError: more was proposed than asked for, or a tree to a target that reads chains only.
    """
    k = num_speculative_tokens
    _check_room(target, request, "target")
    draft = proposer.runtime()
    if draft is not None:
        _check_room(draft, request, "draft")
    sampler = Sampler(request.mode, request.seed)
    target.reset()
    reserve = len(request.prompt) + request.max_new_tokens
    target.reserve(reserve)
    target.synchronize()

    started = perf_counter()
    token = sampler.choose(target.feed(request.prompt, keep=1))
    proposer.begin(request.prompt, sampler, reserve)
    target.synchronize()
    arrived = perf_counter()

    context = [*request.prompt, token]
    limit = len(request.prompt) + request.max_new_tokens
    histogram = [0] * (k + 1)
    offered = [0] * k
    sizes = [0] * (k + 1)
    proposed = draft_forwards = 0
    propose_s = verify_s = 0.0
    stopped = token in request.stop_tokens
    now = arrived
    while not stopped and len(context) < limit:
        # The step emits one token more than it accepts, so the last one needs no proposal.
        room = min(k, limit - len(context) - 1)
        proposal = proposer.propose(context, room) if room else Proposal([])
        if len(proposal.tokens) > room:
            raise ProposerError(f"it proposed {len(proposal.tokens)} tokens where at most {room} can stand")
        target.synchronize()
        proposing_ended = perf_counter()
        logits = _read(target, context[-1], proposal)
        target.synchronize()
        verifying_ended = perf_counter()
        verdict = verify(logits, proposal, sampler, typical)
        path = _keep(target, proposal, verdict)
        standing = [proposal.tokens[place] for place in path]
        if room:
            proposer.settle(standing)
        emitted = [*standing, verdict.next_token]
        # On its way to the last token that was judged, the step was offered this many in turn.
        offers = len(path) + bool(proposal.children(path[-1] if path else -1))
        judged = len(proposal.tokens)
        for index, candidate in enumerate(emitted):
            if candidate in request.stop_tokens:
                stopped = True
                if index < verdict.accepted:
                    # An accepted stop token stands for the bonus, and nothing after it was judged.
                    offers, judged = index, _until(proposal, index)
                del emitted[index + 1 :]
                break
        context += emitted
        accepted = len(emitted) - 1
        histogram[accepted] += 1
        sizes[len(proposal.tokens)] += 1
        for index in range(offers):
            offered[index] += 1
        proposed += judged
        draft_forwards += proposal.forwards
        propose_s += proposing_ended - now
        verify_s += verifying_ended - proposing_ended
        now = perf_counter()
    return Decoding(
        token_ids=tuple(context[len(request.prompt) :]),
        finish="stop" if stopped else "length",
        steps=sum(histogram),
        accept_histogram=tuple(histogram),
        offered=tuple(offered),
        proposal_sizes=tuple(sizes),
        proposed=proposed,
        draft_forwards=draft_forwards,
        prefill_s=arrived - started,
        decode_s=now - arrived,
        propose_s=propose_s,
        verify_s=verify_s,
    )


def _read(target: Runtime, last: int, proposal: Proposal) -> Tensor:
    """Logits after the context's last token and after each proposed one."""
    tokens = (last, *proposal.tokens)
    if proposal.parents is None:
        return target.feed(tokens)
    if not isinstance(target, TreeRuntime):
        raise ProposerError(f"it proposed a tree, which the runtime {target.name} cannot verify")
    return target.feed_tree(tokens, TokenTree.behind(proposal.parents))


def _keep(target: Runtime, proposal: Proposal, verdict: Verdict) -> Sequence[int]:
    """Leaves what stands in the target's cache; returns its places in the proposal."""
    if verdict.path is not None:
        assert isinstance(target, TreeRuntime)
        target.keep_path((0, *(place + 1 for place in verdict.path)))
        return verdict.path
    rejected = len(proposal.tokens) - verdict.accepted
    if rejected:
        target.forget(rejected)
    return range(verdict.accepted)


def _until(proposal: Proposal, depth: int) -> int:
    """How many tokens were proposed for the first `depth` places."""
    if proposal.parents is None:
        return depth
    depths = TokenTree.behind(proposal.parents).depths
    return sum(one <= depth for one in depths[1:])


def _check_room(runtime: Runtime, request: Request, whose: str) -> None:
    if not request.prompt:
        raise ContextOverflowError("the prompt is empty: at least one token is needed to decode from")
    needed = len(request.prompt) + request.max_new_tokens
    if needed > runtime.context_window:
        raise ContextOverflowError(
            f"{len(request.prompt)} prompt tokens and {request.max_new_tokens} new ones do not fit the "
            f"{whose}'s context window of {runtime.context_window}: shorten the prompt or lower max_new_tokens"
        )
