"""What steps work on: the draft in the making, and what surrounds its build."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from draftrank.catalog.self_generated import CALIBRATION, SelfGenerated
from draftrank.catalog.sources.base import FetchContext, SourceBase
from draftrank.catalog.target import Target
from draftrank.models.forms import Form, LowRankForm, TiedLayersForm, TrimmedHeadForm
from draftrank.models.gguf_format import GGUF_FILE
from draftrank.models.quiet import quiet_transformers
from draftrank.models.target_folder import ensure_model
from draftrank.progress import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from draftrank.models.architecture import Architecture


@dataclass(slots=True)
class WorkingDraft:
    """A draft model in memory (fp32, on the build's device), changed step by step."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    forms: list[Form] = field(default_factory=list)
    """What is done to the saved model when it is loaded, in order; empty for an ordinary folder."""
    notes: dict[str, Any] = field(default_factory=dict)
    """Facts worth keeping in `draftrank.json`, such as which layers were kept or the final loss."""
    packed_parameters: int | None = None
    """How many parameters it has, where a library has packed them so that the model cannot tell."""
    gguf: Path | None = None
    """The file that holds its weights in the end, where llama.cpp is to run it."""

    @property
    def architecture(self) -> Architecture:
        """Where the model's parts are, as it is now.

        Raises:
            BuildError: they are not found; a step that needs none of them does not ask.
        """
        from draftrank.models.architecture import Architecture

        return Architecture.of(self.model)

    def count_parameters(self) -> int:
        """How many parameters it has; shared ones once."""
        return self.packed_parameters or sum(parameter.numel() for parameter in self.model.parameters())

    def save(self, folder: Path) -> None:
        """Writes model and tokenizer; layers that share weights are written out, so that the folder opens
        anywhere."""
        if self.gguf is not None:
            with quiet_transformers():
                self.model.config.save_pretrained(folder)
                self.tokenizer.save_pretrained(folder)
            shutil.copyfile(self.gguf, folder / GGUF_FILE)
            return
        tied = tuple(form.layers for form in self.forms if isinstance(form, TiedLayersForm))
        state = self.model.state_dict() if tied else None
        if state is not None:
            state = {name: value.clone() if name.startswith(tied) else value for name, value in state.items()}
        with quiet_transformers():
            # Some families rename modules in their files, and what was put in their place is found by its own name.
            renamed = not any(isinstance(form, LowRankForm | TrimmedHeadForm) for form in self.forms)
            self.model.save_pretrained(folder, state_dict=state, save_original_format=renamed)
            self.tokenizer.save_pretrained(folder)


@dataclass(frozen=True, slots=True)
class BuildContext:
    """What a step may use beside the draft itself."""

    target: Target
    """The target's declaration."""
    target_folder: Path
    """The target as a Hugging Face folder."""
    target_weights_sha256: str
    """Identity of the target's weights, for the keys of cached corpora."""
    scratch: Path
    """A folder of this build alone that survives an interruption: checkpoints go here."""
    device: str
    """Where to compute: `cpu` or `cuda`."""
    fetch: FetchContext
    """How sources are had, where corpora are cached, and who is told how far the build is."""
    calibration: SelfGenerated = CALIBRATION
    """What steps that look at activations are shown."""
    corpora: set[str] = field(default_factory=set)
    """Keys of the corpora that this build has read."""
    own_vocabulary: SourceBase | None = None
    """Where the draft's model comes from, if its tokenizer is another than the target's; None: it is the target's."""

    @property
    def cache(self) -> Path:
        """The workspace's cache: corpora are kept below it."""
        return self.fetch.cache

    @property
    def progress(self) -> Progress:
        """Who is told how far the build is."""
        return self.fetch.progress

    @property
    def model_folder(self) -> Path:
        """The model that the draft is made from: the target, or the ready-made one with another tokenizer. It gives the
        draft its tokens and, in distillation, its teacher.

        Raises: see `ensure_model`.
        """
        if self.own_vocabulary is None:
            return self.target_folder
        return ensure_model(self.own_vocabulary, self.fetch)
