"""An EAGLE-3 head as a model of transformers: one Llama layer whose attention reads two vectors for each token.

Source: EAGLE-3 (Li et al. 2025, arXiv:2503.01840), in the form that its authors, SpecForge and vLLM publish. The auxiliary
hidden states of the target (outputs of three of its layers) are reduced to one state by a matrix, `fc`. For each token the
layer's attention reads the normed embedding and the normed state before it; the state is what the layer adds to. For tokens
that the target has not seen, the layer's own output stands for the state. The final norm comes before the head alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Eagle3Fusion(nn.Module):
    """What an EAGLE-3 head makes of the target's states."""

    def __init__(
        self, width: int, layers: Sequence[int], target_width: int | None = None, *, bias: bool = False
    ) -> None:
        """Begins with the output of the last of the layers alone, as far as it has the head's size.

        Args:
            width: the head's hidden size.
            layers: layers of the target whose outputs are read, ascending, from 0.
            target_width: the target's hidden size; None: the head's.
            bias: whether `fc` adds one.
        """
        super().__init__()
        self.layers = tuple(layers)
        """Layers of the target whose outputs are read."""
        wide = width if target_width is None else target_width
        self.state_width = (len(self.layers) + 1) * wide
        """Numbers that a runtime tells of each token: outputs of the layers, then the final state, which is not read."""
        self.fc = nn.Linear(len(self.layers) * wide, width, bias=bias)
        with torch.no_grad():
            if bias:
                self.fc.bias.zero_()
            self.fc.weight.zero_()[:, -wide:] = torch.eye(width, wide)

    def reduce(self, states: Tensor) -> Tensor:
        """The target's states as one: [..., state_width] to [..., hidden]."""
        weight = getattr(self.fc, "weight", None)
        read = states[..., : self.fc.in_features]
        reduced: Tensor = self.fc(read.to(weight.dtype if isinstance(weight, Tensor) else torch.float32))
        return reduced

    def forward(self, embedded: Tensor, states: Tensor) -> Tensor:
        """What the layer reads: two of [..., hidden] to [..., 2 · hidden]."""
        return torch.cat([embedded, states.to(embedded.dtype)], -1)


class Eagle3Layer(nn.Module):
    """The layer of an EAGLE-3 head, by the names of the published files."""

    def __init__(self, layer: nn.Module, hidden: int, *, norm_before_residual: bool = False) -> None:
        """Takes the parts of a Llama layer, which is not to be used any more, and makes its attention read two vectors.
        `norm_before_residual`: whether the attention's result is added to the normed state and not to the state."""
        super().__init__()
        parts: Any = layer
        self.hidden_size = hidden
        self.norm_before_residual = norm_before_residual
        self.self_attn = parts.self_attn
        self.mlp = parts.mlp
        self.input_layernorm = parts.input_layernorm
        """Of the embedding."""
        self.hidden_norm = type(self.input_layernorm)(hidden, eps=self.input_layernorm.variance_epsilon)
        """Of the state."""
        self.post_attention_layernorm = parts.post_attention_layernorm
        for name in ("q_proj", "k_proj", "v_proj"):
            found: nn.Linear = getattr(self.self_attn, name)
            twice = nn.Linear(2 * hidden, found.out_features, bias=found.bias is not None)
            setattr(self.self_attn, name, twice)

    def forward(self, hidden_states: Tensor, **told: Any) -> Tensor:
        """[batch, length, 2 · hidden] to [batch, length, hidden]; without states, [batch, length, hidden] of embeddings are
        read beside zeros."""
        if hidden_states.shape[-1] == self.hidden_size:
            hidden_states = torch.cat([hidden_states, torch.zeros_like(hidden_states)], -1)
        embedded, state = hidden_states.chunk(2, -1)
        normed = self.hidden_norm(state)
        read = torch.cat([self.input_layernorm(embedded), normed], -1)
        attended, _ = self.self_attn(hidden_states=read, **told)
        hidden = (normed if self.norm_before_residual else state) + attended
        result: Tensor = hidden + self.mlp(self.post_attention_layernorm(hidden))
        return result


def eagle3_layer(model: PreTrainedModel) -> Eagle3Layer | None:
    """The layer of an EAGLE-3 head; None: the model is another one."""
    return next((module for module in model.modules() if isinstance(module, Eagle3Layer)), None)
