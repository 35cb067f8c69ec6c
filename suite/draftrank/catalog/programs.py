"""Which other programs can run a draft, in which form, and how they are given it."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, get_args

from draftrank.catalog.step import Trait

Program = Literal["transformers", "vllm", "sglang", "llama.cpp", "speculators"]
"""Programs that a draft is exported for, as the command line names them."""
PROGRAMS: tuple[Program, ...] = get_args(Program)
NAMES: dict[Program, str] = {
    "transformers": "transformers",
    "vllm": "vLLM",
    "sglang": "SGLang",
    "llama.cpp": "llama.cpp",
    "speculators": "speculators",
}
"""As their authors write them."""
_WRITTEN_OUT: dict[Trait, str] = {
    "trimmed head": "its head is written out over all tokens, so that a forward takes longer than was measured and every "
    "token can be proposed",
    "factors": "products of thin matrices are multiplied out, so that a forward takes longer than was measured",
    "int8 at load": "its plain weights are written, since it is turned into int8 when draftrank loads it: a slower draft",
    "shared layers": "layers that share weights are written out, so that it takes more memory than was measured",
}
"""What differs in the form that is written from what was measured."""
_NO_MAP = (
    "no token map is written for its trimmed head: with STANDALONE, SGLang 0.5 looks proposals up in "
    "`--speculative-token-map`, but computes the draft's head over all tokens, so that they would be other tokens"
)
"""SGLang cuts a head to the map's tokens only for the algorithm EAGLE, whose drafts use the target's head. `STANDALONE` leaves
that out (`init_lm_head` of its draft worker), and its loader refuses a head of fewer rows than the vocabulary."""


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


def why_no_form(traits: Collection[Trait]) -> dict[Program, str]:
    """For each program that has no form of a draft whose model has these traits, the reason."""
    if "EAGLE-3 head" in traits:
        missing: dict[Program, str] = {
            "transformers": "its generate() takes a whole model to assist, and no head"
        }
        if "norm before residual" in traits:
            missing["sglang"] = (
                "its EAGLE-3 layer adds to the unnormed state, and this head's to the normed one"
            )
        return missing
    reasons: dict[Program, str] = {"speculators": "it is a library of heads, and this is a whole model"}
    if "gguf" in traits:
        file = "it is a GGUF file, which llama.cpp runs: export the recipe without write_gguf"
        reasons |= {"transformers": file, "vllm": file, "sglang": file}
    elif "own vocabulary" in traits:
        same = "it takes draft models with the target's vocabulary only"
        reasons |= {"vllm": same, "sglang": same, "llama.cpp": same}
    elif "packed" in traits:
        reasons["llama.cpp"] = (
            "its weights are packed for another library: export the recipe without quantize"
        )
    return reasons


def what_differs(traits: Collection[Trait]) -> str | None:
    """What of the form that is written differs from what was measured; None: nothing."""
    written_out = set(traits) - {"trimmed head"} if "EAGLE-3 head" in traits else traits
    found = [words for trait, words in _WRITTEN_OUT.items() if trait in written_out]
    if "packed" in traits:
        found.append("its weights are packed for another library: whether it opens depends on the version")
    return "; ".join(found) or None


def uses_of_model(traits: Collection[Trait], model: str, folder: str, k: int) -> tuple[ProgramUse, ...]:
    """How each program is given a draft with a model.

    Args:
        model: the target, as programs load it.
        folder: where the draft lies, or is written to.
    """
    missing, differs = why_no_form(traits), what_differs(traits)
    found = []
    for program, (language, snippet) in _snippets(traits, model, folder, k).items():
        reason = missing.get(program)
        if reason is not None:
            found.append(ProgramUse(NAMES[program], language, None, reason))
            continue
        known = [differs] if differs else []
        if program == "sglang" and "trimmed head" in traits and "EAGLE-3 head" not in traits:
            known.append(_NO_MAP)
        found.append(ProgramUse(NAMES[program], language, snippet, "; ".join(known) or None))
    return tuple(found)


def _snippets(
    traits: Collection[Trait], model: str, folder: str, k: int
) -> dict[Program, tuple[str, str | None]]:
    """By program, the language and what to type."""
    head, own = "EAGLE-3 head" in traits, "own vocabulary" in traits
    method, algorithm, kind = (
        ("eagle3", "EAGLE3", "draft-eagle3") if head else ("draft_model", "STANDALONE", "draft-simple")
    )
    tokenizers = ", tokenizer=tokenizer, assistant_tokenizer=draft_tokenizer" if own else ""
    opened = f'draft_tokenizer = AutoTokenizer.from_pretrained("{folder}")\n' if own else ""
    generate = (
        f"from transformers import AutoModelForCausalLM{', AutoTokenizer' if own else ''}\n"
        f'draft = AutoModelForCausalLM.from_pretrained("{folder}", dtype="auto")\n'
        f"{opened}draft.generation_config.num_assistant_tokens = {k}\n"
        f"target.generate(**inputs, assistant_model=draft{tokenizers})"
    )
    speculative = json.dumps({"model": folder, "num_speculative_tokens": k, "method": method})
    sglang = (
        f"python -m sglang.launch_server --model-path {model} --speculative-algorithm {algorithm} "
        f"--speculative-draft-model-path {folder} --speculative-num-steps {k} --speculative-eagle-topk 1 "
        f"--speculative-num-draft-tokens {k + 1}"
    )
    llama = (
        f"llama-server -m TARGET.gguf --spec-type {kind} --spec-draft-model {folder}/draft.gguf "
        f"--spec-draft-n-max {k}"
    )
    found: dict[Program, tuple[str, str | None]] = {
        "transformers": ("python", generate),
        "vllm": ("sh", f"vllm serve {model} --speculative-config '{speculative}'"),
        "sglang": ("sh", sglang),
        "llama.cpp": ("sh", llama),
    }
    return found | {"speculators": ("sh", f"vllm serve {folder}")} if head else found
