"""A target and its first recipes, written from what a model's repository or folder says about itself.

Only configuration, tokenizer and model card are read. What they leave open is returned in words, for whoever declares the
target to complete. The recipes are those that need no training, and the model that a search trains first.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from draftrank.catalog.base import Declared, Line
from draftrank.catalog.formatting import yaml_text
from draftrank.catalog.recipe import Recipe
from draftrank.catalog.self_generated import Corpus
from draftrank.catalog.sources.hub import fetch_description
from draftrank.catalog.starters import require_new, require_text, write_new
from draftrank.catalog.target import Target
from draftrank.catalog.workspace import Workspace
from draftrank.errors import InvalidInputError
from draftrank.models.description import ModelDescription, describe_model
from draftrank.progress import Progress
from draftrank.workflows.first_recipes import CORPUS, corpus_of, first_recipes

_REPOSITORY = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")
_MAIN = "main"
"""The branch whose commit is pinned where none is named."""
_PREFIXES = "drafts/prompt-prefixes.txt"
"""The workspace's own prompt prefixes, where it has any."""


@dataclass(frozen=True, slots=True)
class NewTarget:
    """What was written."""

    files: tuple[Path, ...]
    """The target's, then its corpus's and its recipes'."""
    open_questions: tuple[str, ...]
    """What could not be told, one sentence each."""


def target_from_hub(
    workspace: Workspace, target_id: str, address: str, author: str, progress: Progress
) -> NewTarget:
    """Declares a model repository of the hub as a target.

    Args:
        address: `owner/name`, or `owner/name@revision`; without a revision the commit of the branch `main` is pinned.

    Raises:
        InvalidInputError: the id, the address or the author is malformed, or a file exists.
        MissingDataError: the hub cannot be reached, or the repository holds no model of transformers.
        UnsupportedModelError: the model is no decoder-only language model.
    """
    _require_own_new(workspace, target_id, author)
    asked = _REPOSITORY.fullmatch(address)
    if asked is None:
        raise InvalidInputError.single(
            f"{address!r} is no repository of the hub", field="--from-hub", fix="write OWNER/NAME@COMMIT"
        )
    revision = asked["revision"] or _MAIN
    folder = fetch_description(asked["name"], revision, workspace.fetch_context(progress))
    source = {"kind": "hub", "repository": asked["name"], "revision": folder.name}
    pinned = (
        ""
        if revision == folder.name
        else f"Pinned to the commit that `{revision}` named when it was declared."
    )
    return _write(workspace, target_id, asked["name"].split("/")[1], source, folder, pinned, author)


def target_from_folder(workspace: Workspace, target_id: str, folder: Path, author: str) -> NewTarget:
    """Declares a model's folder as a target; arguments and errors as for `target_from_hub`.

    Raises:
        InvalidInputError: also, the folder lies neither in the workspace nor in one of DRAFTRANK_DATA.
    """
    _require_own_new(workspace, target_id, author)
    found = folder.resolve()
    roots = [root.resolve() for root in workspace.fetch_context().roots]
    root = next((root for root in roots if found.is_relative_to(root)), None)
    if root is None or not found.is_dir():
        raise InvalidInputError.single(
            "is no folder of the workspace" if root is None else "is not a folder",
            file=str(folder),
            field="--from-folder",
            fix="name a model's folder in the workspace, or set DRAFTRANK_DATA to the folder that it lies in",
        )
    source = {"kind": "local", "path": found.relative_to(root).as_posix()}
    return _write(workspace, target_id, found.name, source, found, "", author)


def _require_own_new(workspace: Workspace, target_id: str, author: str) -> None:
    workspace.require_own()
    require_new(_folder_of(workspace, target_id) / "target.yaml", target_id)
    require_text(Line, author, "an author's name", "write one line of text")


def _folder_of(workspace: Workspace, target_id: str) -> Path:
    return workspace.root / "drafts" / target_id


def _write(
    workspace: Workspace,
    target_id: str,
    title: str,
    source: dict[str, Any],
    folder: Path,
    note: str,
    author: str,
) -> NewTarget:
    model = describe_model(folder)
    place = _folder_of(workspace, target_id)
    prefixes = _PREFIXES if (workspace.root / _PREFIXES).is_file() else None
    recipes, left_out = first_recipes(target_id, model, author)
    files: list[tuple[Path, type[Declared], dict[str, Any]]] = [
        (place / "target.yaml", Target, _target(target_id, title, source, model, note)),
        *((place / f"{recipe['id']}.yaml", Recipe, recipe) for recipe in recipes),
    ]
    if any("data" in step for recipe in recipes for step in recipe["draft"].get("steps", ())):
        corpus = corpus_of(target_id, model, prefixes)
        files.insert(1, (place / "corpora" / f"{CORPUS}.yaml", Corpus, corpus))
    for path, _, content in files:
        require_new(path, content["id"])
    for path, kind, content in files:
        write_new(path, content["id"], yaml_text(content), kind)
    return NewTarget(tuple(path for path, _, _ in files), (*model.doubts, *left_out))


def _target(
    target_id: str, title: str, source: dict[str, Any], model: ModelDescription, note: str
) -> dict[str, Any]:
    sentences = [
        f"A {model.layers}-layer model of the family {model.model_type} with a vocabulary of {model.vocabulary:,} tokens.",
        "It has no chat template, so prompts are plain text." if model.prompt_format == "completion" else "",
        note,
    ]
    content: dict[str, Any] = {
        "schema_version": 1,
        "id": target_id,
        "title": title,
        "description": " ".join(filter(None, sentences)),
        "licence": model.licence,
        "source": source,
        "prompt_format": model.prompt_format,
    }
    if model.configured_window is None:
        content["context_window"] = model.window
    try:
        Target.model_validate_json(json.dumps(content))
    except ValidationError as error:
        first = error.errors()[0]
        raise InvalidInputError.single(
            f"cannot be declared: {first['input']!r}: {first['msg']}",
            file=title,
            field=".".join(map(str, first["loc"])),
            fix="rename the folder, or write target.yaml by hand",
        ) from None
    return content
