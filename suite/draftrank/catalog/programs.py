"""Which other programs can run a draft, and how they are given it."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass

from draftrank.catalog.step import Trait

_INEXPRESSIBLE: dict[Trait, str] = {
    "factors": "its matrices are products of thin ones",
    "trimmed head": "its head knows some of the tokens only",
}
_GGUF = "it is a GGUF file, which llama.cpp runs"
_BESIDE_THE_TARGET = "it reads the target's hidden states, which only draftrank hands to a draft"


@dataclass(frozen=True, slots=True)
class ProgramUse:
    """How one other program runs a draft, or why it cannot."""

    program: str
    """Its name."""
    language: str
    """Language of the snippet."""
    snippet: str | None
    """What to type; None: the program cannot run the draft."""
    remark: str | None
    """What to know; without a snippet, the reason."""


@dataclass(frozen=True, slots=True)
class Abilities:
    """Which programs can run a draft; for those that cannot, why."""

    transformers: str | None
    """None: `AutoModelForCausalLM.from_pretrained` opens the very draft that was measured."""
    vllm: str | None
    """None: vLLM and SGLang open it as a draft model."""
    gguf: str | None
    """None: it can be written as GGUF."""
    opens: bool = True
    """Whether, opened through draftrank, it is a model that other programs can call."""


def abilities_of(traits: Collection[Trait]) -> Abilities:
    """What can be done with a draft whose model has these traits."""
    if "target hidden states" in traits:
        return Abilities(_BESIDE_THE_TARGET, _BESIDE_THE_TARGET, _BESIDE_THE_TARGET, opens=False)
    if "gguf" in traits:
        return Abilities(_GGUF, _GGUF, None, opens=False)
    reason = next((why for trait, why in _INEXPRESSIBLE.items() if trait in traits), None)
    if reason is not None:
        opened = f"{reason}, which the architecture's own code cannot express"
        return Abilities(f"{opened}: open it through draftrank", opened, opened)
    if "packed" in traits:
        packed = "its weights are packed for another library"
        return Abilities(None, f"{packed}: whether it opens depends on the version", packed)
    if "int8 at load" in traits:
        at_load = "it is turned into int8 when draftrank loads it"
        plain = f"{at_load}; other programs open its plain weights, which is a slower draft"
        return Abilities(f"{plain}: open it through draftrank", plain, None)
    note = "layers that share weights are written out, so that it takes more memory than was measured"
    return Abilities(None, note if "shared layers" in traits else None, None)


def uses_of_model(
    can: Abilities, model: str, folder: str, k: int, *, gguf_file: str | None
) -> tuple[ProgramUse, ...]:
    """How each program is given a draft model.

    Args:
        can: what the model's form allows.
        model: the target, as programs load it.
        folder: where the draft lies.
        k: tokens proposed per step.
        gguf_file: name of its GGUF file; None: none was written.
    """
    if can.transformers is None:
        imports = "from transformers import AutoModelForCausalLM\n"
        opened = f'draft = AutoModelForCausalLM.from_pretrained("{folder}", dtype="auto")'
    else:
        imports = "from pathlib import Path\nfrom draftrank.models.loading import load_model\n"
        opened = f'draft = load_model(Path("{folder}"), "fp32", "cpu")'
    generate = (
        f"{imports}{opened}\ndraft.generation_config.num_assistant_tokens = {k}\n"
        "target.generate(**inputs, assistant_model=draft)"
    )
    speculative = json.dumps({"model": folder, "num_speculative_tokens": k, "method": "draft_model"})
    sglang = (
        f"python -m sglang.launch_server --model-path {model} --speculative-algorithm STANDALONE "
        f"--speculative-draft-model-path {folder} --speculative-num-steps {k} --speculative-eagle-topk 1 "
        f"--speculative-num-draft-tokens {k + 1}"
    )
    llama = f"llama-server -m TARGET.gguf -md {folder}/{gguf_file} --draft-max {k}"
    written = can.gguf is None and gguf_file is not None
    missing = can.gguf or "written with `draftrank export --gguf`"
    return (
        ProgramUse("transformers", "python", generate if can.opens else None, can.transformers),
        ProgramUse(
            "vLLM",
            "sh",
            None if can.vllm else f"vllm serve {model} --speculative-config '{speculative}'",
            can.vllm,
        ),
        ProgramUse("SGLang", "sh", None if can.vllm else sglang, can.vllm),
        ProgramUse("llama.cpp", "sh", llama if written else None, None if written else missing),
    )


def uses_of_other_vocabulary(folder: str, k: int) -> tuple[ProgramUse, ...]:
    """The same of a draft model with another tokenizer than the target's; arguments as for `uses_of_model`."""
    generate = (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        f'draft = AutoModelForCausalLM.from_pretrained("{folder}", dtype="auto")\n'
        f'draft_tokenizer = AutoTokenizer.from_pretrained("{folder}")\n'
        f"draft.generation_config.num_assistant_tokens = {k}\n"
        "target.generate(**inputs, assistant_model=draft, tokenizer=tokenizer, assistant_tokenizer=draft_tokenizer)"
    )
    reason = "it takes draft models with the target's vocabulary only"
    return (
        ProgramUse("transformers", "python", generate, None),
        *(ProgramUse(program, "sh", None, reason) for program in ("vLLM", "SGLang", "llama.cpp")),
    )
