"""No step holds more than the target, the draft and what one layer needs."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

# Every allocation of 64 kB or more is its own mapping and goes back to the system when it is freed, so that
# the process's resident memory is what it uses.
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
SLACK_BYTES = 45_000_000
"""One layer's weights (14 MB), its inputs' second moments (9 MB each), activations, and the rest."""
MEASURE = """
import gc, json, sys, threading, time
from pathlib import Path
import psutil, torch
from pydantic import TypeAdapter
from transformers import LlamaConfig, LlamaForCausalLM
from draftrank.catalog.sources.base import FetchContext
from draftrank.catalog.steps import Step
from draftrank.catalog.target import Target
from draftrank.models.loading import load_model, load_tokenizer
from draftrank.building.working_draft import BuildContext, WorkingDraft
from draftrank.catalog.self_generated import SelfGenerated
from models import small_tokenizer

root = Path(sys.argv[1])
torch.set_num_threads(1)
tokenizer = small_tokenizer(None)
config = LlamaConfig(hidden_size=512, intermediate_size=1536, num_hidden_layers=6, num_attention_heads=8,
    num_key_value_heads=4, vocab_size=len(tokenizer), bos_token_id=1, eos_token_id=2, pad_token_id=0)
LlamaForCausalLM(config).save_pretrained(root / "target")
tokenizer.save_pretrained(root / "target")
process = psutil.Process()
peak = [0]
stop = threading.Event()

def watch():
    while not stop.is_set():
        peak[0] = max(peak[0], process.memory_info().rss)
        time.sleep(0.002)

text = SelfGenerated(kind="self_generated", tokens=1_000, sequence_tokens=64, batch_sequences=16)
target = Target(schema_version=1, id="tiny", title="Tiny", licence="MIT",
    source={"kind": "local", "path": "target"}, prompt_format="completion")
context = BuildContext(target=target, target_folder=root / "target", target_weights_sha256="0", scratch=root,
    device="cpu", fetch=FetchContext(root / "cache"), calibration=text)
step_of = TypeAdapter(Step).validate_json
for line in sys.stdin:
    for warm in (True, False) if not (root / "cache").exists() else (False,):
        model = load_model(root / "target", "fp32", "cpu")
        draft = WorkingDraft(model, load_tokenizer(root / "target"))
        size = sum(p.numel() * p.element_size() for p in model.parameters())
        gc.collect()
        peak[0], before = 0, process.memory_info().rss
        stop.clear()
        watcher = threading.Thread(target=watch)
        watcher.start()
        step_of(line).apply(draft, context)
        stop.set()
        watcher.join()
        del draft, model
        gc.collect()
    print(json.dumps({"target": size, "grown": peak[0] - before}))
"""
QUICK = [
    {"kind": "drop_layers", "keep": 5, "select": "loss"},
    {"kind": "prune_ffn", "keep_channels": 768, "importance": "taylor"},
]
"""Forwards, and gradients."""
SLOW = [
    {"kind": "random", "seed": 1},
    {"kind": "drop_layers", "keep": 4, "select": "block_influence"},
    {"kind": "merge_layers", "keep": 5},
    {"kind": "prune_heads", "keep_groups": 2},
    {"kind": "prune_hidden", "keep_channels": 256},
    {"kind": "factorize", "keep_parameters": 0.5},
    {"kind": "tie_layers", "blocks": 4},
    {"kind": "trim_vocabulary", "keep_tokens": 100},
    {"kind": "factorize_head", "rank": 16},
    {"kind": "sparsify", "method": "sparsegpt", "sparsity": 0.5},
]


@pytest.mark.parametrize(
    "steps", [QUICK, pytest.param(SLOW, marks=pytest.mark.nightly)], ids=["quick", "slow"]
)
def test_steps_hold_the_target_the_draft_and_one_layers_needs(tmp_path, steps):
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path)],
        input="".join(json.dumps(step) + "\n" for step in steps),
        env={
            **os.environ,
            **ENVIRONMENT,
            "PYTHONPATH": os.pathsep.join(sys.path),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(steps)
    # The draft is there already when a step begins; beside it the target, or a second draft, may come.
    over = {
        json.dumps(step): facts
        for step, facts in zip(steps, found, strict=True)
        if facts["grown"] > facts["target"] + SLACK_BYTES
    }
    assert not over
