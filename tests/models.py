"""Small random models of the real architectures, and a runtime that can be inspected exactly."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers import models as tokenizer_models
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from draftrank.models.forms import Eagle3Form, TrimmedHeadForm
from families import FAMILIES, MORE_FAMILIES, NOT_SUPPORTED, ON_THE_PAGE, READS_NO_TREES, WITH_STATE

SPECIAL = ("<|pad|>", "<|im_start|>", "<|im_end|>")
ARCHITECTURES = ("llama", "gemma3", "gpt2")
"""Those that can be cut by layer."""
_OTHERS = {**MORE_FAMILIES, **FAMILIES, **READS_NO_TREES, **WITH_STATE, **NOT_SUPPORTED}
EVERY_FAMILY = (*ARCHITECTURES, *_OTHERS)
"""All that the tests of discovery run."""
TABLE_FAMILIES = (*EVERY_FAMILY, *ON_THE_PAGE)
"""All of which `small_model` makes a model."""


def small_eagle3(
    *,
    seed: int = 9,
    layers: tuple[int, ...] = (0, 1),
    kept: int | None = None,
    norm_before_residual: bool = False,
) -> PreTrainedModel:
    """A random EAGLE-3 head for any of the small models; `kept`: how many tokens its head knows."""
    model = small_model("llama", seed=seed, layers=1)
    form = Eagle3Form(layers=layers, norm_before_residual=norm_before_residual)
    form.prepare(model)
    if kept is not None:
        TrimmedHeadForm(module="lm_head", kept=kept).prepare(model)
        head = model.get_submodule("lm_head")
        head.token_ids.copy_(torch.randperm(head.vocabulary)[:kept].sort().values)
    fresh = [model.get_submodule("feature_fusion"), model.get_submodule("model.layers.0")]
    for parameter in [one for module in fresh for one in module.parameters()]:
        parameter.data = torch.randn_like(parameter) * 0.3 + (parameter.ndim == 1)
    return model.eval()


def model_type(architecture: str) -> str:
    """The `model_type` of a family by the name that `small_model` takes."""
    if architecture in CONFIG_MAPPING:  # some have a dash of their own
        return "gemma3_text" if architecture == "gemma3" else architecture
    return architecture.split("-")[0]


def small_model(
    architecture: str, *, seed: int = 0, layers: int = 3, vocabulary: int = 61, window: int = 256
) -> PreTrainedModel:
    """A random model, fp32, with weights large enough that its output is not degenerate."""
    torch.manual_seed(seed)
    settings = {**_OTHERS, **ON_THE_PAGE}.get(architecture, {})
    if architecture == "gemma3":
        kinds = ["full_attention" if i % 3 == 2 else "sliding_attention" for i in range(layers)]
        settings = {"num_key_value_heads": 1, "head_dim": 8, "sliding_window": 8, "layer_types": kinds}
    family = CONFIG_MAPPING[model_type(architecture)]
    shape = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": window,
        "max_seq_len": window,
        "initializer_range": 0.3,
    }
    # Names that a family does not have would be kept in its configuration.
    renamed = {family.attribute_map.get(name, name): value for name, value in shape.items()}
    known = {name: value for name, value in renamed.items() if hasattr(family, name)}
    common = {"vocab_size": vocabulary, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    model = AutoModelForCausalLM.from_config(family(**{**common, **known, **settings}))
    return model.eval().requires_grad_(False)


def sometimes_alike(model: PreTrainedModel, share: float = 0.15) -> PreTrainedModel:
    """The model with a head that still chooses many of its tokens."""
    head = model.get_output_embeddings().weight
    head.data = head.data + share * head.data.flip(0)
    return model


def own_logits(model: PreTrainedModel, text: Sequence[int]) -> torch.Tensor:
    """What the model's own forward says behind each token of a text, without a cache; [tokens, vocabulary]."""
    with torch.inference_mode():
        return model(torch.tensor([text], device=model.device), use_cache=False).logits[0]


def small_tokenizer(template: str | None = None) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with a few merges; `template` is its chat template, if any."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate((*SPECIAL, *letters))}
    for left, right in [("a", "b"), ("Ġ", "a"), ("ab", "ab")]:  # so that text can be split in several ways
        vocabulary[left + right] = len(vocabulary)
    merges = [("a", "b"), ("Ġ", "a"), ("ab", "ab")]
    backend = Tokenizer(tokenizer_models.BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=SPECIAL[0], bos_token=SPECIAL[1], eos_token=SPECIAL[2]
    )
    tokenizer.chat_template = template
    return tokenizer


def save_small_target(folder: Path, architecture: str = "llama", **shape: int) -> Path:
    """A random model with its tokenizer in the hub's layout."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in _small_target(architecture, *shape.items()).items():
        (folder / name).write_bytes(content)
    return folder


@cache
def _small_target(architecture: str, *shape: tuple[str, int]) -> dict[str, bytes]:
    """Its files; to make them takes longer than to write them."""
    tokenizer = small_tokenizer()
    model = small_model(architecture, vocabulary=len(tokenizer), **dict(shape))
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}
