"""The engine on a GPU: the same laws, and the same tokens as on the CPU. Skipped without CUDA."""

from __future__ import annotations

import pytest
import torch

from draftrank.catalog.decoding_mode import DecodingMode
from draftrank.engine.backends.transformers.runtime import TransformersRuntime
from draftrank.engine.environment import memory_bytes, reset_peak_memory
from draftrank.engine.loop import Request, autoregressive, speculative
from draftrank.engine.proposers.draft_model import ModelProposer
from draftrank.engine.proposers.early_exit import EarlyExitProposer
from draftrank.engine.proposers.ngram import NgramProposer
from draftrank.measure.cost.latency import measure_latencies
from draftrank.measure.machine.fingerprint import read_machine
from models import ARCHITECTURES, small_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
PROMPT = (5, 9, 11, 5, 9)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("k", [1, 4])
def test_greedy_output_equals_the_cpus(name, k):
    request = Request(PROMPT, 40)
    expected = autoregressive(TransformersRuntime(small_model(name)), request).token_ids
    target = TransformersRuntime(small_model(name).to("cuda"))
    assert autoregressive(target, request).token_ids == expected
    stranger = TransformersRuntime(small_model(name, seed=9, layers=1).to("cuda"))
    for proposer in (
        ModelProposer(stranger),
        NgramProposer(1, 3),
        EarlyExitProposer(target.first_layers(2)),
    ):
        assert speculative(target, proposer, request, k).token_ids == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_runs_and_an_equal_draft_is_mostly_accepted(dtype):
    target = TransformersRuntime(small_model("llama").to("cuda", dtype))
    draft = ModelProposer(TransformersRuntime(small_model("llama").to("cuda", dtype)))
    found = speculative(target, draft, Request(PROMPT, 41), 4)
    assert found.acceptance_length > 3


def test_sampling_is_reproducible():
    target = TransformersRuntime(small_model("llama").to("cuda"))
    request = Request(PROMPT, 30, mode=DecodingMode(temperature=0.9, top_p=0.9), seed=4)
    outputs = {speculative(target, NgramProposer(1, 3), request, 3).token_ids for _ in range(2)}
    assert len(outputs) == 1


def test_forward_times_memory_and_machine_are_the_gpus():
    target = TransformersRuntime(small_model("llama").to("cuda"))
    reset_peak_memory("cuda")
    (latencies,) = measure_latencies(target, [(None, 3)], [PROMPT])
    assert {(one.part, one.tokens) for one in latencies} >= {("target", 1), ("target", 4)}
    now, peak = memory_bytes("cuda")
    assert 0 < now <= peak
    machine = read_machine("cuda")
    assert machine.gpu == torch.cuda.get_device_properties(0).name
    assert machine.machine_class != read_machine("cpu").machine_class
