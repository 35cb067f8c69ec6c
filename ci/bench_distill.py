"""Distillation against the loop that one would write first: same draft, text and updates, side by side.

The plain loop runs target and draft on whole sequences in fp32, forms both full-vocabulary distributions at
every position, and steps. Ours is measured as it is, then with the target's states kept on disk, then with a
trimmed head as well. The arms take turns, round by round, each with text of its own per round; a ratio is our
tokens per second over the plain loop's of the same round, with a t-interval over rounds of its logarithm. The
time of keeping the target's states counts, spread over the passes that a recipe makes.

Prints one JSON line. Run nothing else meanwhile.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from scipy.stats import t as student

from draftrank import Workspace
from draftrank.building.steps.distill import Distill
from draftrank.building.surgery.vocabulary_trimming import trim_vocabulary
from draftrank.building.text.conversation_row import ANSWER, PROMPT
from draftrank.building.text.corpus import Corpus, corpus_key, self_generated_corpus
from draftrank.building.training.distillation import distill
from draftrank.building.training.schedule import learning_rate_factor, order, split_sequences
from draftrank.building.training.target_states import target_states
from draftrank.building.working_draft import BuildContext, WorkingDraft
from draftrank.catalog.self_generated import SelfGenerated
from draftrank.measure.machine.fingerprint import read_machine
from draftrank.models.loading import compute_dtype, load_model, load_tokenizer
from draftrank.models.target_folder import ensure_target

PASSES = 3
"""Over which the time of keeping the target's states is spread: what the shipped recipes make."""
Outcome = dict[str, float]


def main() -> int:
    """Runs the comparison and prints its JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", default="smollm2-135m-instruct")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=12_288, help="per arm and round")
    parser.add_argument("--sequence-tokens", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--keep-tokens", type=int, default=8_192)
    options = parser.parse_args()

    workspace = Workspace.open()
    declared = workspace.target(options.target)
    fetch = workspace.fetch_context()
    folder = ensure_target(declared, fetch)
    scratch = Path(tempfile.mkdtemp(prefix="bench-distill-"))

    def context() -> BuildContext:
        """With the workspace's corpora, and nothing else that was kept before."""
        work = Path(tempfile.mkdtemp(dir=scratch))
        (workspace.cache / "corpora").mkdir(parents=True, exist_ok=True)
        (work / "corpora").symlink_to(workspace.cache / "corpora")
        return BuildContext(
            target=declared,
            target_folder=folder.path,
            target_weights_sha256=folder.weights_sha256,
            scratch=work,
            device="cpu",
            fetch=replace(fetch, cache=work),
        )

    def cut() -> WorkingDraft:
        model = load_model(folder.path, "fp32", "cpu")
        draft = WorkingDraft(model, load_tokenizer(folder.path))
        depth, half = len(draft.architecture.layers(model)), options.layers // 2
        draft.architecture.keep_layers(model, [*range(half), *range(depth - options.layers + half, depth)])
        return draft

    def data(seed: int) -> SelfGenerated:
        return SelfGenerated(
            kind="self_generated", tokens=options.tokens, sequence_tokens=options.sequence_tokens, seed=seed
        )

    def ours(seed: int, *, kept: bool, trimmed: bool) -> Outcome:
        draft, work = cut(), context()
        if trimmed:
            trim_vocabulary(draft, self_generated_corpus(data(seed), work).tokens, options.keep_tokens)
        spent = 0.0
        if kept:
            corpus = self_generated_corpus(data(seed), work)
            target = load_model(folder.path, compute_dtype("cpu"), "cpu")
            began = perf_counter()
            target_states(target, corpus, corpus_key(data(seed), work), work)
            spent = (perf_counter() - began) / PASSES
        spec = Distill(kind="distill", data=data(seed), learning_rate=1e-3, cache_target_states=kept)
        notes = distill(spec, draft, work)
        spent += notes["seconds"]
        return {"tokens_per_s": notes["tokens_seen"] / spent, "held_out_kl": notes["held_out_kl_after"]}

    arms: dict[str, Callable[[int], Outcome]] = {
        "plain": lambda seed: plain(cut(), self_generated_corpus(data(seed), context()), folder.path),
        "ours": lambda seed: ours(seed, kept=False, trimmed=False),
        "kept_states": lambda seed: ours(seed, kept=True, trimmed=False),
        "kept_states_trimmed": lambda seed: ours(seed, kept=True, trimmed=True),
    }
    found: dict[str, list[Outcome]] = {name: [] for name in arms}
    for turn in range(options.rounds):
        self_generated_corpus(data(turn), context())  # written before anything is timed
        names = list(arms)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            found[name].append(arms[name](turn))
            print(f"round {turn + 1}, {name}: {found[name][-1]}", file=sys.stderr)
    shutil.rmtree(scratch)
    line: dict[str, Any] = {
        "machine": read_machine("cpu").machine_class,
        "target": options.target,
        "layers": options.layers,
        "tokens": options.tokens,
        "rounds": options.rounds,
        "arms": {name: summary(found[name], found["plain"]) for name in arms},
    }
    print(json.dumps(line))
    return 0


def plain(draft: WorkingDraft, corpus: Corpus, target_folder: Path) -> Outcome:
    """Nothing but the textbook: both models on the whole batch, one loss over everything."""
    target = load_model(target_folder, "fp32", "cpu")
    model = draft.model.eval().requires_grad_(True)
    draft.architecture.embedding(model).requires_grad_(False)
    draft.architecture.head(model).requires_grad_(False)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, betas=(0.9, 0.95))
    training, held_out = split_sequences(len(corpus), 0)
    batches = torch.split(order(training, 0, 0), 8)
    seen, began = 0, perf_counter()
    for update, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * learning_rate_factor(update, len(batches), 0.05)
        optimizer.zero_grad()
        loss = _divergence(model, target, corpus, batch, of=(PROMPT, ANSWER))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        seen += corpus.tokens[batch].numel()
    spent = perf_counter() - began
    with torch.no_grad():
        kl = float(_divergence(model, target, corpus, held_out, of=(ANSWER,)))
    return {"tokens_per_s": seen / spent, "held_out_kl": kl}


def _divergence(
    model: Any, target: Any, corpus: Corpus, batch: torch.Tensor, of: tuple[int, ...]
) -> torch.Tensor:
    """Mean KL divergence from the target's distribution to the draft's at the places of some roles."""
    tokens = corpus.tokens[batch].long()
    with torch.no_grad():
        theirs = target(tokens).logits[:, :-1].log_softmax(-1)
    ours = model(tokens).logits[:, :-1].log_softmax(-1)
    each = (theirs.exp() * (theirs - ours)).sum(-1)
    counted = torch.isin(corpus.roles[batch][:, 1:], torch.tensor(of, dtype=torch.uint8))
    mean: torch.Tensor = each[counted].mean()
    return mean


def summary(arm: list[Outcome], base: list[Outcome]) -> dict[str, Any]:
    """Mean speed, its ratio to the plain loop's of the same rounds, and the held-out divergence."""
    logs = [math.log(a["tokens_per_s"] / b["tokens_per_s"]) for a, b in zip(arm, base, strict=True)]
    mean, rounds = statistics.fmean(logs), len(logs)
    half = student.ppf(0.975, rounds - 1) * statistics.stdev(logs) / math.sqrt(rounds) if rounds > 1 else 0.0
    return {
        "tokens_per_s": round(statistics.fmean(one["tokens_per_s"] for one in arm), 1),
        "ratio": round(math.exp(mean), 2),
        "ci": [round(math.exp(mean - half), 2), round(math.exp(mean + half), 2)],
        "held_out_kl": round(statistics.fmean(one["held_out_kl"] for one in arm), 4),
    }


if __name__ == "__main__":
    sys.exit(main())
