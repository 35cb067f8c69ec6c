"""The forward of a decoder over a few tokens in as few calls as it can be written with.

On a CPU a small model spends about as long between its kernels as in them. Here one product makes queries, keys and
values, and another both inputs of the feed-forward network; queries and keys are normed and rotated together; tables of
rotations are made once for all forwards, and a mask once for all layers. The same weights are used, joined in memory, so
whatever else holds the model goes on working; in bf16 a copy is arranged for the processor (`packed_product`).

It is the model's own computation in another order of rounding: norms are kept in fp32 to their end.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.ao.nn.quantized.dynamic import Linear as DynamicInt8Linear
from torch.nn.functional import rms_norm, scaled_dot_product_attention

from draftrank.engine.backends.packed_product import Product, product, product_of
from draftrank.engine.backends.short_forward import ShortForward
from draftrank.engine.backends.transformers.cache import RollbackCache
from draftrank.models.attention_windows import layer_kinds

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from draftrank.engine.token_tree import TokenTree


@dataclass(frozen=True, slots=True)
class _Layer:
    attention_norm: Tensor
    """fp32, as all norms; what a norm adds to its weight is added."""
    queries_keys_values: Product
    head_norms: Tensor | None
    """[heads of queries and of keys, size], where these are normed."""
    attention_output: Product
    attention_output_norm: Tensor | None
    feed_forward_norm: Tensor
    feed_forward_inputs: Product
    activation: Product
    feed_forward_output: Product
    feed_forward_output_norm: Tensor | None
    kind: str
    """Full or sliding attention, as the configuration names it."""
    window: int | None
    """How many last positions it sees; None: all."""


class FusedDecoder(ShortForward):
    """See `ShortForward`. Joins the model's matrices in memory."""

    runtime = "torch-fused"

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        config = model.config.get_text_config()
        joined: dict[tuple[int, ...], Product] = {}
        self._layers = [
            self._layer(layer, config, place, joined) for place, layer in enumerate(self._shape.layers(model))
        ]

    def first(self, count: int, view: PreTrainedModel) -> FusedDecoder:
        """See `ShortForward.first`."""
        twin = copy(self)
        twin._layers = self._layers[:count]
        twin._model = view
        return twin

    def product_of(self, module: nn.Module) -> Product:
        """See `ShortForward.product_of`."""
        return product_of(module)

    def run(
        self,
        inputs: Tensor,
        cache: RollbackCache,
        tree: TokenTree | None = None,
        states: dict[int, Tensor] | None = None,
    ) -> Tensor:
        """See `ShortForward.run`."""
        start, tokens = cache.length, inputs.shape[0]
        root = start if tree is None else start + tokens - len(tree.parents)
        kinds = {layer.kind: layer.window for layer in self._layers}
        rotations = {kind: self._rotated_by(kind, root, tokens, tree) for kind in kinds}
        firsts = {kind: _first_seen(root, window) for kind, window in kinds.items()}
        masks = {
            kind: self._mask(inputs, start, root, firsts[kind], window, tree)
            for kind, window in kinds.items()
        }
        hidden = inputs
        for number, (layer, held) in enumerate(zip(self._layers, cache.layers, strict=True)):
            attended = self._attended(
                layer, hidden, held, rotations[layer.kind], firsts[layer.kind], masks[layer.kind]
            )
            if layer.attention_output_norm is not None:
                attended = self._normed(attended, layer.attention_output_norm)
            hidden = hidden + attended
            both = layer.feed_forward_inputs(self._normed(hidden, layer.feed_forward_norm))
            gate, up = both.chunk(2, dim=-1)
            fed = layer.feed_forward_output(layer.activation(gate) * up)
            if layer.feed_forward_output_norm is not None:
                fed = self._normed(fed, layer.feed_forward_output_norm)
            hidden = hidden + fed
            if states and number in states:
                states[number] = hidden
        return hidden

    def _attended(
        self,
        layer: _Layer,
        hidden: Tensor,
        held: Any,
        rotation: tuple[Tensor, Tensor],
        first: int,
        mask: Tensor | None,
    ) -> Tensor:
        tokens, size = hidden.shape[0], self._size
        shared, group = self._shared, self._queries // self._shared
        rotated_heads = self._queries + shared
        made = layer.queries_keys_values(self._normed(hidden, layer.attention_norm))
        made = made.view(tokens, rotated_heads + shared, size)
        turned = made[:, :rotated_heads]
        if layer.head_norms is not None:
            normed = rms_norm(turned.float(), (size,), None, self._eps) * layer.head_norms
            turned = normed.to(hidden.dtype)
        cosine, sine = rotation
        turned = torch.addcmul(turned * cosine, turned.roll(size // 2, -1), sine)
        keys, values = held.update(
            turned[:, self._queries :].transpose(0, 1)[None], made[:, rotated_heads:].transpose(0, 1)[None]
        )
        if first:  # what no token of this forward sees is not read
            keys, values = keys[:, :, first:], values[:, :, first:]
        asked = turned[:, : self._queries].reshape(tokens, shared, group, size)
        if tokens > 1:
            asked = asked.permute(1, 2, 0, 3).reshape(1, shared, group * tokens, size)
        found = scaled_dot_product_attention(asked, keys, values, attn_mask=mask, scale=self._scale)
        if tokens > 1:
            found = found.view(shared, group, tokens, size).permute(2, 0, 1, 3)
        return layer.attention_output(found.reshape(tokens, self._queries * size))

    def _mask(
        self, inputs: Tensor, start: int, root: int, first: int, window: int | None, tree: TokenTree | None
    ) -> Tensor | None:
        """What each query adds to its scores, [group · tokens, positions from `first` on]; None where all is seen."""
        tokens, device = inputs.shape[0], inputs.device
        if tree is not None:
            seen = tree.visible(root, window, device)[start - root :, first:]
        elif tokens == 1:
            return None
        else:
            queries = torch.arange(start, start + tokens, device=device)[:, None]
            keys = torch.arange(first, start + tokens, device=device)[None]
            seen = keys <= queries if window is None else (keys <= queries) & (keys > queries - window)
        mask = torch.zeros(seen.shape, dtype=inputs.dtype, device=device)
        return mask.masked_fill_(~seen, float("-inf")).repeat(self._queries // self._shared, 1)

    def _rotated_by(self, kind: str, root: int, tokens: int, tree: TokenTree | None) -> tuple[Tensor, Tensor]:
        """Cosines and signed sines of the tokens' positions, [tokens, 1, size]."""
        end = root + (tokens if tree is None else len(tree.parents))
        cosine, sine = self._rotation_tables(kind, end)
        if tree is not None:
            positions = root + torch.tensor(tree.depths[-tokens:], device=cosine.device)
            return cosine[positions], sine[positions]
        return cosine[root:end], sine[root:end]

    def _layer(
        self, layer: nn.Module, config: PretrainedConfig, place: int, joined: dict[tuple[int, ...], Product]
    ) -> _Layer:
        names = self._shape.block
        attention, network = getattr(layer, names.attention), getattr(layer, names.feed_forward)
        norms = [self._weight(getattr(layer, name)) for name in names.norms]
        gemma = len(norms) > 2  # its blocks are normed before and after
        head_norms = None
        if hasattr(attention, "q_norm"):
            ours = self._weight(attention.q_norm).expand(self._queries, -1)
            theirs = self._weight(attention.k_norm).expand(self._shared, -1)
            head_norms = torch.cat([ours, theirs])
        kind = layer_kinds(config)[place]
        return _Layer(
            attention_norm=norms[0],
            queries_keys_values=_joined(
                [getattr(attention, name) for name in (names.queries, names.keys, names.values)], joined
            ),
            head_norms=head_norms,
            attention_output=_joined([getattr(attention, names.attention_output)], joined),
            attention_output_norm=norms[1] if gemma else None,
            feed_forward_norm=norms[2] if gemma else norms[1],
            feed_forward_inputs=_joined(
                [getattr(network, name) for name in names.feed_forward_inputs], joined
            ),
            activation=network.act_fn,
            feed_forward_output=_joined([getattr(network, names.feed_forward_output)], joined),
            feed_forward_output_norm=norms[3] if gemma else None,
            kind=kind,
            window=self._windows[kind],
        )


def _first_seen(root: int, window: int | None) -> int:
    """The first position that a token at `root` sees."""
    return 0 if window is None else max(0, root - window + 1)


def _joined(modules: Sequence[nn.Module], known: dict[tuple[int, ...], Product]) -> Product:
    """Several products of the same input as one, their results side by side.

    Matrices of other forms (of low rank, quantized by libraries) stay as they are and are called in turn.
    """
    if len(modules) == 1 and type(modules[0]) is not nn.Linear:
        return modules[0]
    int8 = [module for module in modules if isinstance(module, DynamicInt8Linear)]
    if len(int8) == len(modules):
        return _joined_int8(int8)
    plain = [module for module in modules if type(module) is nn.Linear]
    same = len({module.weight.dtype for module in plain}) == 1
    with_bias = [module.bias is not None for module in plain]
    if len(plain) < len(modules) or not same or len(set(with_bias)) > 1:
        return lambda inputs: torch.cat([module(inputs) for module in modules], -1)
    key = tuple(id(module.weight) for module in plain)  # layers may share their weights
    if key not in known and len(plain) == 1:
        known[key] = product_of(plain[0])
    elif key not in known:
        with torch.no_grad():
            weight = torch.cat([module.weight for module in plain])
            bias = torch.cat([module.bias for module in plain]) if all(with_bias) else None
        # The modules are given their parts of the joined matrix, so that the weights lie in memory once.
        parts = torch.split(weight, [module.out_features for module in plain])
        for module, part in zip(plain, parts, strict=True):
            module.weight.data = part
        known[key] = product(weight, bias)
    return known[key]


def _joined_int8(modules: Sequence[Any]) -> Product:
    """The same of torch's dynamic int8 matrices: each row keeps its scale, so the results are the same."""
    weights, biases = [module.weight() for module in modules], [module.bias() for module in modules]
    per_row = all(weight.qscheme() == torch.per_channel_affine for weight in weights)
    with_bias = [bias is not None for bias in biases]
    if not per_row or len(set(with_bias)) > 1:
        return lambda inputs: torch.cat([module(inputs) for module in modules], -1)
    joined = torch._make_per_channel_quantized_tensor(
        torch.cat([weight.int_repr() for weight in weights]),
        torch.cat([weight.q_per_channel_scales() for weight in weights]),
        torch.cat([weight.q_per_channel_zero_points() for weight in weights]),
        0,
    )
    product = DynamicInt8Linear(joined.shape[1], joined.shape[0], bias_=all(with_bias))  # type: ignore[no-untyped-call]
    product.set_weight_bias(joined, torch.cat(biases) if all(with_bias) else None)
    return product
