"""Which backend, dtype and device a session takes: the fastest in which its target and every draft of it run.

Whether a draft fits is known before it is built, from what its recipe's steps leave in the model. Nothing falls back
silently: the choice is a sentence, and what cannot be had is an error that names the draft and the ways out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import torch

from draftrank.building.steps.eagle_head import EagleHead
from draftrank.building.steps.factorize import FactorizeHead
from draftrank.building.steps.quantize import Quantize
from draftrank.building.steps.sparsify import Sparsify
from draftrank.building.steps.trim_vocabulary import TrimVocabulary
from draftrank.building.surgery.eagle_head import head_skeleton
from draftrank.building.surgery.library_quantization import LIBRARY_NAMES
from draftrank.catalog.backend import Asked, Backend, Device, Dtype, is_dtype
from draftrank.catalog.step import Trait
from draftrank.engine.backends.blocks import caps_logits
from draftrank.engine.backends.registry import device_of, skeleton, why_not, why_not_blocks, why_not_here
from draftrank.engine.backends.transformers.runtime import tree_windows
from draftrank.engine.backends.transformers.snapshot_cache import keeps_every_token
from draftrank.engine.environment import compute_environment
from draftrank.engine.proposers.early_exit import EarlyExitDraft
from draftrank.errors import InvalidInputError, Problem, UnsupportedModelError
from draftrank.models.architecture import Architecture
from draftrank.models.gguf_format import quantization_of, read_gguf
from draftrank.models.loading import compute_dtype

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from draftrank.catalog.recipe import Recipe

FASTEST_FIRST: tuple[Backend, ...] = ("cuda-graphs", "cpp", "transformers")
"""What `auto` tries; llama.cpp has weights of its own and is taken only when it is asked for."""
_SHARE_OF_TOKENS = {"avx512_bf16": "1/5", "AVX512": "1/3", "AVX2": "1/3"}
"""Tokens that transformers gives in the time of `cpp` in bf16, by the processor's instructions: measured with
SmolLM2-135M, 1/5.3 with AVX-512 BF16 and 1/2.9 without."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where one model runs."""

    backend: Backend
    dtype: str
    """`Dtype`, or of a GGUF file its own quantization."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What a session takes."""

    backend: Backend
    dtype: str
    """What the target's weights are loaded in; of a GGUF file its own quantization."""
    device: Device
    sentence: str
    """Which and why, in one line."""
    elsewhere: Mapping[str, Place] = field(default_factory=dict)
    """Drafts that run in another backend, by id."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Why drafts that nobody named take no part, by id."""

    @property
    def messages(self) -> tuple[str, ...]:
        """The sentence, and one for each draft that is an exception."""
        apart = [
            f"the draft {draft} runs in backend {place.backend}, {place.dtype}: it is shown and not ranked with the others"
            for draft, place in self.elsewhere.items()
        ]
        out = [
            f"the draft {draft} is left out: {reason} (name it with --draft to have it measured)"
            for draft, reason in self.left_out.items()
        ]
        return (self.sentence, *apart, *out)


@dataclass(frozen=True, slots=True)
class Candidates:
    """What is to be measured together."""

    target: str
    """Id of the target."""
    folder: Path
    """Its Hugging Face folder."""
    recipes: Sequence[Recipe] = ()
    named: bool = True
    """Whether a user named the drafts: then each must run. Others are left out where they do not."""
    gguf: Callable[[], Path] | None = None
    """Gives the target's GGUF file; raises where it has none."""
    origin: Callable[[Recipe], Path | None] = lambda recipe: None  # noqa: ARG005
    """Folder of the model that a recipe begins with instead of the target; None: the target."""


def choose(asked: Asked, what: Candidates) -> Choice:
    """Takes the fastest combination in which the target and every draft can run.

    Raises:
        InvalidInputError: what was asked for cannot run here, or no combination can.
        MissingDataError: the target cannot be opened.
    """
    device = device_for(asked)
    if asked.backend == "llama.cpp":
        return _llama_cpp(asked, what, device)
    if asked.dtype == "file":
        return _own_blocks(asked, what, device)
    tried: list[str] = []
    misfits: dict[str, str] = {}
    for backend in FASTEST_FIRST if asked.backend == "auto" else (asked.backend,):
        if asked.backend == "auto" and device_of(backend) not in (None, device):
            continue
        dtype = fastest_dtype(backend, device) if asked.dtype == "auto" else asked.dtype
        reason = why_not_here(backend, device)
        fault = "cannot be used"
        if reason is None:
            reason = why_not(backend, _model(what.folder, dtype), dtype, device)
            fault = f"cannot run the target {what.target}"
        if reason is not None:
            if asked.backend != "auto":
                _refuse(f"the backend {backend} {fault}: {reason}")
            tried.append(f"{backend} {fault} ({reason})")
            continue
        misfits = _misfits(what, backend, dtype, device)
        if not misfits or asked.allow_mixed or (not what.named and len(misfits) < len(what.recipes)):
            return _taken(asked, what, Place(backend, dtype), device, misfits, tried)
        if asked.backend != "auto":
            break
        first, why = next(iter(misfits.items()))
        several = (
            f"the drafts {', '.join(misfits)} do not run"
            if len(misfits) > 1
            else f"the draft {first} does not run"
        )
        tried.append(f"{several} in {backend} ({why})")
    raise _no_room(asked, what, misfits, "; ".join(tried))


def fastest_dtype(backend: Backend, device: Device) -> Dtype:
    """The dtype in which a backend is fastest here. `cpp` reads bf16 at half of fp32's memory traffic wherever AVX2
    widens it; torch gains only where the processor or GPU multiplies it."""
    if backend == "cpp":
        return "bf16" if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512") else "fp32"
    return compute_dtype(device)


def _misfits(what: Candidates, backend: Backend, dtype: Dtype | None, device: Device) -> dict[str, str]:
    """Why drafts will not run in a backend, by id; arguments as below."""
    found = {recipe.id: draft_misfit(recipe, what, backend, dtype, device) for recipe in what.recipes}
    return {draft: reason for draft, reason in found.items() if reason is not None}


def draft_misfit(
    recipe: Recipe,
    what: Candidates,
    backend: Backend,
    dtype: Dtype | None,
    device: Device,
    beside: Backend | None = None,
) -> str | None:
    """Why the draft of a recipe, which need not be built, will not run in a backend beside a target's; None where it will.

    `dtype` is what a draft's weights are loaded in unless its steps say otherwise; None with llama.cpp. `beside` is the
    target's backend; None: the same."""
    draft = recipe.draft
    if (beside or backend) == "transformers":
        reason = _asked_of_target(recipe, _model(what.folder, dtype or "fp32"))
        if reason is not None:
            return reason
    if (beside or backend) == "llama.cpp":
        if isinstance(draft, EarlyExitDraft):
            return "llama.cpp cannot run a model's first layers alone"
        if recipe.speculate.branch_above_probability is not None:
            return "it proposes trees, which llama.cpp does not read"
        if any(isinstance(step, EagleHead) for step in draft.build_steps):
            return "it reads outputs of the target's layers, which llama.cpp does not tell"
    if not draft.has_weights:
        return None if beside in (None, backend) else "it has no model that could run elsewhere"
    traits: set[Trait] = {step.trait for step in draft.build_steps if step.trait is not None}
    if "gguf" in traits:
        return (
            why_not_here(backend, device)
            if backend == "llama.cpp"
            else "it is a GGUF file, which llama.cpp runs"
        )
    if backend == "llama.cpp":
        return "its model is no GGUF file, which llama.cpp needs"
    assert dtype is not None
    return why_not_here(backend, device) or _misfit(recipe, what, backend, dtype, device)


def _misfit(recipe: Recipe, what: Candidates, backend: Backend, dtype: Dtype, device: Device) -> str | None:
    folder = what.origin(recipe) or what.folder
    of_dtype = _head if isinstance(recipe.draft.build_steps[0], EagleHead) else _model
    for step in recipe.draft.build_steps:
        if isinstance(step, Quantize):
            if step.scheme != "dynamic_int8":
                if backend != "transformers":
                    return f"its matrices are made by {LIBRARY_NAMES[step.scheme]}"
                continue
            if device != "cpu":
                return "dynamic int8 runs on the CPU only"
            dtype = "fp32"
            if backend == "cpp" and _partly(step, of_dtype(folder, "fp32")):
                return "some matrices of its layers are int8 and others are not"
        elif (
            backend != "transformers"
            and step.trait == "factors"
            and not (backend == "cpp" and isinstance(step, FactorizeHead))
        ):
            return "its matrices are products of thin ones"
        elif (
            backend == "cuda-graphs"
            and isinstance(step, TrimVocabulary)
            and caps_logits(of_dtype(folder, dtype))
        ):
            return "its logits are softcapped behind a trimmed head"
        elif (
            backend == "cuda-graphs"
            and isinstance(step, Sparsify)
            and step.pattern == "2:4"
            and dtype != "fp32"
        ):
            return "its matrices are multiplied by torch's sparse kernels"
    model = of_dtype(folder, dtype)
    reason = why_not(backend, model, dtype, device)
    if reason is None and backend == "transformers" and keeps_every_token(model.config.get_text_config()):
        return _no_trees(recipe, model)
    return reason


def _asked_of_target(recipe: Recipe, target: PreTrainedModel) -> str | None:
    """What a draft asks of a target that the backend transformers cannot do with it; None: nothing."""
    config = target.config.get_text_config()
    if isinstance(recipe.draft, EarlyExitDraft) and not keeps_every_token(config):
        return (
            f"it runs the target's first layers alone, and layers of {config.model_type} keep a state that is rolled back in all "
            "of them at once"
        )
    return _no_trees(recipe, target)


def _no_trees(recipe: Recipe, model: PreTrainedModel) -> str | None:
    """Why a model does not read the trees that a recipe asks for; None: it does, or they are not asked for."""
    if recipe.speculate.branch_above_probability is None:
        return None
    try:
        tree_windows(model)
    except UnsupportedModelError as error:
        return str(error)
    return None


@cache
def _model(folder: Path, dtype: Dtype) -> PreTrainedModel:
    return skeleton(folder, dtype)


@cache
def _head(folder: Path, dtype: Dtype) -> PreTrainedModel:
    """An EAGLE-3 head of a target, without weights."""
    return head_skeleton(_model(folder, dtype))


def _partly(step: Quantize, model: PreTrainedModel) -> bool:
    names = Architecture.of(model).linear_layers(model)
    kept = sum(name.endswith(step.keep_precise) for name in names)
    return 0 < kept < len(names)


def device_for(asked: Asked) -> Device:
    """Where it is to run: on a GPU where there is one and the backend can.

    Raises:
        InvalidInputError: there is no GPU, and one is asked for.
    """
    gpu = compute_environment().gpu
    if asked.device == "cuda" and gpu is None:
        raise InvalidInputError.single(
            "there is no CUDA device here",
            field="--device",
            fix="use --device cpu, or see `draftrank doctor`",
        )
    if asked.device != "auto":
        return asked.device
    if asked.dtype == "file" or (asked.backend != "auto" and device_of(asked.backend) == "cpu"):
        return "cpu"
    return "cpu" if gpu is None else "cuda"


def _taken(
    asked: Asked,
    what: Candidates,
    place: Place,
    device: Device,
    misfits: Mapping[str, str],
    tried: Sequence[str],
) -> Choice:
    left_out = {} if asked.allow_mixed else dict(misfits)
    elsewhere = {}
    for recipe in what.recipes:
        if recipe.id in misfits and asked.allow_mixed:
            found = _elsewhere(recipe, what, place.backend, device)
            if found is None and what.named:
                _refuse(
                    f"the draft {recipe.id} runs in no backend beside a target in {place.backend}: {misfits[recipe.id]}",
                    fix="leave it out",
                    field="--draft",
                )
            if found is None:
                left_out[recipe.id] = misfits[recipe.id]
            else:
                elsewhere[recipe.id] = found
    if tried:
        why = "; ".join(tried)
    elif asked.backend != "auto":
        why = "as asked"
    else:
        why = advantage(place.backend, place.dtype)
    own = place.backend == "cpp" and not is_dtype(place.dtype)
    blocks = " (the blocks of the target's file, as they are)" if own else ""
    sentence = f"backend {place.backend}, {place.dtype}{blocks}: {why}"
    return Choice(place.backend, place.dtype, device, sentence, elsewhere, left_out)


def _elsewhere(recipe: Recipe, what: Candidates, beside: Backend, device: Device) -> Place | None:
    for backend in FASTEST_FIRST:
        if backend != beside and device_of(backend) in (None, device):
            dtype = fastest_dtype(backend, device)
            if draft_misfit(recipe, what, backend, dtype, device, beside) is None:
                return Place(backend, dtype)
    if beside != "llama.cpp" and draft_misfit(recipe, what, "llama.cpp", None, device, beside) is None:
        return Place("llama.cpp", "gguf")  # its file, which is not written yet, has its own
    return None


def advantage(backend: Backend, dtype: str) -> str:
    """Why a backend is taken first, as far as it is known."""
    if backend == "transformers":
        return "no other is available"
    if backend == "cuda-graphs":
        return "its kernels are captured in CUDA graphs"
    instructions = instructions_here()
    share = _SHARE_OF_TOKENS.get(instructions) if dtype == "bf16" else None
    told = f"; transformers would give about {share} of the tokens" if share else ""
    return f"compiled for {instructions}{told}"


def instructions_here() -> str:
    """The widest instructions of this processor that the kernels are compiled for, as far as torch knows them."""
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return "avx512_bf16" if probe is not None and probe() else str(torch.backends.cpu.get_cpu_capability())


def _llama_cpp(asked: Asked, what: Candidates, device: Device) -> Choice:
    reason = why_not_here("llama.cpp", device)
    if reason is not None:
        _refuse(f"the backend llama.cpp cannot be used: {reason}", fix="use another --backend")
    if asked.dtype not in ("auto", "file"):
        raise InvalidInputError.single(
            "llama.cpp decodes a GGUF file in its own quantization", field="--dtype", fix="leave it out"
        )
    assert what.gguf is not None
    place = Place("llama.cpp", quantization_of(what.gguf()))
    misfits = _misfits(what, "llama.cpp", None, device)
    if misfits and not asked.allow_mixed and (what.named or len(misfits) == len(what.recipes)):
        raise _no_room(asked, what, misfits, "")
    return _taken(asked, what, place, device, misfits, ())


def _own_blocks(asked: Asked, what: Candidates, device: Device) -> Choice:
    """The backend `cpp` with the blocks of the target's GGUF file; drafts are loaded in the dtype that is fastest."""
    if asked.backend not in ("auto", "cpp"):
        _refuse(
            f"the backend {asked.backend} does not run a GGUF file's own blocks",
            fix="use --backend cpp or --backend llama.cpp, or leave --dtype out",
            field="--dtype",
        )
    assert what.gguf is not None
    file = read_gguf(what.gguf())
    reason = (
        why_not_here("cpp", device)
        or why_not_blocks(file)
        or why_not("cpp", _model(what.folder, "fp32"), "fp32", device)
    )
    if reason is not None:
        message = f"the backend cpp cannot run the target {what.target} in its file's own blocks: {reason}"
        _refuse(message, fix="use --dtype auto", field="--dtype")
    misfits = _misfits(what, "cpp", fastest_dtype("cpp", device), device)
    if misfits and not asked.allow_mixed and (what.named or len(misfits) == len(what.recipes)):
        raise _no_room(asked, what, misfits, "")
    return _taken(asked, what, Place("cpp", file.quantization), device, misfits, ())


def _no_room(asked: Asked, what: Candidates, misfits: Mapping[str, str], tried: str) -> InvalidInputError:
    """The error that says why nothing fits, and the ways out."""
    if not misfits:
        return InvalidInputError.single(
            f"no backend can run the target {what.target}: {tried}", field="--dtype", fix="use --dtype auto"
        )
    others = "" if asked.backend == "auto" else "--backend auto or "
    where = "in any backend beside this target" if asked.backend == "auto" else f"in {asked.backend}"
    return InvalidInputError(
        Problem(
            f"the draft {draft} does not run {where}: {reason}",
            field="--backend",
            fix=f"leave it out, or use {others}--allow-mixed-backends",
        )
        for draft, reason in misfits.items()
    )


def _refuse(message: str, fix: str = "use --backend auto", field: str = "--backend") -> NoReturn:
    raise InvalidInputError.single(message, field=field, fix=fix)
