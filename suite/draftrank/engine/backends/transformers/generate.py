"""transformers' own `generate` on the session's loaded models, observed from outside.

A reference shows what the library that most people use makes of the same target, draft and prompt. It is
called as its documentation says; what happens inside is seen through forward hooks and a streamer. Stop
tokens, length limit and sampling parameters are the engine's. The models' own generation settings, which
`generate` would mix in, are put aside for the call.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer

from draftrank.engine.backends.transformers.attention import library_attention
from draftrank.engine.loop import Decoding, Request
from draftrank.errors import IncompatibleDraftError
from draftrank.models.quiet import quiet_transformers

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from draftrank.engine.backends.base import Runtime


@dataclass(slots=True)
class _Forward:
    """One forward of the target, and the tokens that `generate` emitted after it."""

    read: list[int]
    """Token ids read; those beyond the sequence so far are candidates."""
    began: float
    ended: float = 0.0
    emitted: list[int] = field(default_factory=list)
    arrived: float = 0.0


class GenerateDecoder:
    """Decodes with `generate`: plain, with a draft model (`assistant_model`) or with prompt lookup.

    In transformers the first forward verifies candidates already, so several tokens may arrive with the
    prefill. The first of them counts as the prefill's, the others as one more step, so that tokens =
    1 + steps + accepted holds as for the engine.
    """

    def __init__(
        self,
        target: Runtime,
        *,
        draft: Runtime | None = None,
        num_speculative_tokens: int = 0,
        max_ngram: int | None = None,
    ) -> None:
        """Prepares one method; nothing is loaded.

        Args:
            target: runtime of the target.
            draft: runtime of the draft model; None without one.
            num_speculative_tokens: k; 0 for plain decoding.
            max_ngram: longest run of tokens that prompt lookup compares; None without it.

        Raises:
            IncompatibleDraftError: a runtime holds no transformers model of its own.
        """
        self._target = _model_of(target)
        self._draft = None if draft is None else _model_of(draft)
        self._k = num_speculative_tokens
        self._max_ngram = max_ngram

    def decode(self, request: Request, first: int | None = None) -> Decoding:
        """Decodes one sequence; times are wall clock, between the same two moments as the engine's.

        Args:
            request: the sequence.
            first: the output's first token where it is known. Every forward is then a step behind it, as in the engine,
                and the first of them reads the prompt too: `decode_s` contains that.
        """
        device = next(iter(self._target.parameters())).device
        if first is not None:
            request = replace(
                request, prompt=(*request.prompt, first), max_new_tokens=request.max_new_tokens - 1
            )
        watch = _Watch(request.prompt, device)
        ids = torch.tensor([request.prompt], device=device)
        arguments: dict[str, Any] = {} if self._draft is None else {"assistant_model": self._draft}
        with (
            quiet_transformers(),
            library_attention(self._target),
            nullcontext() if self._draft is None else library_attention(self._draft),
            _own_settings(self._target, GenerationConfig()),
            _own_settings(self._draft, self._drafting()),
            watch.observing(self._target, self._draft),
            torch.random.fork_rng(),
        ):
            torch.manual_seed(request.mode.seed if request.seed is None else request.seed)
            watch.start()
            self._target.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                generation_config=self._settings(request),
                streamer=watch,
                **arguments,
            )
        return watch.decoding(request, self._k, first)

    def _settings(self, request: Request) -> GenerationConfig:
        mode = request.mode
        stops = sorted(request.stop_tokens)
        settings: dict[str, Any] = {
            "max_new_tokens": request.max_new_tokens,
            "eos_token_id": stops or None,
            "pad_token_id": stops[0] if stops else 0,
            "do_sample": not mode.greedy,
            "use_cache": True,
        }
        if not mode.greedy:
            # Its defaults are not neutral: top_k is 50 unless 0 is asked for.
            settings |= {
                "temperature": mode.temperature,
                "top_k": mode.top_k or 0,
                "top_p": mode.top_p or 1.0,
            }
        if self._max_ngram is not None:
            settings |= {
                "prompt_lookup_num_tokens": self._k,
                "max_matching_ngram_size": self._max_ngram,
            }
        return GenerationConfig(**settings)

    def _drafting(self) -> GenerationConfig:
        return GenerationConfig(
            num_assistant_tokens=self._k or None,
            num_assistant_tokens_schedule="constant",
            assistant_confidence_threshold=0.0,
        )


class _Watch(BaseStreamer):  # type: ignore[misc]
    """Sees every forward of the target and every token that is emitted, with the time of each."""

    def __init__(self, prompt: tuple[int, ...], device: torch.device) -> None:
        self._prompt = prompt
        self._device = device
        self._started = 0.0
        self._forwards: list[_Forward] = []
        self._draft_forwards = 0
        self._prompt_seen = False

    def start(self) -> None:
        """Starts the clock."""
        self._started = self._now()

    def put(self, value: Tensor) -> None:
        """Called by `generate` with the prompt and then with the tokens of each forward."""
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        current = self._forwards[-1]
        current.emitted = value.reshape(-1).tolist()
        current.arrived = perf_counter()

    def end(self) -> None:
        """Called by `generate` when it is done."""

    @contextmanager
    def observing(self, target: PreTrainedModel, draft: PreTrainedModel | None) -> Iterator[None]:
        """Within it forwards are seen."""
        with ExitStack() as hooks:
            hooks.enter_context(target.register_forward_pre_hook(self._begun, with_kwargs=True))
            hooks.enter_context(target.register_forward_hook(self._ended))
            if draft is not None:
                hooks.enter_context(draft.register_forward_hook(self._drafted))
            yield

    def decoding(self, request: Request, k: int, begun: int | None) -> Decoding:
        """What was seen, in the engine's terms; `begun` is the output's first token where it was given."""
        forwards = self._forwards
        first, later = forwards[0], forwards[1:]
        sequence = list(self._prompt)
        steps = []
        for forward in forwards:
            # A step feeds the newest token, which no forward has seen, and the candidates.
            known = len(sequence) if forward is first else 1
            candidates = forward.read[known:]
            emitted = forward.emitted
            if forward is first and begun is None:
                candidates, emitted = candidates[1:], emitted[1:]
            if emitted:
                steps.append(_Step(candidates, emitted, request.stop_tokens))
            sequence += forward.emitted
        histogram = [0] * (k + 1)
        offered = [0] * k
        sizes = [0] * (k + 1)
        for step in steps:
            histogram[step.accepted] += 1
            sizes[step.candidates] += 1
            for index in range(min(step.judged, step.accepted + 1)):
                offered[index] += 1
        tokens = sequence[len(self._prompt) - (begun is not None) :]
        began = first.arrived if begun is None else self._started
        arrivals = [first.arrived, *(forward.arrived for forward in later)]
        return Decoding(
            token_ids=tuple(tokens),
            finish="stop" if tokens[-1] in request.stop_tokens else "length",
            steps=len(steps),
            accept_histogram=tuple(histogram),
            offered=tuple(offered),
            proposal_sizes=tuple(sizes),
            proposed=sum(step.judged for step in steps),
            draft_forwards=self._draft_forwards,
            prefill_s=began - self._started,
            decode_s=arrivals[-1] - began,
            # Without candidates, what lies between two forwards is the loop's own.
            propose_s=sum(forward.began - before for before, forward in zip(arrivals, later, strict=False))
            if k
            else 0.0,
            verify_s=sum(forward.ended - forward.began for forward in (later if begun is None else forwards)),
        )

    def _begun(self, _module: object, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        ids = named.get("input_ids", positional[0] if positional else None)
        assert ids is not None
        self._forwards.append(_Forward(ids[0].tolist(), self._now()))

    def _ended(self, *_: object) -> None:
        self._forwards[-1].ended = self._now()

    def _drafted(self, *_: object) -> None:
        # Those before the first token are part of the prefill, as are the tokens they gave.
        self._draft_forwards += bool(self._forwards)

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return perf_counter()


class _Step:
    """One verification: what was proposed and what came of it."""

    def __init__(self, candidates: list[int], emitted: list[int], stop_tokens: frozenset[int]) -> None:
        self.accepted = len(emitted) - 1
        """Candidates accepted and emitted; the last token of a step stands for the bonus."""
        self.candidates = len(candidates)
        """Candidates verified."""
        self.judged = len(candidates)
        """Candidates up to a stop token that ended the output, as the engine counts them."""
        ended_by = candidates[self.accepted : self.accepted + 1]
        if ended_by == emitted[-1:] and emitted[-1] in stop_tokens:
            self.judged = self.accepted


def _model_of(runtime: Runtime) -> PreTrainedModel:

    model: PreTrainedModel | None = getattr(runtime, "model", None)
    if model is None:
        raise IncompatibleDraftError("transformers' generate needs a model that torch holds")
    return model


@contextmanager
def _own_settings(model: PreTrainedModel | None, settings: GenerationConfig) -> Iterator[None]:
    """Replaces a model's generation settings, which would fill every field that a call leaves open."""
    if model is None:
        yield
        return
    before = model.generation_config
    model.generation_config = settings
    try:
        yield
    finally:
        model.generation_config = before
