"""The target's final hidden states over a corpus, read once and kept.

For a shallow draft the target's forward is most of a training step, and it gives the same every time. Its
hidden states are a hundred times smaller than its logits, which a head makes from them in no time.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from draftrank.catalog.base import sha256_of_json
from draftrank.errors import BuildError
from draftrank.models.architecture import Architecture
from draftrank.models.cache import only_process, publish_file

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from draftrank.building.text.corpus import Corpus
    from draftrank.building.working_draft import BuildContext

CODE_VERSION = 1
MAX_BYTES = 8 << 30
"""Larger ones are refused: they would have to be read from disk all the time."""
_BATCH_SEQUENCES = 16


def target_states(
    target: PreTrainedModel, corpus: Corpus, key: str, context: BuildContext, layers: Sequence[int] = ()
) -> Tensor:
    """Outputs of some layers, from 0, and final hidden states after the norm, in the target's dtype, [sequences, length,
    (layers + 1) · hidden], on the CPU; cached by the key of the corpus, which includes the target's.

    Raises:
        BuildError: they would take more than `MAX_BYTES`.
    """
    sequences, length = corpus.tokens.shape
    width, dtype = (len(layers) + 1) * int(target.config.hidden_size), target.dtype
    size = sequences * length * width * dtype.itemsize
    if size > MAX_BYTES:
        raise BuildError(
            f"the target's states of {sequences * length:,} tokens take {size / 2**30:.0f} GiB: remove "
            "cache_target_states or lower data.tokens"
        )
    named = {"layers": list(layers)} if layers else {}
    name = sha256_of_json({"code_version": CODE_VERSION, "corpus": key, "dtype": str(dtype), **named})
    final = context.cache / "target-states" / f"{name}.safetensors"
    if not final.is_file():
        with only_process(final, context.progress, "the target's states"):
            if not final.is_file():
                _read(target, corpus, final, context, layers)
    states: Tensor = load_file(final)["states"]
    return states


@torch.inference_mode()
def _read(
    target: PreTrainedModel, corpus: Corpus, final: Path, context: BuildContext, layers: Sequence[int]
) -> None:
    shape = Architecture.of(target)
    parts = []
    with context.progress.stage("read the target's states", corpus.tokens.numel()) as stage:
        for batch in torch.split(corpus.tokens, _BATCH_SEQUENCES):
            ids = batch.to(target.device, torch.int64)
            parts.append(shape.states_of_layers(target, ids, layers).cpu())
            stage.advance(batch.numel())
    publish_file(final, lambda path: save_file({"states": torch.cat(parts)}, path))
