"""The engine against transformers' `generate` and, where it is installed, flashspec: same model, prompts, drafts and k,
side by side in one run.

Three ways of decoding: plain (not flashspec), prompt lookup, and a draft model. Every prompt is decoded by all arms back
to back, in an order that rotates; times are end to end, prefill included. A ratio is our tokens per second over another's,
with a 95 % interval by the jackknife over prompts. Outputs must be equal.

`engine_efficiency` is the decode time that the cost model predicts from this run's own forward times
(steps × verification of k+1 tokens + draft forwards × one token), over the decode time measured. `bounds` are speedups
of the draft model by the same forward times: as predicted, if its forwards cost nothing, and if every token it proposes
were accepted as well.

Prints one JSON line. Run nothing else meanwhile.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any, get_args

import torch
from transformers.utils import logging as transformers_logging

from draftrank import Workspace
from draftrank.catalog.backend import Backend
from draftrank.catalog.sources.base import FetchContext
from draftrank.engine.backends.registry import open_runtime
from draftrank.engine.loop import Decoding, Request, autoregressive, speculative
from draftrank.engine.proposer import Proposer
from draftrank.engine.proposers.draft_model import ModelProposer
from draftrank.engine.proposers.ngram import NgramProposer
from draftrank.jobs.session import build
from draftrank.measure.cost.latency import measure_latencies
from draftrank.measure.machine.fingerprint import package_version, read_machine
from draftrank.models.loading import load_model, load_tokenizer
from draftrank.models.target_folder import ensure_target
from side_by_side import Decoded, arguments, blocks, compared, first_turns

MAX_NGRAM = 2
Arm = Callable[[tuple[int, ...]], tuple[tuple[int, ...], float, Decoding | None]]


def flashspec_decoder(
    target: Any, draft: Any | None, folder: Path, k: int, stop_tokens: tuple[int, ...] = ()
) -> Callable[[tuple[int, ...], int], tuple[int, ...]]:
    """flashspec, eagerly as this engine: continues token ids by at most so many tokens, with a draft model or, where that is
    None, prompt lookup.

    Raises:
        ImportError: it is not installed.
    """
    from flashspec import BanditConfig, FlashSpecConfig, SamplingConfig, SpeculativeEngine
    from flashspec.engine import HuggingFaceDrafter, NgramDrafter, TargetModel

    device, dtype = target.device, target.dtype
    options = FlashSpecConfig(
        device=str(device),
        compile=False,
        drafter_strategy="bandit",
        bandit=BanditConfig(n_arms=1),
        sampling=SamplingConfig(temperature=0.0, gamma=k),
        eos_token_ids=stop_tokens,
    )
    drafter = NgramDrafter(MAX_NGRAM)
    if draft is not None:
        drafter = HuggingFaceDrafter("draft", device, dtype, temperature=0.0, model=draft)
    engine = SpeculativeEngine(options, [drafter], TargetModel(str(folder), device, dtype, model=target))

    def decode(prompt: tuple[int, ...], tokens: int) -> tuple[int, ...]:
        found = engine.generate(torch.tensor([prompt], device=device), max_new_tokens=tokens)
        return tuple(found.output_ids[0, : found.n_tokens_generated].tolist())

    return decode


def main() -> int:
    """Runs the comparison and prints its JSON line; 1 when an output differs in fp32."""
    parser = arguments(__doc__, k=3, tokens=64)
    parser.add_argument("--draft", default="int8-dynamic", help="a draft with a model of its own")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--backend", choices=get_args(Backend), default="transformers", help="this engine's")
    options = parser.parse_args()
    transformers_logging.set_verbosity_error()

    workspace = Workspace.open()
    declared = workspace.target(options.target)
    context: FetchContext = workspace.fetch_context()
    folder = ensure_target(declared, context)
    (draft,) = build(workspace, options.target, (options.draft,))
    if draft.folder is None:
        sys.exit(f"{options.draft} has no model of its own: {draft.failure or 'choose another draft'}")
    target_model = load_model(folder.path, options.dtype, options.device)
    draft_model = load_model(draft.folder, options.dtype, options.device)
    tokenizer = load_tokenizer(folder.path)
    target = open_runtime(target_model, options.backend)
    drafting = open_runtime(draft_model, options.backend)
    ngram, model = NgramProposer(1, MAX_NGRAM), ModelProposer(drafting)

    prompts = first_turns(workspace, declared, tokenizer, options.tasks, options.prompts)
    generation = {"do_sample": False, "max_new_tokens": options.tokens, "min_new_tokens": options.tokens}
    target_model.generation_config.eos_token_id = None
    draft_model.generation_config.eos_token_id = None
    draft_model.generation_config.num_assistant_tokens = options.k
    draft_model.generation_config.num_assistant_tokens_schedule = "constant"
    draft_model.generation_config.assistant_confidence_threshold = 0.0

    def theirs(prompt: tuple[int, ...], **arguments: object) -> tuple[tuple[int, ...], float, None]:
        ids = torch.tensor([prompt], device=options.device)
        started = perf_counter()
        output = target_model.generate(ids, attention_mask=torch.ones_like(ids), **generation, **arguments)
        return tuple(output[0, len(prompt) :].tolist()), perf_counter() - started, None

    def ours(proposer: Proposer | None) -> Arm:
        def decode(prompt: tuple[int, ...]) -> tuple[tuple[int, ...], float, Decoding]:
            request = Request(prompt, options.tokens)
            started = perf_counter()
            if proposer is None:
                decoding = autoregressive(target, request)
            else:
                decoding = speculative(target, proposer, request, options.k)
            return decoding.token_ids, perf_counter() - started, decoding

        return decode

    def flashspec(model: Any | None) -> Arm:
        decoder = flashspec_decoder(target_model, model, folder.path, options.k)

        def decode(prompt: tuple[int, ...]) -> tuple[tuple[int, ...], float, None]:
            started = perf_counter()
            return decoder(prompt, options.tokens), perf_counter() - started, None

        return decode

    arms: dict[tuple[str, str], Arm] = {
        ("ar", "ours"): ours(None),
        ("ar", "transformers"): theirs,
        ("ngram", "ours"): ours(ngram),
        ("ngram", "transformers"): lambda prompt: theirs(
            prompt, prompt_lookup_num_tokens=options.k, max_matching_ngram_size=MAX_NGRAM
        ),
        ("model", "ours"): ours(model),
        ("model", "transformers"): lambda prompt: theirs(prompt, assistant_model=draft_model),
    }
    if package_version("flashspec") is not None:
        arms |= {("ngram", "flashspec"): flashspec(None), ("model", "flashspec"): flashspec(draft_model)}

    decoded: dict[tuple[str, str], Decoded] = {name: [] for name in arms}
    differing = 0
    predicted = measured = plain = verifying = perfect = 0.0
    forwards: dict[tuple[str, int], list[float]] = {}
    for arm in arms.values():  # warm-up, every shape once
        arm(prompts[0])
    for prompt, order in blocks(prompts, list(arms)):
        outputs = {}
        for name in order:
            tokens, seconds, decoding = arms[name](prompt)
            outputs[name] = tokens
            decoded[name].append((len(tokens), seconds))
            if name == ("model", "ours") and decoding is not None:
                middle = (*prompt, *tokens[: options.tokens // 2])
                (timed,) = measure_latencies(target, [(drafting, options.k)], (middle,))
                latencies = {(one.part, one.tokens): one.median_s for one in timed}
                for kind, median in latencies.items():
                    forwards.setdefault(kind, []).append(median)
                one, several = latencies["target", 1], latencies["target", options.k + 1]
                verifying += decoding.steps * several
                predicted += decoding.steps * several + decoding.draft_forwards * latencies["draft", 1]
                plain += (len(tokens) - 1) * one
                perfect += (len(tokens) - 1) * several / (options.k + 1)
                measured += decoding.decode_s
        differing += len(set(outputs.values())) > 1
    machine = read_machine(options.device)
    result = {
        "target": options.target,
        "draft": options.draft,
        "k": options.k,
        "dtype": options.dtype,
        "runtime": target.name,
        "prompts": len(prompts),
        "tokens": options.tokens,
        **{
            f"{kind}_over_{whose}": compared(decoded[kind, "ours"], theirs, whose)
            for (kind, whose), theirs in decoded.items()
            if whose != "ours"
        },
        "engine_efficiency": round(predicted / measured, 3),
        "bounds": {
            "predicted": round(plain / predicted, 3),
            "free_draft": round(plain / verifying, 3),
            "free_and_always_right": round(plain / perfect, 3),
        },
        "forward_ms": {f"{p}({t})": round(1e3 * statistics.median(v), 2) for (p, t), v in forwards.items()},
        "prompts_with_differing_outputs": differing,
        "machine": machine.machine_class,
        "packages": machine.packages,
    }
    print(json.dumps(result))
    return 1 if differing and options.dtype == "fp32" else 0


if __name__ == "__main__":
    sys.exit(main())
