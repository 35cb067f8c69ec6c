"""This engine beside the engines that people deploy, on this machine's processors: the same weights, the same prompts as token
ids, greedy decoding, one request at a time.

An arm is one way of drafting in one engine. For every prompt all arms decode back to back, each after a short request that
wakes it, in an order that is drawn for each prompt and reversed in every second round (ABBA). Servers without load are paused.
Prompts are first turns of a suite, from all its tasks in turn, whose plain output here reaches the limit.

A ratio is an arm's tokens per second over this engine's plain decoding: the geometric mean over prompts, with a 95 %
t-interval of the mean log ratio. It is given with prefill, and from the first token to the last. The second plain arm of this
engine shows the noise. Other engines get drafts as `draftrank export` writes them, and propose k tokens in every step. Roundings
differ between engines, so outputs may too: how many are identical to the plain ones here is counted.

An engine that is not here, or fails, has a row with the reason. Prints a Markdown table, and writes all seconds, versions and
the machine to a JSON file. Run nothing else meanwhile.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from itertools import chain, cycle, islice
from pathlib import Path
from statistics import median
from typing import Any, get_args

from draftrank import Workspace
from draftrank.board.formats import UNKNOWN, decimal, span, times
from draftrank.catalog.backend import Backend
from draftrank.cli.output import ConsoleProgress
from draftrank.jobs.session import alone
from draftrank.measure.evidence import utc_now
from draftrank.measure.machine.fingerprint import read_machine
from draftrank.measure.sessions.schedule import round_order
from draftrank.measure.statistics.estimates import ratio
from draftrank.measure.statistics.serving import mean_log_ratio
from draftrank.progress import Progress
from peer_arms import Arm, Ids, Output, Peers

THEIRS = ["ngram", "depth2-vocab8k-distilled-quick", "eagle3-head-chain"]
PREFILLS = 5
"""Texts of each length whose first token is timed."""


def measure(
    arms: Sequence[Arm], prompts: Sequence[Ids], options: argparse.Namespace, progress: Progress
) -> None:
    """Decodes all prompts with all arms in every round, then times first tokens."""
    by_id = {arm.id: arm for arm in arms}
    with progress.stage("decode", options.rounds * len(prompts)) as stage:
        for turn in range(options.rounds):
            for place, ids in enumerate(prompts):
                order = round_order(list(by_id), str(options.seed), turn // 2, place)
                for arm in map(by_id.__getitem__, order[::-1] if turn % 2 else order):
                    if (found := arm.attempt(ids, options.tokens)) is not None:
                        arm.outputs[place, turn] = found
                stage.advance()
    with progress.stage("time first tokens", PREFILLS * len(options.prefill)) as stage:
        for start in range(PREFILLS):
            text = cycle(chain.from_iterable((*prompts[start:], *prompts[:start])))
            ids = tuple(islice(text, max(options.prefill)))
            for length in options.prefill:
                for arm in map(by_id.__getitem__, round_order(list(by_id), str(options.seed), length, start)):
                    if (found := arm.attempt(ids[:length], 2)) is not None:
                        arm.first_s[length].append(found.prefill_s)
                stage.advance()


def figures(arm: Arm, plain: Arm) -> dict[str, Any]:
    """An arm's row: its figures over the prompts and rounds that both arms decoded."""
    pairs = [
        (place, arm.outputs[place], plain.outputs[place]) for place in arm.outputs if place in plain.outputs
    ]
    told: dict[str, Any] = {"engine": arm.engine, "draft": arm.draft, "failures": arm.failures}
    for part in ("whole", "decoding"):
        logs = []
        for prompt in {place[0] for place, *_ in pairs}:
            of_prompt = [both for place, *both in pairs if place[0] == prompt]
            own, other = (rate(outputs, part) for outputs in zip(*of_prompt, strict=True))
            if own and other:
                logs.append(math.log(own / other))
        found = mean_log_ratio(logs)
        told[part] = {
            "tokens_per_second": rate([own for _, own, _ in pairs], part),
            "ratio": found and found.value,
            "interval": found and found.interval and (found.interval.low, found.interval.high),
        }
    steps = [own.steps for _, own, _ in pairs if own.steps]
    emitted = sum(len(own.token_ids) - 1 for _, own, _ in pairs)
    told["acceptance_length"] = ratio(emitted, sum(steps)) if len(steps) == len(pairs) else None
    told["first_token_s"] = {length: median(seconds) for length, seconds in arm.first_s.items()}
    told["identical"] = sum(own.token_ids == other.token_ids for _, own, other in pairs)
    told["decoded"] = len(pairs)
    return told


def rate(outputs: Sequence[Output], part: str) -> float | None:
    """Tokens per second of all of them together."""
    rated = [one.rated(part) for one in outputs]
    return ratio(sum(tokens for tokens, _ in rated), sum(seconds for _, seconds in rated))


def table(rows: Sequence[dict[str, Any]], lengths: Sequence[int]) -> str:
    """All rows as Markdown."""
    speeds = ["tokens/s", "of plain here (95 %)", "decoding tokens/s", "of plain here (95 %)"]
    names = ["engine", "draft", *speeds, "accept", *(f"ms to first of {length:,}" for length in lengths)]
    lines = [[*names, "identical, or what failed"], ["---"] * (len(names) + 1)]
    for row in rows:
        cells = [row["engine"], row["draft"]]
        for part in (row["whole"], row["decoding"]):
            cells.append(decimal(part["tokens_per_second"], 1))
            cells.append(f"{times(part['ratio'])} ({span(part['interval'])})" if part["ratio"] else UNKNOWN)
        cells.append(decimal(row["acceptance_length"]))
        firsts = [row["first_token_s"].get(length) for length in lengths]
        cells += [decimal(first and 1e3 * first, 0) for first in firsts]
        found = [f"{row['identical']} of {row['decoded']}"] if row["decoded"] else []
        failed = [failure.splitlines()[0].replace("|", "/") for failure in row["failures"][:1]]
        lines.append([*cells, "; ".join(found + failed)])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main() -> int:
    """Runs the comparison and prints its table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0].replace("\n", " "))
    parser.add_argument("--target", default="smollm2-135m-instruct")
    parser.add_argument("--drafts", nargs="*", default=["eagle3-suffix-tree5-int8"], help="in this engine")
    parser.add_argument("--theirs", nargs="*", default=THEIRS, help="drafts in the other engines")
    parser.add_argument("--backend", choices=get_args(Backend), default="cpp", help="this engine's")
    parser.add_argument("--suite", default="core")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="bf16")
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument(
        "--prefill", nargs="+", type=int, default=[64, 256, 1024], help="tokens of the prompts"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the order of arms")
    parser.add_argument(
        "--json", type=Path, help="file of all figures; default: peers.json in the state folder"
    )
    options = parser.parse_args()

    workspace, machine = Workspace.open(), read_machine("cpu")
    with ConsoleProgress() as progress, ExitStack() as stack:
        peers = Peers(workspace, options, stack, progress)
        arms = list(peers.arms())
        with alone(workspace, progress):
            measure(arms, peers.prompts, options, progress)
    if not arms[0].outputs:
        sys.exit(
            "plain decoding here failed: " + "; ".join(arms[0].failures or ["the suite has no such prompts"])
        )
    rows = [figures(arm, arms[0]) for arm in arms]
    outputs = [
        {"arm": arm.id, "prompt": place, "round": turn, **asdict(found)}
        for arm in arms
        for (place, turn), found in arm.outputs.items()
    ]
    told: dict[str, Any] = {
        "measured": utc_now(),
        "machine": machine.model_dump(mode="json"),
        "options": vars(options),
    }
    told |= {"prompts": peers.prompts, "rows": rows, "outputs": outputs}
    told["first_token_s"] = {arm.id: arm.first_s for arm in arms}
    file = options.json or workspace.state / "peers.json"
    file.write_text(json.dumps(told, default=str) + "\n", "utf-8")
    print(
        f"`{options.target}` in {options.dtype} on `{machine.machine_class}`, {machine.threads} threads: "
        f"{len(peers.prompts)} prompts, {options.tokens} tokens each, {options.rounds} rounds.\n\n{table(rows, options.prefill)}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
