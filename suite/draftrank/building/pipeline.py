"""From a recipe to a draft on disk: the steps in order, each on what the one before left."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from draftrank.building.kept_drafts import take_kept
from draftrank.building.shared_drafts import give_shared, take_shared
from draftrank.building.steps.origin import Pretrained
from draftrank.building.text.corpus import corpus_key, require_writable, self_generated_corpus
from draftrank.building.working_draft import BuildContext, WorkingDraft
from draftrank.catalog.recipe import Recipe
from draftrank.catalog.self_generated import SelfGenerated
from draftrank.catalog.sources.base import FetchContext
from draftrank.catalog.step import StepBase
from draftrank.catalog.target import Target
from draftrank.errors import BuildError, DraftrankError, MissingDataError
from draftrank.models.architecture_checks import alike, require_every_layer, short_logits
from draftrank.models.cache import (
    CODE_VERSIONS,
    FACTS,
    draft_folder,
    draft_key,
    only_process,
    publish_folder,
    remove_folder,
    scratch_folder,
    weight_files,
    weights_sha256,
)
from draftrank.models.forms import FORMS
from draftrank.models.loading import load_model, load_tokenizer, read_forms
from draftrank.models.target_folder import TargetFolder

_PACKAGES = ("draftrank", "torch", "transformers", "safetensors", "tokenizers")


@dataclass(frozen=True, slots=True)
class BuiltDraft:
    """A draft that is ready to propose, and what it took."""

    recipe: Recipe
    """How it was declared."""
    recipe_sha256: str
    """Identity of the recipe."""
    folder: Path | None
    """Its Hugging Face folder; None for a draft without weights of its own."""
    weights_sha256: str | None
    """Hash over its weight files; None without weights."""
    parameters: int
    """Parameters it holds; 0 without weights."""
    bytes_on_disk: int
    """Size of its weight files; 0 without weights."""
    build_s: float
    """Seconds the build took when it was made, interrupted attempts included; 0 without weights."""
    reused: bool
    """Whether it was in the cache already."""


def build_draft(
    recipe: Recipe,
    target: Target,
    target_folder: TargetFolder,
    fetch: FetchContext,
    *,
    device: str = "cpu",
) -> BuiltDraft:
    """Builds a recipe's draft, or finds it in the cache: equal steps on equal weights are built once, and a
    recipe that adds steps to another one begins with what that one gave.

    The folder opens with `AutoModelForCausalLM.from_pretrained` and serves as `assistant_model`; its
    `draftrank.json` says how it was made. What an interrupted build had finished is taken up again.

    Args:
        recipe: what to build.
        target: the declaration of the recipe's target.
        target_folder: that target on disk.
        fetch: how the sources that steps name are had, where what is built is cached, and who is told how far it is.
        device: where to compute, `cpu` or `cuda`.

    Raises:
        BuildError: a step failed; the message names the step and the cause.
    """
    if not recipe.draft.has_weights:
        return BuiltDraft(recipe, recipe.content_sha256(), None, None, 0, 0, 0.0, reused=False)
    context = _context(recipe, target, target_folder, fetch, device)
    folder = draft_folder(fetch.cache, draft_key(recipe.draft, target_folder.weights_sha256))
    reused = folder.is_dir()
    if not reused:
        with only_process(folder, fetch.progress, f"the draft {recipe.id}"):
            reused = _at_hand(recipe, context, folder)
            if not reused:
                _build(recipe, context, folder)
                give_shared(fetch, folder, fetch.progress)
    return _opened(recipe, folder, reused=reused)


def find_draft(
    recipe: Recipe, target: Target, target_folder: TargetFolder, fetch: FetchContext
) -> BuiltDraft | None:
    """A draft with weights that was built before, here or elsewhere, or kept; None where it would have to be built.
    Arguments as for `build_draft`."""
    context = _context(recipe, target, target_folder, fetch, "cpu")
    folder = draft_folder(fetch.cache, draft_key(recipe.draft, target_folder.weights_sha256))
    with only_process(folder, fetch.progress, f"the draft {recipe.id}"):
        found = _at_hand(recipe, context, folder)
    return _opened(recipe, folder, reused=True) if found else None


def write_text(
    recipe: Recipe,
    target: Target,
    target_folder: TargetFolder,
    fetch: FetchContext,
    corpora: Collection[str],
    *,
    device: str,
) -> None:
    """Lets the target write those of these corpora, given by their keys, that the recipe declares and the cache lacks.

    Other arguments as for `build_draft`. Raises: see `self_generated_corpus`.
    """
    context = _context(recipe, target, target_folder, fetch, device)
    declared = [getattr(step, "data", None) for step in recipe.draft.build_steps]
    for spec in (recipe.draft.calibration_text, *declared):
        if isinstance(spec, SelfGenerated) and corpus_key(spec, context) in corpora:
            self_generated_corpus(spec, context)


def _context(
    recipe: Recipe,
    target: Target,
    target_folder: TargetFolder,
    fetch: FetchContext,
    device: str,
) -> BuildContext:
    first = recipe.draft.build_steps[0]
    own = recipe.draft.vocabulary_mode != "same"
    return BuildContext(
        target=target,
        target_folder=target_folder.path,
        target_weights_sha256=target_folder.weights_sha256,
        scratch=fetch.cache / "scratch",
        device=device,
        fetch=fetch,
        calibration=recipe.draft.calibration_text,
        own_vocabulary=first.source if own and isinstance(first, Pretrained) else None,
    )


def _at_hand(recipe: Recipe, context: BuildContext, folder: Path) -> bool:
    """Whether the draft lies in `folder` now without having been built."""
    return (
        folder.is_dir()
        or take_shared(context.fetch, folder.name, folder, context.progress)
        or _kept(recipe, context, folder)
    )


def _kept(recipe: Recipe, context: BuildContext, folder: Path, steps: int | None = None) -> bool:
    """Whether the draft of the first so many steps, or of all, was kept beside the workspace's recipes and lies in `folder`
    now; see `take_kept`."""
    key_by = partial(draft_key, recipe.draft, context.target_weights_sha256, steps)
    return any(
        take_kept(key_by, context, root / "drafts" / context.target.id, folder, told=steps is not None)
        for root in context.fetch.roots[:1]
    )


def _build(recipe: Recipe, context: BuildContext, folder: Path) -> None:
    began = time.monotonic()
    scratch = scratch_folder(context.cache, f"draft-{folder.name}")
    ledger = scratch / "spent_s"
    spent = float(ledger.read_text()) if ledger.is_file() else 0.0
    context = replace(context, scratch=scratch)
    done = _Done()
    try:
        draft, done = _begin(recipe, context)
        spent += done.build_s
        _run_steps(recipe, draft, done.steps, context)
        # Steps that were found done may have been done by earlier code.
        versions = {step.kind: step.code_version for step in recipe.draft.build_steps} | done.code_versions
        facts = {
            "format": 1,
            "recipe": recipe.model_dump(mode="json", exclude_none=True),
            "recipe_sha256": recipe.content_sha256(),
            "target": context.target.id,
            "target_weights_sha256": context.target_weights_sha256,
            "key": draft_key(recipe.draft, context.target_weights_sha256, None, versions),
            "notes": draft.notes,
            CODE_VERSIONS: versions,
            "corpora": sorted(context.corpora),
            "forms": FORMS.dump_python(draft.forms, mode="json", exclude_defaults=False),
            "versions": _versions(),
            "device": context.device,
            "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        publish_folder(folder, lambda staging: _save(draft, facts, staging, began - spent))
    except BaseException:
        ledger.write_text(str(spent - done.build_s + time.monotonic() - began))
        raise
    remove_folder(scratch)


@dataclass(frozen=True, slots=True)
class _Done:
    """What another recipe has built already."""

    steps: int = 0
    """How many of the first steps."""
    build_s: float = 0.0
    """Seconds that took."""
    code_versions: dict[str, int] = field(default_factory=dict)
    """By kind of step, of the code that did it."""


def _begin(recipe: Recipe, context: BuildContext) -> tuple[WorkingDraft, _Done]:
    """The longest beginning of the steps that is in the cache, or was kept, as a draft of its own, else the target."""
    for count in range(len(recipe.draft.build_steps) - 1, 0, -1):
        key = draft_key(recipe.draft, context.target_weights_sha256, count)
        folder = draft_folder(context.cache, key)
        if not folder.is_dir():
            with only_process(folder, context.progress, f"a part of {recipe.id}"):
                if not folder.is_dir():
                    _kept(recipe, context, folder, count)
        if folder.is_dir():
            facts = json.loads((folder / FACTS).read_text("utf-8"))
            draft = _working(folder, context.device)
            draft.forms += read_forms(folder)
            draft.notes |= facts["notes"]
            context.corpora.update(facts.get("corpora", ()))
            versions = {
                step.kind: facts.get(CODE_VERSIONS, {}).get(step.kind, 1)
                for step in recipe.draft.build_steps[:count]
            }
            return draft, _Done(count, facts["build_s"], versions)
    return _working(context.target_folder, context.device), _Done()


def _working(folder: Path, device: str) -> WorkingDraft:
    model = load_model(folder, "fp32", device)
    return WorkingDraft(model, load_tokenizer(folder))


def _run_steps(recipe: Recipe, draft: WorkingDraft, done: int, context: BuildContext) -> None:
    steps = recipe.draft.build_steps
    _check_texts(recipe, steps[done:], context)
    for number, step in enumerate(steps[done:], start=done + 1):
        # What follows an origin is asked of the model that this one makes, and what follows a cut of the one that is left.
        new = number == done + 1 or steps[number - 2].phase == "origin"
        last = len(steps) if (new or step.trains) and step.phase != "origin" else number
        _check_steps(recipe, draft, range(number, last + 1), context, new=new)
        with context.progress.stage(f"{recipe.id}: step {number} of {len(steps)}, {step.kind}"):
            scratch = context.scratch / f"step-{number}"
            scratch.mkdir(exist_ok=True)
            try:
                step.apply(draft, replace(context, scratch=scratch))
            except Exception as error:  # whatever a step raises, the run goes on without this draft
                cause = (
                    str(error) if isinstance(error, DraftrankError) else f"{type(error).__name__}: {error}"
                )
                raise BuildError(f"{recipe.id}: step {number} ({step.kind}) failed: {cause}") from error


def _check_texts(recipe: Recipe, steps: Sequence[StepBase], context: BuildContext) -> None:
    """Refuses texts that some of the recipe's steps declare and the target cannot write."""
    for step in steps:
        text = getattr(step, "data", None)
        if isinstance(text, SelfGenerated):
            try:
                require_writable(text, context)
            except DraftrankError as error:
                raise BuildError(
                    f"{recipe.id}: the text of {step.kind} cannot be written: {error}"
                ) from error


def _check_steps(
    recipe: Recipe, draft: WorkingDraft, numbers: range, context: BuildContext, *, new: bool
) -> None:
    """Asks several steps, so that none is refused after hours of another one's work; of a `new` model, whether its layers are
    those that were found."""
    cut = False
    for number in numbers:
        step = recipe.draft.build_steps[number - 1]
        try:
            if new and step.touches_layers:
                require_every_layer(draft.model, draft.architecture.layers_name)
                new = False
            step.check(draft, context)
            if not cut:
                step.check_shape(draft, context)
            cut = cut or step.phase == "structure"
        except DraftrankError as error:
            raise BuildError(f"{recipe.id}: step {number} ({step.kind}) cannot be done: {error}") from error


def _save(draft: WorkingDraft, facts: dict[str, Any], staging: Path, began: float) -> None:
    draft.save(staging)
    files = weight_files(staging)
    measured = {
        "parameters": draft.count_parameters(),
        "bytes_on_disk": sum(path.stat().st_size for path in files),
        "weights_sha256": weights_sha256(files),
        "build_s": round(time.monotonic() - began, 3),
    }
    text = json.dumps({**facts, **measured}, indent=2, ensure_ascii=False)
    (staging / FACTS).write_text(text + "\n", "utf-8")
    if (
        draft.packed_parameters is None
    ):  # other programs and libraries open their weights in another form than they made
        _require_same(draft, staging, facts["device"])


def _require_same(draft: WorkingDraft, saved: Path, device: str) -> None:
    """Refuses a draft whose folder opens as another model. The one in memory is given up first, so that there are never two.

    Raises:
        BuildError: it does.
    """
    expected, kind = short_logits(draft.model), draft.model.config.model_type
    del draft.model
    if not alike(expected, short_logits(load_model(saved, "fp32", device, full_precision=True))):
        raise BuildError(
            f"a {kind} model with these changes computes something else when it is saved and opened again, so its folder does "
            "not keep all of it: use steps that leave layers as they are, such as quantize or distill"
        )


def _opened(recipe: Recipe, folder: Path, *, reused: bool) -> BuiltDraft:
    facts = json.loads((folder / FACTS).read_text("utf-8"))
    if sum(path.stat().st_size for path in weight_files(folder)) != facts["bytes_on_disk"]:
        raise MissingDataError(f"{folder} was changed after it was built: remove it, it will be built again")
    return BuiltDraft(
        recipe=recipe,
        recipe_sha256=recipe.content_sha256(),
        folder=folder,
        weights_sha256=facts["weights_sha256"],
        parameters=facts["parameters"],
        bytes_on_disk=facts["bytes_on_disk"],
        build_s=facts["build_s"],
        reused=reused,
    )


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # run from a source tree that is not installed
            continue
    return found
