"""What steps work on: the draft in the making, and what surrounds its build."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from draftrank.progress import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from draftrank.drafting.architecture import Architecture

LoadForm = Literal["plain", "dynamic_int8"]
"""How saved weights are turned into a running model: as they are, or quantized when loaded."""


@dataclass(slots=True)
class WorkingDraft:
    """A draft model in memory (fp32, on the build's device), changed step by step."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    architecture: Architecture
    load_form: LoadForm = "plain"
    notes: dict[str, Any] = field(default_factory=dict)
    """Facts worth keeping in `draftrank.json`, such as which layers were kept or the final loss."""


@dataclass(frozen=True, slots=True)
class BuildContext:
    """What a step may use beside the draft itself."""

    target_folder: Path
    """The target as a Hugging Face folder."""
    target_weights_sha256: str
    """Identity of the target's weights, for the keys of cached corpora."""
    prompt_format: Literal["chat", "completion"]
    """How the target is prompted."""
    cache: Path
    """The workspace's cache: corpora are kept below it."""
    scratch: Path
    """A folder of this build alone that survives an interruption: checkpoints go here."""
    device: str
    """Where to compute: `cpu` or `cuda`."""
    progress: Progress
