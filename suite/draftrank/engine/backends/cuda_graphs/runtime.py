"""A model whose forwards are captured CUDA graphs; see `engine.backends.base.Runtime`.

Forwards of up to 1, 8, 16 or 64 tokens have a graph each, and so has a chain of a draft's own tokens: the tokens that it
proposes, those that the target accepts and the logits stay on the device, and the host waits once a step, for what was
chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch

from draftrank.engine.backends.base import Capabilities, Runtime, check_exit, check_layers
from draftrank.engine.backends.cuda_graphs import state
from draftrank.engine.backends.cuda_graphs.decoder import TILE, CudaGraphsDecoder, SharedCache
from draftrank.engine.backends.cuda_graphs.recording import Recording, Reports
from draftrank.engine.backends.cuda_graphs.state import MAX_ROWS
from draftrank.engine.proposer import DeviceTokens
from draftrank.engine.sampling import distribution, pick
from draftrank.engine.stamps import DeviceStamp, HostStamp
from draftrank.errors import InvalidInputError
from draftrank.models.architecture import Architecture
from draftrank.models.vocabulary import check_ids

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from draftrank.catalog.decoding_mode import DecodingMode
    from draftrank.engine.proposer import DeviceSteps, Proposal
    from draftrank.engine.sampling import Sampler
    from draftrank.engine.token_tree import TokenTree

_SIZES = (1, 8, TILE, MAX_ROWS)
"""Forwards that are recorded; others run as the next larger one."""
_MIN_CAPACITY = 2048
_TIMED = 5
"""Forwards between two stamps that time one."""
_ONE_TOKEN_AFTER_ANOTHER = np.array([(2 << row) - 1 for row in range(MAX_ROWS - 1)] + [-1], dtype=np.int64)
"""What the tokens of a chain see of each other, as bits."""


class CudaGraphsRuntime(Runtime):
    """A model on a GPU."""

    name: ClassVar[str] = "cuda-graphs"

    def __init__(
        self,
        model: PreTrainedModel,
        decoder: CudaGraphsDecoder | None = None,
        cache: SharedCache | None = None,
    ) -> None:
        """Wraps a model on its device, or the layers of it that a decoder has; a cache may be shared. Nothing is recorded
        until it reads tokens or reserves room."""
        self.model = model
        self.decoder = decoder or CudaGraphsDecoder(model)
        """Starts the kernels."""
        self.vocabulary_size = self.decoder.vocabulary_size
        self.context_window = int(model.config.get_text_config().max_position_embeddings)
        self._cache = cache or self.decoder.new_cache()
        self.capabilities = Capabilities(
            trees=True,
            hidden_states=True,
            first_layers=True,
            choices=True,
            chain=True,
            device=True,
        )
        self._capacity = 0
        """What the recordings were made for."""
        self._kept: dict[int, int] = {}
        """By the number of a layer, at which part of the states its outputs are."""
        self._states = self._room_for_states(0)
        self._told: Tensor | None = None
        """States of all tokens of the last call of `forward`, where it took several of the device's."""
        self._count = 0
        """Tokens of the last call of `forward`."""
        self._last = 0
        """Rows of the last forward."""
        self._recordings: dict[int | str | DecodingMode, Recording] = {}
        """Forwards by their size, links that are drawn by their mode, others by name; see `_recorded`."""
        self._chains: dict[int, Recording] = {}
        """The longest one that was asked for, by its number of tokens."""
        self._uniform = torch.zeros(1, device=self.decoder.device)
        """The random number of the next link."""
        self._says = np.zeros(state.SIZE, dtype=np.int64)
        """What `meta` shall say next."""

    @staticmethod
    def fits(model: PreTrainedModel) -> bool:
        """Whether this model's forward can be captured: see `CudaGraphsDecoder.fits`; on a CPU in Triton's interpreter."""
        return CudaGraphsDecoder.fits(model) and (_device_of(model).type in ("cuda", "meta") or _interprets())

    @property
    def length(self) -> int:
        return self._cache.length

    def reserve(self, tokens: int) -> None:
        """See `Runtime.reserve`; records what has not been recorded for this size."""
        self._grow(tokens)
        for size in _SIZES:
            self._recorded_forward(size)

    def forward(
        self, tokens: Sequence[int], keep: int | None = None, tree: TokenTree | None = None
    ) -> Tensor:
        """See `Runtime.forward`; the logits are fp32 and stay on the device."""
        if tree is not None:
            return self._forward_tree(tokens, tree)
        total, wanted = len(tokens), keep or len(tokens)
        rows = []
        told = []
        for begin in range(0, total, MAX_ROWS):
            part = tokens[begin : begin + MAX_ROWS]
            self._forward(part)
            first = max(0, total - wanted - begin)
            if begin + MAX_ROWS < total:
                told.append(self._states[: len(part)].clone())
                if first < len(part):
                    rows.append(self._logits(first, len(part)).clone())
            else:
                rows.append(self._logits(first, len(part)))
        if told:
            self._told = torch.cat([*told, self._states[: self._last]])
        self._count = total
        return rows[0] if len(rows) == 1 else torch.cat(rows)

    def forward_after(self, last: int, proposed: DeviceTokens) -> Tensor:
        count = len(proposed)
        self._forward([last, *([0] * count)], proposed.on_device)
        return self._logits(0, count + 1)

    def _forward_tree(self, tokens: Sequence[int], tree: TokenTree) -> Tensor:
        size = len(tree.parents)
        if size > MAX_ROWS:
            raise InvalidInputError.single(
                f"a tree of {size} tokens does not fit one captured forward",
                field="speculate.num_speculative_tokens",
                fix=f"use at most {MAX_ROWS - 1}",
            )
        self._forward(tokens, tree=tree)
        return self._logits(0, len(tokens))

    @torch.inference_mode()
    def commit(self, root: int, path: Sequence[int]) -> None:
        read_at_once, kept = self._count == self._cache.length - root, len(path)
        moved = next((to for to, index in enumerate(path) if to != index), kept)
        if moved < kept:
            taken = torch.tensor([root + index for index in path[moved:]], device=self.decoder.device)
            for cached in (self._cache.keys, self._cache.values):
                cached[:, :, root + moved : root + kept] = cached[:, :, taken]
            if read_at_once and self._states.shape[1]:
                self._states[moved:kept] = self._states[taken - root]
        if read_at_once:
            self._count = kept
        self._cache.length = root + kept

    def choices(self, count: int) -> list[int]:
        found: list[int] = self.decoder.choices[self._last - count : self._last].tolist()
        return found

    def chain(self, unseen: Sequence[int], count: int, stop_below: float | None = None) -> DeviceTokens:
        """See `Runtime.chain`; of fixed length only."""
        self._grow(self._cache.length + len(unseen) + count)
        link, note = self._recorded("link", self._go_on), self._recorded("note", self.decoder.note)
        if count > max(self._chains, default=1):  # shorter ones, at the end of a sequence, go link by link
            self._chains = {count: self.recording(partial(self.start_chain, count))}
        for begin in range(0, len(unseen), MAX_ROWS):
            self._forward(unseen[begin : begin + MAX_ROWS])
        if count in self._chains:
            self._chains[count].replay()
        else:
            for _ in range(count - 1):
                link.replay()
            note.replay()
        if count > 1:
            self._cache.length += count - 1
            self._count = self._last = 1
        return DeviceTokens(self.decoder.proposed[:count])

    @torch.inference_mode()
    def decode_alone(
        self, last: int, count: int, sampler: Sampler
    ) -> Iterator[tuple[int, DeviceStamp | HostStamp]]:
        self._grow(self._cache.length + count)
        greedy, mode = sampler.mode.greedy, sampler.mode
        drawn = partial(self._go_on_drawing, mode)
        link = self._recorded("link", self._go_on) if greedy else self._recorded(mode, drawn)
        self.decoder.choices[self._last - 1] = last
        start = self._cache.length
        reports = Reports(self.decoder.choices[:1])
        for number in range(count):
            while reports.under_way < min(2, count - number):  # the next is under way before this one is seen
                if not greedy:
                    self._uniform.copy_(sampler.uniforms(1), non_blocking=True)
                link.replay()
                reports.ask()
            (token,), stamp = reports.read()
            self._cache.length = start + number + 1
            self._count = self._last = 1
            yield token, stamp

    def keep_hidden_states(self, layers: Sequence[int] = ()) -> None:
        if self._states.shape[1] and set(layers) <= set(self._kept):
            return
        check_layers(layers, len(self.decoder.layers))
        kept = sorted({*self._kept, *layers})
        self._kept = {layer: part for part, layer in enumerate(kept)}
        self._states = self._room_for_states(len(kept) + 1)
        self._forget_recordings()

    def hidden_states(self, layers: Sequence[int] = ()) -> Tensor:
        assert self._states.shape[1], "keep_hidden_states was not called"
        states = self._states if self._told is None else self._told
        if list(layers) != list(self._kept):
            states = states[:, [*(self._kept[layer] for layer in layers), -1]]
        return states[: self._count].flatten(1)

    def rollback(self, count: int) -> None:
        self._cache.length -= count

    def reset(self) -> None:
        self._cache.length = 0

    def synchronize(self) -> None:
        if self.decoder.device.type == "cuda":
            torch.cuda.synchronize(self.decoder.device)

    def stamp(self) -> HostStamp | DeviceStamp:
        return DeviceStamp() if self.decoder.device.type == "cuda" else HostStamp()

    def forward_s(self, tokens: Sequence[int]) -> float:
        """See `Runtime.forward_s`; at most `MAX_ROWS` tokens."""
        self._forward(tokens)
        recorded = self._recorded_forward(_size_for(len(tokens)))
        recorded.replay()  # keeps the device busy while the others are asked for, so that it waits for none of them
        began = self.stamp()
        for _ in range(_TIMED):
            recorded.replay()
        taken = self.stamp().since(began) / _TIMED
        self.rollback(len(tokens))
        return taken

    def first_layers(self, count: int) -> CudaGraphsRuntime:
        check_exit(count, len(self.decoder.layers))
        view = Architecture.of(self.model).first_layers(self.model, count)
        return CudaGraphsRuntime(view, self.decoder.first(count), self._cache)

    def device_steps(
        self,
        draft: Runtime,
        count: int,
        mode: DecodingMode,
        first: Callable[[Sequence[int], int], Proposal],
        chain: int | None = None,
        copying: Callable[[Sequence[int], int], Proposal] | None = None,
    ) -> DeviceSteps | None:
        from draftrank.engine.backends.cuda_graphs.steps import CudaGraphSteps

        if not isinstance(draft, CudaGraphsRuntime) or count >= MAX_ROWS:
            return None
        return CudaGraphSteps(self, draft, count, mode, first, chain, copying)

    def _logits(self, first: int, last: int) -> Tensor:
        """Logits after some rows of the last forward."""
        return self._of_all_tokens(self.decoder.logits[first:last])

    def _of_all_tokens(self, rows: Tensor) -> Tensor:
        """Logits over the vocabulary, of logits that the head gave."""
        if self.decoder.token_ids is None:
            return rows
        full = rows.new_full((len(rows), self.vocabulary_size), float("-inf"))
        full.index_copy_(-1, self.decoder.token_ids, rows)
        return full

    @torch.inference_mode()
    def _forward(
        self, tokens: Sequence[int], behind_first: Tensor | None = None, tree: TokenTree | None = None
    ) -> None:
        """One forward of at most `MAX_ROWS` tokens, `behind_first` in place of all but the first; does not wait."""
        rows, start = len(tokens), self._cache.length
        self._grow(start + rows)
        self.say(tokens, behind_first, tree)
        self._prepare(tokens, start, tree)
        self._recorded_forward(_size_for(rows)).replay()
        self._cache.length = start + rows
        self._count = self._last = rows
        self._told = None

    def say(
        self, tokens: Sequence[int], behind_first: Tensor | None = None, tree: TokenTree | None = None
    ) -> None:
        """Tells the device what the next forward reads: arguments as above."""
        self._write(tokens, tree)
        meta = self.decoder.meta
        meta.copy_(torch.from_numpy(self._says), non_blocking=True)
        if behind_first is not None:
            meta[state.IDS + 1 : state.IDS + len(tokens)] = behind_first

    def offer_instead(self, last: int, proposed: Sequence[int]) -> None:
        """Tells the device what is proposed behind the context's last token, in place of what a draft has proposed."""
        check_ids(proposed, self.vocabulary_size)
        begin = state.OFFERED
        instead = torch.tensor([len(proposed), last, *proposed])
        self.decoder.meta[begin : begin + len(instead)].copy_(instead, non_blocking=True)

    def stands_at(self, length: int) -> None:
        """Is told how many tokens are cached, where a device went on by itself."""
        self._cache.length = length

    @property
    def recorded_for(self) -> tuple[object, ...]:
        """What recordings depend on: others are needed once it is another one."""
        return self._cache.keys.data_ptr(), self._states.data_ptr()

    def start_forward(self, rows: int) -> None:
        """Starts the kernels of a forward over `rows` tokens, for a recording."""
        self.decoder.forward(self._cache, _size_for(rows), self._kept, self._states)

    def start_chain(self, count: int, draw: Callable[[int], None] | None = None) -> None:
        """Starts the kernels of a chain of `count` tokens behind a forward, for a recording. `draw` draws each by its index
        in the chain (see `draw`); None: the most likely ones follow each other."""
        for index in range(count):
            if draw is not None:
                draw(index)
            if index < count - 1:
                self._go_on()
        self.decoder.note()

    def draw(self, mode: DecodingMode, uniform: Tensor) -> Tensor:
        """Starts what draws a chain's next token in place of the most likely one, for a recording.

        Returns:
            the distribution that it is drawn from, float32 [vocabulary].
        """
        row = self.decoder.meta[state.ROW : state.ROW + 1]
        likely = distribution(self._of_all_tokens(self.decoder.logits.index_select(0, row)), mode)
        self.decoder.choices.index_copy_(0, row, pick(likely, uniform))
        return likely[0]

    def distributions(self, mode: DecodingMode, rows: int) -> Tensor:
        """Those behind the first rows of a forward, float32 [rows, vocabulary], for a recording."""
        return distribution(self._logits(0, rows), mode)

    def proposed(self, count: int) -> Tensor:
        """What the next forward reads behind the context's last token, int64 [count] on the device."""
        begin = state.IDS + 1
        return self.decoder.meta[begin : begin + count]

    @property
    def offered(self) -> Tensor:
        """How many of these were proposed, int64, one number on the device."""
        return self.decoder.meta[state.OFFERED]

    def states_of(self, layers: Sequence[int]) -> Tensor:
        """Where the states of all rows of the last forward lie, or a copy made in passing; see `features`."""
        if list(layers) == list(self._kept):
            return self._states.flatten(1)
        parts = [*(self._kept[layer] for layer in layers), self._states.shape[1] - 1]
        return torch.cat([self._states[:, part] for part in parts], -1)

    def _write(self, tokens: Sequence[int], tree: TokenTree | None) -> None:
        check_ids(tokens, self.vocabulary_size)
        says = self._says
        rows, start = len(tokens), self._cache.length
        root = start if tree is None else start + rows - len(tree.parents)
        says[state.START], says[state.ROOT], says[state.END] = start, root, start + rows
        says[state.ROW], says[state.STEP], says[state.OFFERED] = rows - 1, 0, rows - 1
        says[state.IDS : state.IDS + rows] = tokens
        positions = says[state.POSITIONS : state.POSITIONS + MAX_ROWS]
        ancestors = says[state.ANCESTORS : state.ANCESTORS + MAX_ROWS]
        if tree is None:
            positions[:] = np.arange(start, start + MAX_ROWS)
            ancestors[:] = _ONE_TOKEN_AFTER_ANOTHER
            return
        positions[:rows] = [root + depth for depth in tree.depths[-rows:]]
        ancestors[:rows] = np.array(tree.ancestors[-rows:], dtype=np.uint64).view(np.int64)

    def _prepare(self, tokens: Sequence[int], start: int, tree: TokenTree | None) -> None:
        """Puts in place whatever else the next forward reads."""

    def _grow(self, tokens: int) -> None:
        if tokens > self._cache.capacity:
            wanted = max(_MIN_CAPACITY, 1 << (tokens - 1).bit_length())
            self.decoder.grow(self._cache, max(tokens, min(wanted, self.context_window)))
        if self._capacity != self._cache.capacity:
            self._forget_recordings()
            self._capacity = self._cache.capacity

    def _room_for_states(self, parts: int) -> Tensor:
        decoder = self.decoder
        return torch.zeros(MAX_ROWS, parts, decoder.hidden_size, dtype=decoder.dtype, device=decoder.device)

    def _go_on_drawing(self, mode: DecodingMode) -> None:
        self._go_on()
        self.draw(mode, self._uniform)

    def _forget_recordings(self) -> None:
        self._recordings.clear()
        self._chains.clear()

    def _recorded_forward(self, size: int) -> Recording:
        return self._recorded(size, partial(self.start_forward, size))

    def _recorded(self, key: int | str | DecodingMode, work: Callable[[], None]) -> Recording:
        """The recording of this work, made when it is first asked for."""
        if key not in self._recordings:
            self._recordings[key] = self.recording(work)
        return self._recordings[key]

    @torch.inference_mode()
    def recording(self, work: Callable[[], None], *others: CudaGraphsRuntime) -> Recording:
        """Records work on this runtime, and on others; see `Recording`."""
        return Recording(work, *((one.decoder.meta, one._idle()) for one in (self, *others)))

    def _idle(self) -> Tensor:
        """What `meta` says where only slots behind all sequences may be written."""
        idle = torch.zeros_like(self.decoder.meta)
        idle[state.START] = idle[state.ROOT] = self._cache.capacity
        idle[state.END] = self._cache.capacity + 1
        return idle

    def _go_on(self) -> None:
        """Starts the kernels of one link of a chain: what was chosen is read, and the next is chosen."""
        self.decoder.go_on(self._states)
        self.decoder.forward(self._cache, 1, self._kept, self._states)


def _size_for(rows: int) -> int:
    """The smallest forward that is recorded and holds so many tokens."""
    return next(size for size in _SIZES if rows <= size)


def _device_of(model: PreTrainedModel) -> torch.device:
    found: torch.device = next(iter(model.parameters())).device
    return found


def _interprets() -> bool:
    """Whether Triton's interpreter stands in for a GPU."""
    try:
        from triton import knobs
    except ImportError:
        return False
    return bool(knobs.runtime.interpret)
