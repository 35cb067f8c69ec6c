"""Opens model folders: targets as they are, drafts in the form their build asks for."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from draftrank.errors import IncompatibleDraftError, MissingDataError, UnsupportedModelError
from draftrank.models.attention_windows import context_window, require_cache, require_decoder
from draftrank.models.cache import FACTS, weight_files
from draftrank.models.forms import (
    FORMS,
    DynamicInt8Form,
    Form,
    GgufForm,
    SemiStructuredForm,
    fill,
    quantize_linear_layers,
    use_sparse_kernels,
)
from draftrank.models.model_files import (
    field_with,
    read_object,
    reason_in_one_line,
    require_readable_weights,
)
from draftrank.models.packed_int8 import use_packed_kernel
from draftrank.models.quiet import quiet_libraries, quiet_transformers
from draftrank.models.vocabulary_rows import cut_rows, know_only, pad_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

DtypeName = Literal["fp32", "bf16", "fp16"]
_BUFFER = re.compile(r"(attn|attention)\.(masked_)?bias$|causal_mask$|inv_freq$")
"""Names of tensors that older versions saved and no version reads."""
DTYPES: dict[DtypeName, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


def load_model(
    folder: Path,
    dtype: DtypeName,
    device: str,
    *,
    full_precision: bool = False,
    rows: int | None = None,
    known: Sequence[int] | None = None,
) -> PreTrainedModel:
    """Loads a causal language model for inference: evaluation mode, no gradients.

    Only safetensors are read and no code of the folder is run. A draft in dynamic int8 computes the rest
    in fp32, one quantized by a library in bf16, whatever `dtype` says.

    Args:
        folder: a Hugging Face folder.
        dtype: precision of the weights.
        device: `cpu` or `cuda`.
        full_precision: whether a draft in dynamic int8 is left as the plain weights that its folder holds.
        rows: how many rows the target's vocabulary has, for a draft beside it (`vocabulary_rows`); None: as saved.
        known: the only tokens that its head is to answer for, ascending (`vocabulary_rows.know_only`); None: all.

    Raises:
        IncompatibleDraftError: a form of the draft does not run on this device, or has rows that cannot be cut off.
        BuildError: this build of torch has no engine for it.
        MissingDataError: the folder cannot be opened as a model, or lacks some of its weights.
        UnsupportedModelError: it is no decoder-only language model, or keeps its state outside of a cache.
    """
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    forms = read_forms(folder)
    if full_precision:
        forms = [form for form in forms if not isinstance(form, DynamicInt8Form)]
    int8 = next((form for form in forms if isinstance(form, DynamicInt8Form)), None)
    if int8 and device != "cpu":
        raise IncompatibleDraftError(
            "a dynamic_int8 draft runs on CPU only: use --device cpu, or leave its quantize step out"
        )
    if any(isinstance(form, GgufForm) for form in forms):
        raise IncompatibleDraftError(
            "the draft is a GGUF file, which llama.cpp runs and transformers does not"
        )
    read_config(folder)
    require_readable_weights(folder, quantized=is_quantized(folder))
    _require_known_quantization(folder)
    read_object(folder / "generation_config.json")
    try:
        with quiet_libraries() if is_quantized(folder) else quiet_transformers():
            model, told = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=_weights_dtype(folder, dtype, int8 is not None),
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # told instead, as an error is one without names
                **({"device_map": device} if is_quantized(folder) else {}),
            )
    except ImportError as error:
        raise IncompatibleDraftError(
            f"{folder.name} needs a library that is not installed: {error}"
        ) from error
    except Exception as error:  # the code of each family and library raises what it likes
        reason = reason_in_one_line(error)
        raise MissingDataError(f"{folder} cannot be opened as a model: {reason}") from error
    require_cache(model)
    model.eval()
    model.requires_grad_(False)
    replaced = [name for form in forms for name in form.prepare(model)]
    if replaced:
        held = {k: v for path in weight_files(folder) for k, v in load_file(path).items()}
        fill(model, replaced, held)
        # Names that transformers has no place for come back as its rules for published files change them.
        told["unexpected_keys"] = [name for name in told["unexpected_keys"] if name in held]
    _require_weights(folder, model, told, replaced)
    if getattr(model, "hf_quantizer", None) is None:  # a library's own tensors stay as it made them
        _own_memory(model)
    elif device == "cpu":
        use_packed_kernel(model)
    if rows is not None:
        cut_rows(model, rows)
    if known is not None:
        know_only(model, known)
    if int8:
        quantize_linear_layers(model, int8.keep_precise)
    if getattr(model, "hf_quantizer", None) is None:
        model.to(device)
        if device == "cuda" and dtype != "fp32":
            for form in forms:
                if isinstance(form, SemiStructuredForm):
                    use_sparse_kernels(model, form.modules)
    if rows is not None:
        pad_rows(model, rows)
    return model


def _require_known_quantization(folder: Path) -> None:
    """Refuses quantized weights that transformers would read as plain ones."""
    from transformers.quantizers.auto import AutoHfQuantizer

    named = read_object(folder / "config.json").get("quantization_config")
    if not named:
        return
    try:
        with quiet_transformers():
            known = AutoHfQuantizer.supports_quant_method(named)
    except ValueError:  # it names none
        known = False
    if not known:
        raise UnsupportedModelError(
            f"{folder / 'config.json'}: quantization_config.quant_method: transformers knows no "
            f"{named.get('quant_method')!r}: use the model in another format"
        )


def _require_weights(
    folder: Path, model: PreTrainedModel, told: dict[str, Any], replaced: Sequence[str]
) -> None:
    """Refuses a folder whose files left weights as random as they were, or hold weights of the layers that the model has no
    place for; those of replaced modules were filled."""
    filled = tuple(f"{one}." for one in replaced)
    other = [
        f"{name} is {list(found)}, not {list(wanted)}"
        for name, found, wanted in sorted(told["mismatched_keys"])
        if not name.startswith(filled)
    ]
    missing = {name for name in told["missing_keys"] if not name.startswith(filled)}
    named = dict(model.named_parameters(remove_duplicate=False))
    given = {id(weight) for name, weight in named.items() if name not in missing}
    lacking = sorted(name for name in missing if name in named and id(named[name]) not in given)
    if lacking or other:
        what = (
            f"misses {len(lacking)} {'weight' if len(lacking) == 1 else 'weights'}, such as {lacking[0]}"
            if lacking
            else f"has weights of another shape: {other[0]}"
        )
        raise MissingDataError(
            f"{folder} {what}: its config.json describes another model than its *.safetensors hold; fetch the folder again"
        )
    if getattr(model, "hf_quantizer", None) is not None:  # its library reads further tensors
        return
    lists = tuple(f"{name}." for name, part in model.named_modules() if isinstance(part, nn.ModuleList))
    ignored = sorted(
        name
        for name in told["unexpected_keys"]
        if name.startswith(lists) and not name.startswith(filled) and not _BUFFER.search(name)
    )
    if ignored:
        raise MissingDataError(
            f"{folder} holds {len(ignored)} weights that its model has no place for, such as {ignored[0]}: its config.json "
            "describes another model than its *.safetensors hold (model_type, num_hidden_layers); fetch the folder again"
        )
    if not replaced and _unties(model):
        raise MissingDataError(
            f"{folder / 'config.json'}: tie_word_embeddings: says that the head has the embedding's weights, and the files hold "
            "others for it, which not every program would read: write false, or leave the head out of the files"
        )


def _unties(model: PreTrainedModel) -> bool:
    """Whether a model whose configuration ties its head to the embedding has been given other weights for it."""
    tied = type(model)._tied_weights_keys and model.config.get_text_config().tie_word_embeddings
    read, said = model.get_input_embeddings().weight, getattr(model.get_output_embeddings(), "weight", None)
    return bool(tied) and said is not None and said.shape == read.shape and not torch.equal(said, read)


def _own_memory(model: nn.Module) -> None:
    """Moves the weights from the mapped file into memory of this process, aligned as torch likes it:
    speed and memory then do not depend on the page cache. Tied weights stay tied."""
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The folder's tokenizer.

    Raises:
        MissingDataError: it has none that can be opened.
    """
    from transformers import AutoTokenizer

    try:
        with quiet_transformers():
            return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # of a broken file it may raise anything
        raise MissingDataError(
            f"{folder} has no tokenizer that can be opened: {reason_in_one_line(error)}; fetch tokenizer.json and "
            "tokenizer_config.json again"
        ) from error


def read_config(folder: Path) -> PretrainedConfig:
    """The configuration of a folder's model.

    Raises:
        MissingDataError: it has none that transformers can read.
        UnsupportedModelError: it is not that of a decoder-only language model.
    """
    from transformers import AutoConfig

    path = folder / "config.json"
    if not path.is_file():
        raise MissingDataError(
            f"{folder} has no config.json: name the folder of a model in transformers' layout"
        )
    kind = read_object(path).get("model_type")
    if not isinstance(kind, str):
        raise MissingDataError(f"{path}: model_type: names no architecture; fetch the folder again")
    try:
        with quiet_transformers():
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # configurations are checked by whatever their authors write
        reason = " ".join(str(error).split()).partition(". ")[0]
        fix = "correct it, or fetch the folder again"
        if "custom code" in reason:
            fix = "no code of a model's folder is run, use one of a family that transformers has"
        raise MissingDataError(f"{path}: cannot be opened as a model: {reason}; {fix}") from error
    require_decoder(config)
    return config


def outline(config: PretrainedConfig, place: Path, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """A configuration's model without its weights, on torch's meta device; `place` is where the configuration is from.

    Raises:
        MissingDataError: transformers makes no model of it.
    """
    from transformers import AutoModelForCausalLM

    try:
        with quiet_transformers(), torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(
                config, dtype=dtype, trust_remote_code=False
            )
    except Exception as error:  # the code of each family raises what it likes
        word = error.args[0] if isinstance(error, KeyError) and error.args else None
        field = field_with(config, word)
        reason = f"{field}: transformers knows no {word!r}" if field else reason_in_one_line(error)
        raise MissingDataError(
            f"{place}: {reason}; no model can be made of these settings: correct them, or fetch the folder again"
        ) from error
    return model.eval()


def window_of_folder(folder: Path) -> int | None:
    """See `context_window`, of a folder's model."""
    return context_window(read_config(folder))


def compute_dtype(device: str) -> DtypeName:
    """The precision in which the target is run while drafts are built: bf16 where the processor or
    the GPU multiplies bf16 natively, else fp32."""
    if device == "cpu":
        probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
        return "bf16" if probe is not None and probe() else "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"


def _weights_dtype(folder: Path, dtype: DtypeName, int8: bool) -> torch.dtype:
    if int8:
        return torch.float32
    return torch.bfloat16 if is_quantized(folder) else DTYPES[dtype]


def is_quantized(folder: Path) -> bool:
    """Whether the folder's weights are those of a quantization library."""
    return bool(read_object(folder / "config.json").get("quantization_config"))


def read_forms(folder: Path) -> list[Form]:
    """What is to be done to a folder's model when it is loaded."""
    path = folder / FACTS
    if not path.is_file():
        return []
    facts = json.loads(path.read_text("utf-8"))
    if facts.get("load_form") == "dynamic_int8":  # as drafts were noted first
        return [DynamicInt8Form()]
    return FORMS.validate_python(facts.get("forms", []), strict=False)
