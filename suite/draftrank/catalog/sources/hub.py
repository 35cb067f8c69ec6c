"""A model repository, or one file of a repository, on the Hugging Face hub at a pinned commit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import StringConstraints, model_validator

from draftrank.catalog.base import RelativePath, Sha256
from draftrank.catalog.sources.base import FetchContext, SourceBase, check_sha256
from draftrank.errors import MissingDataError

_DESCRIBING = ("*.json", "*.txt", "tokenizer.model", "*.jinja")
MODEL_FILES = ("*.safetensors", *_DESCRIBING)
NOT_READ = ("*/*", "consolidated*.safetensors")
"""Copies of the same weights for other programs (Mistral's, and those in folders): transformers opens none of them."""
CARD = "README.md"
"""The model card of a repository."""


class HubSource(SourceBase):
    """Safetensors only: files that can hold code (pickles, Python) are never fetched."""

    kind: Literal["hub"]
    repository: Annotated[str, StringConstraints(pattern=r"^[\w.-]+/[\w.-]+$")]
    """`owner/name` on the hub."""
    revision: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$")]
    """Full commit hash, 40 hex digits: a branch or tag can move."""
    repository_type: Literal["model", "dataset"] = "model"
    """Which of the hub's two trees the repository lies in."""
    path: RelativePath | None = None
    """One file of the repository; the whole model when absent."""
    sha256: Sha256 | None = None
    """Hash of that file; required with `path`."""

    @model_validator(mode="after")
    def _file_needs_hash(self) -> HubSource:
        if (self.path is None) != (self.sha256 is None):
            raise ValueError("path and sha256 go together (fix: give both, or neither)")
        return self

    def fetch(self, context: FetchContext) -> Path:
        """See `SourceBase.fetch`; gated repositories need a token in HF_TOKEN."""
        from huggingface_hub import hf_hub_download, snapshot_download

        place = {
            "repo_id": self.repository,
            "revision": self.revision,
            "repo_type": self.repository_type,
            "local_files_only": context.offline,
        }
        try:
            if self.path is not None:
                found = Path(hf_hub_download(filename=self.path, **place))
            else:
                with context.progress.stage(f"fetch {self.repository}"):
                    found = Path(
                        snapshot_download(
                            allow_patterns=list(MODEL_FILES), ignore_patterns=list(NOT_READ), **place
                        )
                    )
        except Exception as error:  # the hub's client raises many kinds; all mean "not to be had now"
            raise _missing(f"{self.repository}@{self.revision[:8]}", error) from error
        if self.path is not None and self.sha256 is not None:
            check_sha256(found, self.sha256, f"{self.repository}/{self.path}")
        return found


def fetch_description(repository: str, revision: str, context: FetchContext) -> Path:
    """Fetches what a model repository says about its model, without its weights: configuration, tokenizer, model card.

    Args:
        revision: a commit, branch or tag.

    Returns:
        A folder in the hub's layout; its name is the full commit.

    Raises:
        MissingDataError: the hub cannot be reached, or has no such repository or revision.
    """
    from huggingface_hub import snapshot_download

    try:
        with context.progress.stage(f"read {repository}"):
            return Path(
                snapshot_download(
                    repository,
                    revision=revision,
                    allow_patterns=[*_DESCRIBING, CARD],
                    ignore_patterns=list(NOT_READ),
                    local_files_only=context.offline,
                )
            )
    except Exception as error:  # as above
        raise _missing(f"{repository}@{revision}", error) from error


def _missing(what: str, error: Exception) -> MissingDataError:
    return MissingDataError(
        f"{what} could not be fetched from the hub ({type(error).__name__}). It needs network access, and a token in "
        "HF_TOKEN where the repository is gated"
    )
