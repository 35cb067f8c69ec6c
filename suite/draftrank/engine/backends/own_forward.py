"""Compares a runtime with the forward of its model as transformers has it, before anything is measured with it.

The runtime has a cache, attention and kernels of its own, and each of them can leave out what an architecture does:
attention sinks, softcapping, sliding windows, biases. The reference is the model called on the whole text, with the
attention that transformers chooses for it and without a cache.

The check is as sharp as rounding lets it be. Torch's dynamic int8 rounds activations by the largest one of a whole forward,
which makes logits of one text depend on how it is divided, and sends tokens to other experts. While a model with such layers
is checked, they multiply by the same weights and leave activations as they are.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from functools import partial
from inspect import signature
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import torch
import torch.nn.functional as F  # noqa: N812
from torch.ao.nn.quantized.dynamic import Linear as DynamicInt8Linear

from draftrank.engine.backends.base import Runtime
from draftrank.engine.backends.transformers.attention import library_attention
from draftrank.engine.token_tree import TokenTree
from draftrank.errors import DraftrankError, UnsupportedModelError
from draftrank.models.architecture import Architecture
from draftrank.models.attention_windows import ATTENTION, layer_kinds
from draftrank.models.forms import FEATURES
from draftrank.models.gguf_blocks import BlockLinear

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor, nn
    from transformers import PreTrainedModel


MAX_DIFFERENCE = 1e-3
"""Largest difference that is rounding in every dtype but fp32, as a share of the logits' standard deviation."""
MAX_DIFFERENCE_FP32 = 1e-4
"""The same in fp32, where the engine differs from transformers by 1e-6 to 1e-5."""
MAX_ROUNDING = 4.0
"""Largest difference that is rounding, in multiples of how far the model's own logits move when its inputs move by one
step of their dtype. That replaces every later rounding by another one, as other kernels do, so the two are of one size:
SmolLM2-135M differs 0.2 to 1.2 times as far in bf16 and fp16 on a CPU, Gemma 3 270M in bf16 less. Gemma 3 without its
windows differs 14 times as far, and a random gpt_oss without its sinks 8 to 30 times."""
MAX_EXPLAINED = 1.0
"""The most that rounding explains, however far the logits move. Unlike texts are √2 standard deviations apart, so more than
half of the compared tokens would have to have unlike logits for √(2 · ½) = 1."""
MAX_PROMPT = {"cpu": 1280, "cuda": 10_240}
"""Longest text that is read to see a sliding window slide, in tokens; a window that needs more is not checked."""
_PROMPT = 80
"""Tokens where no window asks for more: more than a short forward's."""
_MORE = 16
"""Tokens behind the prompt, at most."""
_FIRST = 4
"""Tokens that are read first: they have little to look at, so sinks and biases weigh most there."""
_SINGLY = 12
"""Tokens that layers with a state read one by one behind these: some compute a single token otherwise than several."""
_TREE = TokenTree.behind((-1, -1, 0, 1))
"""Two branches of two tokens behind the root."""
_READ_TREES: WeakSet[Runtime] = WeakSet()
"""Runtimes that have passed `check_trees`."""


def check_forward(runtime: Runtime) -> None:
    """Reads a prompt in two pieces, a token, a step of which one token is accepted, tokens that are rolled back, and four more;
    compares the logits.

    Where they differ, the runtime is told to compute in another way that it knows, and compared again. What it holds is
    dropped. One that holds less than 21 tokens (33, with a state) is not checked, nor is one without a model of torch:
    llama.cpp's models have no other forward.

    Raises:
        UnsupportedModelError: the logits differ by more than rounding, or the model cannot be run.
    """

    def read(checked: Any, text: _Text) -> list[Tensor]:
        prompt = text.length
        first = [text.read(checked, range(_FIRST))]
        first += [text.read(checked, [position]) for position in range(_FIRST, text.first)]
        rows = [text.read(checked, range(text.first, prompt), keep=1), text.read(checked, [prompt])]
        rows.append(text.read(checked, [prompt + 1, prompt + 6, prompt + 7])[:1])
        checked.commit(prompt + 1, (0,))
        text.read(checked, range(prompt + 6, prompt + 9))
        checked.rollback(3)
        return [torch.cat(first), torch.cat([*rows, text.read(checked, range(prompt + 2, prompt + 6))])]

    def own(model: PreTrainedModel, text: _Text) -> list[Tensor]:
        prompt = text.length
        wanted = [*range(text.first), *range(prompt - 1, prompt + 6)]
        logits = text.own_logits(model, [range(prompt + 6)], wanted)[0]
        return [logits[: text.first], logits[text.first :]]

    _compare(runtime, read, own, "")


def check_trees(runtime: Runtime) -> None:
    """The same of a tree behind a prompt, and of a token behind one of its branches; once for each runtime that reads trees."""
    if runtime in _READ_TREES or not runtime.capabilities.trees:
        return

    def read(checked: Any, text: _Text) -> list[Tensor]:
        prompt = text.length
        before = text.read(checked, range(prompt), keep=1)
        positions = range(prompt, prompt + len(_TREE.parents))
        text.offer(checked, positions)
        rows = checked.forward(text.tokens_at(positions), tree=_TREE).float().clone()
        checked.commit(prompt, (0, 2, 4))
        return [torch.cat([before, rows, text.read(checked, [positions.stop])])]

    def own(model: PreTrainedModel, text: _Text) -> list[Tensor]:
        prompt = text.length
        root, a, b, behind_a, behind_b, last = range(prompt, prompt + 6)
        both = [[*range(prompt), root, a, behind_a, last], [*range(prompt), root, b, behind_b, last]]
        one, other = text.own_logits(model, both, range(prompt - 1, prompt + 4))
        return [torch.stack([one[0], one[1], one[2], other[2], one[3], other[3], other[4]])]

    _compare(
        runtime,
        read,
        own,
        " when it reads a tree of tokens: leave branch_above_probability out of the recipe",
    )
    _READ_TREES.add(runtime)


class _Text:
    """Random tokens, and hidden states beside them for a model that reads these."""

    def __init__(self, runtime: Any) -> None:
        config = runtime.model.config.get_text_config()
        windows = [
            getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size", "window_size")
        ]
        device = next(iter(runtime.model.parameters())).device
        self.first = _FIRST + (0 if set(layer_kinds(config)) <= ATTENTION else _SINGLY)
        """Of the tokens, how many are looked at one by one."""
        # What lies before the window need not be much: trained models look at their first token above all.
        wanted = [window + max(16, window // 16) for window in windows if isinstance(window, int)]
        fitting = [length for length in wanted if length <= MAX_PROMPT[device.type]]
        self.length = min(max([_PROMPT, *fitting]), runtime.context_window - _MORE)
        """Of the prompt."""
        chance = torch.Generator().manual_seed(0)
        count = max(self.length, 0) + _MORE
        self._tokens = torch.randint(runtime.vocabulary_size, (count,), generator=chance)
        self._device = device
        self._features: Tensor | None = None
        if hasattr(runtime.model, FEATURES):
            states = torch.randn(count, int(config.hidden_size), generator=chance)
            self._features = states.to(device, runtime.model.dtype)

    def tokens_at(self, positions: Sequence[int]) -> list[int]:
        found: list[int] = self._tokens[list(positions)].tolist()
        return found

    def offer(self, runtime: Any, positions: Sequence[int]) -> None:
        if self._features is not None:
            runtime.offer(self._features[list(positions)])

    def read(self, runtime: Any, positions: Sequence[int], keep: int | None = None) -> Tensor:
        """Logits of a forward, fp32 [keep, vocabulary]."""
        self.offer(runtime, positions)
        logits: Tensor = runtime.forward(self.tokens_at(positions), keep)
        return logits.float().clone()

    def own_logits(
        self, model: PreTrainedModel, texts: Sequence[Sequence[int]], wanted: Sequence[int]
    ) -> Tensor:
        """Logits by the model's own forward, fp32 [texts, wanted, vocabulary], after some tokens of equally long texts, each
        given by positions."""
        rows = torch.tensor(wanted, device=self._device)
        positions = torch.tensor([list(text) for text in texts])
        ids = self._tokens[positions].to(self._device)
        with library_attention(model):
            if self._features is None:
                # All rows of a long text and a large vocabulary would take a gigabyte.
                if "logits_to_keep" in signature(model.forward).parameters:
                    logits: Tensor = model(ids, use_cache=False, logits_to_keep=rows).logits
                else:
                    logits = model(ids, use_cache=False).logits[:, rows]
            else:
                shape = Architecture.of(model)
                hidden = shape.hidden_states(model, ids, self._features[positions.to(self._device)])
                logits = shape.logits(model, hidden[:, rows])
        return logits.float()


@torch.inference_mode()
def _compare(
    unchecked: Runtime,
    read: Callable[[Any, _Text], list[Tensor]],
    own: Callable[[PreTrainedModel, _Text], list[Tensor]],
    where: str,
) -> None:
    if not hasattr(unchecked, "model"):
        return
    runtime: Any = unchecked
    text, model = _Text(runtime), runtime.model
    if text.length <= text.first:
        return
    name = f"the model {model.name_or_path or 'without a name'} ({model.config.model_type})"
    try:
        with _activations_as_they_are(model):
            expected = own(model, text)
            _require_numbers(expected, name)
            floor = MAX_DIFFERENCE_FP32 if model.dtype == torch.float32 else MAX_DIFFERENCE
            allowed = [floor] * len(expected)
            differences = _differences(runtime, read, text, expected)
            if not _within(differences, allowed):
                with _inputs_moved_by_a_step(model):
                    moved = own(model, text)
                allowed = [
                    min(max(floor, MAX_ROUNDING * _distance(*both)), MAX_EXPLAINED)
                    for both in zip(moved, expected, strict=True)
                ]
            while not _within(differences, allowed) and runtime.compute_otherwise():
                differences = _differences(runtime, read, text, expected)
    except DraftrankError:
        raise
    except Exception as error:
        raise UnsupportedModelError(
            f"{name} cannot be run by the engine{where}: {type(error).__name__}: {error}"
        ) from error
    if not _within(differences, allowed):
        worst, most = max(zip(differences, allowed, strict=True), key=lambda one: one[0] / one[1])
        raise UnsupportedModelError(
            f"{name} is not computed by the backend {runtime.name} as transformers computes it{where or ': use another model or backend'}"
            f" (the logits differ by {worst:.2g} of their standard deviation, where rounding explains {most:.2g})"
        )


def _require_numbers(logits: Sequence[Tensor], name: str) -> None:
    """Refuses a model whose own forward gives not-a-numbers or infinities; tokens of a trimmed head are minus infinity."""
    if any((rows.isnan() | rows.isposinf()).any() or not rows.isfinite().any(-1).all() for rows in logits):
        raise UnsupportedModelError(
            f"{name} gives logits that are no numbers, in transformers too: its weights are damaged or too large for their "
            "dtype; fetch them again, or use --dtype fp32"
        )


def _differences(
    runtime: Any, read: Callable[[Any, _Text], list[Tensor]], text: _Text, expected: Sequence[Tensor]
) -> list[float]:
    runtime.reset()
    found = read(runtime, text)
    runtime.reset()
    return [_distance(*both) for both in zip(found, expected, strict=True)]


def _within(differences: Sequence[float], allowed: Sequence[float]) -> bool:
    """Whether every difference is allowed; one that is not a number is not."""
    return all(one <= most for one, most in zip(differences, allowed, strict=True))


def _distance(found: Tensor, expected: Tensor) -> float:
    """Root mean square of the differences of logits [rows, vocabulary], each in standard deviations of its row; tokens that
    a trimmed head does not know must be the same."""
    known = expected.isfinite()
    found = found[:, : expected.shape[-1]]
    if not torch.equal(found.isfinite(), known):
        return float("inf")
    expected = expected.masked_fill(~known, float("nan"))
    spread = (expected - expected.nanmean(-1, keepdim=True)).square().nanmean(-1, keepdim=True)
    return float(((found - expected).square() / spread).nanmean().sqrt())


@contextmanager
def _activations_as_they_are(model: nn.Module) -> Iterator[None]:
    """Lets layers in dynamic int8 multiply by their weights without rounding what they read."""

    def multiplied(layer: DynamicInt8Linear, read: Tensor) -> Tensor:
        return F.linear(read, layer.weight().dequantize(), layer.bias())  # type: ignore[no-untyped-call]

    layers = [module for module in model.modules() if isinstance(module, DynamicInt8Linear)]
    for layer in layers:
        layer.forward = partial(multiplied, layer)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _inputs_moved_by_a_step(model: PreTrainedModel) -> ExitStack:
    """A context that moves what the first layer reads by up to one rounding step, at random: of a head the states too,
    since an untrained one makes nothing of embeddings. A model in blocks of a GGUF file rounds nothing itself, and the backend
    rounds what every matrix reads to bf16: there all of that is moved."""

    def moved(read: Tensor, dtype: torch.dtype) -> Tensor:
        step = torch.finfo(dtype).eps
        chance = torch.Generator(read.device).manual_seed(0)
        moves = torch.rand(read.shape, generator=chance, device=read.device) * 2 - 1
        return (read * (1 + step * moves)).to(read.dtype)

    def move(_module: nn.Module, _inputs: object, read: Tensor) -> Tensor:
        return moved(read, read.dtype)

    def move_input(_module: nn.Module, inputs: tuple[Tensor]) -> Tensor:
        return moved(inputs[0], torch.bfloat16)

    moving = ExitStack()
    for module in model.modules():
        if isinstance(module, BlockLinear):
            moving.enter_context(module.register_forward_pre_hook(move_input))
    last_before_it: nn.Module = dict(model.named_children()).get(FEATURES, model.get_input_embeddings())
    moving.enter_context(last_before_it.register_forward_hook(move))
    return moving
