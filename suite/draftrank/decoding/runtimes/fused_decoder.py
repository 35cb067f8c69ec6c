"""The forward of a decoder over a few tokens in as few calls as it can be written with.

On a CPU a small model spends about as long between its kernels as in them. Here one product makes queries, keys and
values, and another both inputs of the feed-forward network; queries and keys are normed and rotated together; tables of
rotations are made once for all forwards, and a mask once for all layers. The same weights are used, joined in memory, so
whatever else holds the model goes on working; in bf16 a copy is arranged for the processor (`packed_product`).

It is the model's own computation in another order of rounding: norms are kept in fp32 to their end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.ao.nn.quantized.dynamic import Linear as DynamicInt8Linear
from torch.nn.functional import rms_norm, scaled_dot_product_attention

from draftrank.decoding.runtimes.packed_product import Product, product, product_of
from draftrank.decoding.runtimes.torch_cache import RollbackCache
from draftrank.drafting.architecture import Architecture
from draftrank.drafting.attention_windows import FULL, attention_windows
from draftrank.drafting.forms import TrimmedHead

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from draftrank.decoding.token_tree import TokenTree

MOST_TOKENS = 64
"""Longest forward; longer ones are prefills, where the kernels take nearly all of the time."""
SUPPORTED = ("llama", "gemma3_text")
"""Model types whose layers are known here."""
_STATIC_ROTATIONS = frozenset({"default", "linear", "llama3", "yarn"})
"""Kinds of rotary embedding that do not depend on how long the sequence is."""


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


class FusedDecoder:
    """The layers of a Llama or Gemma 3 decoder, with the embedding before and the final norm after them."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Joins the model's matrices in memory; `fits` says which models can be given."""
        self._shape = Architecture.of(model)
        self._model = model
        config = model.config.get_text_config()
        self._queries, self._shared = int(config.num_attention_heads), int(config.num_key_value_heads)
        self._size = int(getattr(config, "head_dim", None) or config.hidden_size // self._queries)
        self._scale = float(getattr(config, "query_pre_attn_scalar", None) or self._size) ** -0.5
        self._eps = float(config.rms_norm_eps)
        self._decoder = getattr(model, self._shape.decoder)
        self._norm = self._weight(self._shape.norm(model))
        self._rotations: dict[str, tuple[Tensor, Tensor]] = {}
        self._head = _head_product(self._shape.head(model))
        joined: dict[tuple[int, ...], Product] = {}
        self._layers = [
            self._layer(layer, config, place, joined) for place, layer in enumerate(self._shape.layers(model))
        ]

    @staticmethod
    def fits(model: PreTrainedModel) -> bool:
        """Whether this model's forward is written here."""
        config = model.config.get_text_config()
        return (
            config.model_type in SUPPORTED
            and _rotation_types(config) <= _STATIC_ROTATIONS
            and getattr(config, "attn_logit_softcapping", None) is None
            and not getattr(config, "use_bidirectional_attention", False)
        )

    def first(self, count: int, view: PreTrainedModel) -> FusedDecoder:
        """The first `count` layers alone, as `view` has them; they share all weights."""
        twin = object.__new__(FusedDecoder)
        twin.__dict__.update(self.__dict__)
        twin._layers = self._layers[:count]
        twin._model = view
        return twin

    def embedded(self, ids: Tensor) -> Tensor:
        """Embeddings [1, tokens, hidden] of token ids [1, tokens]."""
        found: Tensor = self._shape.embedding(self._model)(ids)
        return found

    def run(
        self,
        inputs: Tensor,
        cache: RollbackCache,
        tree: TokenTree | None = None,
        states: dict[int, Tensor] | None = None,
    ) -> Tensor:
        """Appends tokens to the cache.

        Args:
            inputs: what the first layer reads, [tokens, hidden]; at most `MOST_TOKENS`.
            cache: what is held so far.
            tree: how the tokens follow each other, see `TreeRuntime.feed_tree`; None: as a chain.
            states: by the numbers of layers, whose outputs replace what is there.

        Returns:
            states after the last layer, [tokens, hidden]; `normed` makes them final.
        """
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

    def normed(self, hidden: Tensor) -> Tensor:
        """States after the final norm."""
        return self._normed(hidden, self._norm)

    def logits(self, states: Tensor) -> Tensor:
        """Logits [tokens, vocabulary] of final states [tokens, hidden]."""
        return self._shape.logits(self._model, states, self._head)

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
        known = self._rotations.get(kind)
        if known is None or len(known[0]) < end:
            known = self._rotations[kind] = self._tables(kind, max(2 * end, 512))
        cosine, sine = known
        if tree is not None:
            positions = root + torch.tensor(tree.depths[-tokens:], device=cosine.device)
            return cosine[positions], sine[positions]
        return cosine[root:end], sine[root:end]

    def _tables(self, kind: str, positions: int) -> tuple[Tensor, Tensor]:
        weight = self._shape.embedding(self._model).weight
        assert isinstance(weight, Tensor)
        numbers = torch.arange(positions, device=weight.device)[None]
        several = {} if self._shape.model_type == "llama" else {"layer_type": kind}
        cosine, sine = self._decoder.rotary_emb(weight[:1, None], numbers, **several)
        half = self._size // 2
        signed = torch.cat([-sine[..., :half], sine[..., half:]], -1)
        return cosine[0][:, None].contiguous(), signed[0][:, None].contiguous()

    def _normed(self, hidden: Tensor, weight: Tensor) -> Tensor:
        return rms_norm(hidden.float(), (hidden.shape[-1],), weight, self._eps).to(hidden.dtype)

    def _weight(self, norm: nn.Module) -> Tensor:
        """A norm's weight as it multiplies, fp32."""
        weight = norm.weight
        assert isinstance(weight, Tensor)
        return weight.detach().float() + self._shape.norm_offset

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
        kinds = getattr(config, "layer_types", None)
        kind = FULL if kinds is None else str(kinds[place])
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
            window=attention_windows(config)[kind],
        )


def _first_seen(root: int, window: int | None) -> int:
    """The first position that a token at `root` sees."""
    return 0 if window is None else max(0, root - window + 1)


def _head_product(head: nn.Module) -> Product:
    if isinstance(head, TrimmedHead):
        kept = product_of(head.projection)
        return lambda states: head.spread(kept(states))
    return product_of(head)


def _rotation_types(config: PretrainedConfig) -> set[str]:
    found = config.rope_parameters
    kinds = [found] if "rope_type" in found else [one for one in found.values() if one is not None]
    return {str(one["rope_type"]) for one in kinds}


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
