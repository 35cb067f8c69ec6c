"""This engine beside the engines that people run, on this machine's processors: the same weights, prompts and number of
tokens, greedy, one request at a time.

Every prompt is decoded by all arms back to back, in an order that rotates; servers without load are paused. A row is one way
of drafting in one engine: its decoded tokens per second, prefill excluded, and their ratio to this engine's plain decoding,
with a 95 % interval by the jackknife over prompts. A second table has seconds to the first token by length of the prompt.
`same` counts the prompts whose output equals this engine's plain one: roundings differ.

What is not set up is left out, with the command that gets it. Prints both tables as Markdown. Run nothing else meanwhile.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from draftrank import Workspace
from draftrank.board.formats import decimal, span, times
from draftrank.catalog.backend import is_dtype
from draftrank.catalog.programs import NAMES, Program
from draftrank.catalog.server import Server
from draftrank.cli.output import ConsoleProgress
from draftrank.engine.backends.registry import load_runtime, open_runtime
from draftrank.engine.backends.transformers.generate import GenerateDecoder
from draftrank.engine.loop import Decoding, Request, autoregressive, speculative
from draftrank.errors import DraftrankError
from draftrank.jobs.session import RunRequest, plan_run
from draftrank.measure.machine.fingerprint import package_version, read_machine
from draftrank.measure.serving_records import ServingArm
from draftrank.measure.sessions.bench import open_proposer
from draftrank.measure.sessions.plan import SessionPlan
from draftrank.models.loading import load_model, load_tokenizer
from draftrank.serving.base import CompletionRequest
from draftrank.serving.engines import find_engine
from draftrank.serving.sending import in_turn
from draftrank.version import __version__
from draftrank.workflows.serving_arms import OpenServer, Servers
from draftrank.workflows.speculation import export_draft, gguf_of_target, speculation_of
from side_by_side import Decoded, blocks, compared, first_turns

TASKS = ("code", "math", "rag", "summarization", "chat", "translation")
CONTEXT = 2048
IDLE_S = 300.0
PLAIN = "plain"


@dataclass(frozen=True, slots=True)
class Output:
    """What an arm made of one prompt."""

    token_ids: tuple[int, ...]
    acceptance_length: float
    prefill_s: float
    decode_s: float


@dataclass(frozen=True, slots=True)
class Arm:
    """One way of drafting in one engine."""

    engine: str
    draft: str
    decode: Callable[[tuple[int, ...], int], Output]
    """Continues token ids by so many tokens."""


def of_decoding(found: Decoding) -> Output:
    """Of a decoding in this process."""
    return Output(found.token_ids, found.acceptance_length, found.prefill_s, found.decode_s)


def own_arms(plan: SessionPlan) -> Iterator[Arm]:
    """This engine: plain, and with each of the plan's drafts."""
    assert is_dtype(plan.dtype)
    target = load_runtime(plan.target_folder.path, plan.dtype, "cpu", plan.backend)
    engine = f"draftrank {__version__} ({plan.backend})"
    yield Arm(engine, PLAIN, lambda ids, tokens: of_decoding(autoregressive(target, Request(ids, tokens))))
    for arm in plan.drafts:
        if arm.failure is not None:
            sys.exit(f"{arm.recipe.id}: {arm.failure}")
        proposer, k = open_proposer(plan, arm, target), arm.recipe.speculate.num_speculative_tokens
        yield Arm(
            engine,
            arm.recipe.id,
            lambda ids, tokens, proposer=proposer, k=k: of_decoding(
                speculative(target, proposer, Request(ids, tokens), k)
            ),
        )


def generate_arms(plan: SessionPlan, exported: Path, k: int, max_ngram: int) -> Iterator[Arm]:
    """transformers' `generate`: plain, with prompt lookup, and with a draft model."""
    assert is_dtype(plan.dtype)
    target = load_runtime(plan.target_folder.path, plan.dtype, "cpu", "transformers")
    model = open_runtime(load_model(exported, plan.dtype, "cpu", full_precision=True), "transformers")
    ways = {
        PLAIN: GenerateDecoder(target),
        f"prompt lookup, k={k}": GenerateDecoder(target, num_speculative_tokens=k, max_ngram=max_ngram),
        f"assisted by {exported.name}, k={k}": GenerateDecoder(target, draft=model, num_speculative_tokens=k),
    }
    engine = f"transformers {package_version('transformers')}"
    for name, way in ways.items():
        yield Arm(engine, name, lambda ids, tokens, way=way: of_decoding(way.decode(Request(ids, tokens))))


def served_arms(
    workspace: Workspace,
    plan: SessionPlan,
    name: Program,
    drafts: Sequence[str],
    scratch: Path,
    stack: ExitStack,
) -> Iterator[Arm]:
    """A server of an engine: plain, and with each draft that it has a form of."""
    engine = find_engine(name, workspace.root)
    declared = Server(
        schema_version=1, id=f"peer-{name}", title=name, engine=name, dtype=plan.dtype, context=CONTEXT, max_requests=1
    )  # fmt: skip
    model = plan.target_folder.path
    with ConsoleProgress() as progress:
        if name == "llama.cpp":
            model = gguf_of_target(workspace, plan.target, model, declared.dtype, scratch, progress)
        servers = Servers(engine, declared, model, workspace.state / "logs" / "peers", workspace.root, IDLE_S)
        stack.callback(servers.close_all)
        for draft in (None, *drafts):
            try:
                speculation = None
                if draft is not None:
                    recipe = workspace.recipe(plan.target.id, draft)
                    exported = export_draft(workspace, recipe, name, scratch / name / draft, progress)
                    speculation = speculation_of(recipe, exported, recipe.speculate.num_speculative_tokens)
                    engine.check(speculation)
                with progress.stage(f"start {name} with {draft or 'no draft'}"):
                    opened = servers.open(
                        ServingArm(id=draft or PLAIN, kind="draft" if draft else "baseline", draft_id=draft),
                        speculation,
                    )
            except DraftrankError as error:
                sys.stderr.write(f"{name} without {draft or 'anything'}: {error}\n")
                if draft is None:
                    return
                continue
            opened.pause()
            told = f"{draft}, k={speculation.num_speculative_tokens}" if speculation else PLAIN
            yield Arm(f"{NAMES[name]} {engine.version()}", told, asking(servers, opened))


def asking(servers: Servers, opened: OpenServer) -> Callable[[tuple[int, ...], int], Output]:
    """Asks a server, which runs only meanwhile."""

    def decode(ids: tuple[int, ...], tokens: int) -> Output:
        opened.resume()
        try:
            (found,) = in_turn(servers.engine, opened.client, [CompletionRequest(ids, tokens, frozenset())])
        finally:
            opened.pause()
        length = (len(found.token_ids) - 1) / found.steps if found.steps else 1.0
        return Output(found.token_ids, length, found.prefill_s, found.decode_s)

    return decode


@contextmanager
def all_arms(workspace: Workspace, options: argparse.Namespace, plan: SessionPlan) -> Iterator[list[Arm]]:
    """Every arm that is to be had here; servers end with it."""
    scratch = workspace.cache / "scratch" / "peers"
    shutil.rmtree(scratch, ignore_errors=True)
    recipe = workspace.recipe(options.target, options.model)
    ngram = workspace.recipe(options.target, "ngram")
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, scratch, ignore_errors=True)
        arms = list(own_arms(plan))
        with ConsoleProgress() as progress:
            exported = export_draft(workspace, recipe, "transformers", scratch / options.model, progress)
        assert exported is not None
        k = ngram.speculate.num_speculative_tokens
        arms += generate_arms(plan, exported, k, getattr(ngram.draft, "max_ngram", 3))
        for name in options.servers:
            try:
                drafts = ("ngram", options.model, options.head)
                arms += served_arms(workspace, plan, name, drafts, scratch, stack)
            except DraftrankError as error:
                sys.stderr.write(f"left out: {error}\n")
        yield arms


def main() -> int:
    """Runs the comparison and prints its tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0].replace("\n", " "))
    parser.add_argument("--target", default="smollm2-135m-instruct")
    parser.add_argument("--draft", default="eagle3-suffix-tree5-int8", help="this engine's leading draft")
    parser.add_argument("--head", default="eagle3-head", help="an EAGLE-3 head, for the servers")
    parser.add_argument("--model", default="depth2-vocab8k-distilled-quick", help="a draft model")
    parser.add_argument("--servers", nargs="*", choices=["vllm", "llama.cpp"], default=["vllm", "llama.cpp"])
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="bf16")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--prompts", type=int, default=4, help="per task")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--prefill", nargs="*", type=int, default=[64, 256, 1024], help="lengths of prompts")
    parser.add_argument("--json", type=Path, help="also write all figures to this file")
    options = parser.parse_args()

    workspace = Workspace.open()
    with ConsoleProgress() as progress:
        plan = plan_run(
            workspace,
            RunRequest(
                options.target,
                (options.draft, options.head),
                suite="glance",
                dtype=options.dtype,
                device="cpu",
            ),
            progress,
        )
    tokenizer = load_tokenizer(plan.target_folder.path)
    prompts = first_turns(workspace, plan.target, tokenizer, options.tasks, options.prompts)
    with all_arms(workspace, options, plan) as arms:
        outputs: dict[int, list[Output]] = {place: [] for place in range(len(arms))}
        for arm in arms:  # the first forwards are slow
            arm.decode(prompts[0], 8)
        for prompt, order in blocks(prompts, list(outputs)):
            for place in order:
                outputs[place].append(arms[place].decode(prompt, options.tokens))
        first = first_tokens([arm for arm in arms if arm.draft == PLAIN], prompts, options.prefill)
    rows = [row(arm, outputs[place], outputs[0]) for place, arm in enumerate(arms)]
    machine = read_machine("cpu")
    print(
        f"`{options.target}` in {options.dtype} on `{machine.machine_class}`, {len(prompts)} prompts of "
        f"{len(options.tasks)} tasks, {options.tokens} tokens each.\n\n{decoding_table(rows)}\n{prefill_table(first)}"
    )
    if options.json:
        document = {"machine": machine.model_dump(mode="json"), "options": {**vars(options), "json": None}}
        document |= {"decoding": rows, "first_token_s": first}
        options.json.write_text(json.dumps(document, indent=1) + "\n", "utf-8")
    return 0


def row(arm: Arm, found: Sequence[Output], plain: Sequence[Output]) -> dict[str, Any]:
    """An arm's figures."""
    return {
        "engine": arm.engine,
        "draft": arm.draft,
        **compared(decoded(found), decoded(plain), "plain"),
        "acceptance_length": statistics.fmean(one.acceptance_length for one in found),
        "same": sum(one.token_ids == other.token_ids for one, other in zip(found, plain, strict=True)),
    }


def decoded(found: Sequence[Output]) -> Decoded:
    """Tokens behind the first, and their seconds."""
    return [(len(one.token_ids) - 1, one.decode_s) for one in found]


def first_tokens(
    arms: Sequence[Arm], prompts: Sequence[tuple[int, ...]], lengths: Sequence[int]
) -> dict[str, dict[int, float]]:
    """Median seconds to the first token by engine and length of the prompt: the prompts one behind the other, cut to length,
    each time beginning with another one."""
    found: dict[str, dict[int, list[float]]] = {
        arm.engine: {length: [] for length in lengths} for arm in arms
    }
    for start in range(min(6, len(prompts))):
        text = tuple(token for prompt in (*prompts[start:], *prompts[:start]) for token in prompt)
        for length in lengths:
            for arm in arms if start % 2 else arms[::-1]:
                found[arm.engine][length].append(arm.decode(text[:length], 2).prefill_s)
    return {
        engine: {at: statistics.median(s) for at, s in by_length.items()}
        for engine, by_length in found.items()
    }


def decoding_table(rows: Sequence[dict[str, Any]]) -> str:
    """The first table."""
    lines = [
        "| engine | draft | tokens/s | of plain here (95 %) | accept | same |",
        "|---|---|---|---|---|---|",
    ]
    for one in rows:
        cells = (
            one["engine"], one["draft"], decimal(one["tokens_per_second"], 1),
            f"{times(one['ratio'])} ({span(tuple(one['ci']))})", decimal(one["acceptance_length"]), one["same"],
        )  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def prefill_table(found: dict[str, dict[int, float]]) -> str:
    """The second table, in milliseconds."""
    lengths = list(next(iter(found.values())))
    lines = [
        f"| ms to the first token of | {' | '.join(map(str, lengths))} prompt tokens |",
        "|---" * (len(lengths) + 1) + "|",
    ]
    for engine, by_length in found.items():
        lines.append(f"| {engine} | {' | '.join(decimal(1e3 * by_length[at], 1) for at in lengths)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
