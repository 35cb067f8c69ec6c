"""Building drafts: once per content, whole or not at all, and usable as what they claim to be."""

from __future__ import annotations

import copy
import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch
from filelock import FileLock
from transformers import AutoModelForCausalLM, AutoTokenizer

from draftrank.building import pipeline
from draftrank.building.pipeline import build_draft
from draftrank.building.steps.drop_layers import DropLayers
from draftrank.building.steps.quantize import Quantize
from draftrank.building.text import corpus
from draftrank.building.training.distillation import _Trainer
from draftrank.catalog.self_generated import CALIBRATION
from draftrank.catalog.sources.base import FetchContext
from draftrank.engine.proposers.draft_model import ModelDraft
from draftrank.errors import BuildError, MissingDataError
from draftrank.models import discovery
from draftrank.models.architecture import Architecture
from draftrank.models.cache import draft_key
from draftrank.models.loading import load_model
from draftrank.progress import SilentProgress
from models import small_model

DROP = {"kind": "drop_layers", "keep": 2, "select": "ends"}
QUANTIZE = {"kind": "quantize", "scheme": "dynamic_int8"}
DISTILL = {
    "kind": "distill",
    "data": {"kind": "self_generated", "tokens": 1_000, "sequence_tokens": 64},
    "batch_sequences": 2,
}


def published(cache):
    """What a reader of the cache may find, locks aside."""
    return [path for path in (cache / "drafts").glob("*") if path.suffix != ".lock"]


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt2"])
def test_a_built_draft_opens_and_assists_its_target(build, make_target, architecture):
    _, folder = make_target(architecture)
    built = build(DROP, architecture=architecture)
    draft = AutoModelForCausalLM.from_pretrained(built.folder)
    model = load_model(folder.path, "fp32", "cpu")
    ids = torch.arange(3, 19)[None]
    alone = model.generate(ids, max_new_tokens=16, do_sample=False)
    assert torch.equal(model.generate(ids, max_new_tokens=16, do_sample=False, assistant_model=draft), alone)
    expected = load_model(folder.path, "fp32", "cpu")
    Architecture.of(expected).keep_layers(expected, (0, 3))
    with torch.inference_mode():
        assert torch.equal(draft(ids).logits, expected(ids).logits)
    text = "ab <|im_end|>"
    tokenizers = [AutoTokenizer.from_pretrained(place) for place in (folder.path, built.folder)]
    assert tokenizers[0](text).input_ids == tokenizers[1](text).input_ids
    assert draft.generation_config.eos_token_id == model.generation_config.eos_token_id
    assert built.parameters == sum(parameter.numel() for parameter in draft.parameters())
    assert built.bytes_on_disk == (built.folder / "model.safetensors").stat().st_size


def test_what_was_done_is_written_beside_the_weights(build, make_target, make_recipe, tmp_path):
    _, folder = make_target()
    recipe = make_recipe(DROP, QUANTIZE)
    built = build(recipe)
    facts = json.loads((built.folder / "draftrank.json").read_text())
    assert facts["recipe"]["draft"]["steps"][0]["keep"] == 2
    assert facts["target_weights_sha256"] == folder.weights_sha256
    assert facts["notes"]["kept_layers"] == [0, 3]
    assert [form["form"] for form in facts["forms"]] == ["dynamic_int8"]
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["weights_sha256"] == built.weights_sha256
    assert built.recipe_sha256 == recipe.content_sha256()
    assert type(load_model(built.folder, "fp32", "cpu").lm_head) is not torch.nn.Linear
    assert not list((tmp_path / "scratch").iterdir())


def test_equal_steps_are_built_once_whatever_the_recipe_is_called(build, make_recipe, monkeypatch):
    first = build(DROP)
    monkeypatch.setattr(pipeline, "_build", lambda *_: pytest.fail("built again"))
    other = make_recipe(DROP, id="other", speculate={"num_speculative_tokens": 7})
    second = build(other)
    assert (first.reused, second.reused) == (False, True)
    assert second.folder == first.folder
    assert (second.weights_sha256, second.build_s) == (first.weights_sha256, first.build_s)
    assert second.recipe_sha256 == other.content_sha256() != first.recipe_sha256


def made_by(*steps, calibration=None):
    """In any order, sensible or not."""
    return ModelDraft.model_construct(kind="draft_model", steps=steps, calibration=calibration)


def test_the_key_covers_all_that_decides_the_draft(monkeypatch):
    drop, quantize = DropLayers(**DROP), Quantize(**QUANTIZE)
    keys = {
        draft_key(made_by(*steps), sha)
        for steps in (
            (drop,),
            (quantize,),
            (drop, quantize),
            (quantize, drop),
            (DropLayers(**{**DROP, "keep": 3}),),
        )
        for sha in ("a" * 64, "b" * 64)
    }
    monkeypatch.setattr(DropLayers, "code_version", 2)
    keys.add(draft_key(made_by(drop), "a" * 64))
    monkeypatch.setattr("draftrank.models.cache.PIPELINE_VERSION", 2)
    keys.add(draft_key(made_by(drop), "a" * 64))
    other = CALIBRATION.model_copy(update={"seed": 1})
    keys.add(draft_key(made_by(drop, calibration=other), "a" * 64))
    assert len(keys) == 13
    assert draft_key(made_by(drop, calibration=CALIBRATION), "a" * 64) in keys
    assert draft_key(made_by(drop), "a" * 64) == draft_key(made_by(DropLayers(**DROP)), "a" * 64)


TRIM = {"kind": "trim_vocabulary", "keep_tokens": 100}
TIE = {"kind": "tie_layers", "blocks": 1}


@pytest.mark.parametrize("last", [QUANTIZE, DISTILL | {"seed": 7}], ids=["quantized", "healed"])
@pytest.mark.parametrize("first", [(DROP, TRIM, DISTILL), (DROP, TIE, DISTILL)], ids=["trimmed", "tied"])
def test_a_longer_recipe_begins_with_what_a_shorter_one_gave(build, monkeypatch, first, last):
    longer = [*first, last]
    whole = build(*longer, cache="whole")
    beginning = build(*first, cache="parts")
    monkeypatch.setattr(DropLayers, "apply", lambda *_: pytest.fail("done already"))
    parts = build(*longer, cache="parts")
    assert parts.weights_sha256 == whole.weights_sha256
    assert parts.build_s > beginning.build_s
    facts = [json.loads((built.folder / "draftrank.json").read_text()) for built in (parts, whole)]
    assert facts[0]["forms"] == facts[1]["forms"]
    assert facts[0]["corpora"] == facts[1]["corpora"]
    assert facts[0]["notes"].keys() == facts[1]["notes"].keys()


def test_drafts_without_weights_need_no_build(build, tmp_path):
    built = build(draft={"kind": "ngram"})
    assert (built.folder, built.weights_sha256, built.parameters, built.bytes_on_disk) == (None, None, 0, 0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (ValueError("odd"), r"small: step 2 \(quantize\) failed: ValueError: odd"),
        (BuildError("why"), r"failed: why$"),
    ],
)
def test_a_failing_step_is_named_and_leaves_nothing(build, tmp_path, monkeypatch, failure, message):

    def fail(*_):
        raise failure

    with monkeypatch.context() as patch:
        patch.setattr(Quantize, "apply", fail)
        with pytest.raises(BuildError, match=message):
            build(DROP, QUANTIZE)
    assert not published(tmp_path)
    assert not build(DROP, QUANTIZE).reused


def test_more_layers_than_there_are_is_a_build_error(build):
    with pytest.raises(
        BuildError, match=r"step 1 \(drop_layers\) cannot be done: the model has 4 layers.*at most 4"
    ):
        build({**DROP, "keep": 9})


def test_an_interruption_while_saving_leaves_nothing(build, tmp_path, monkeypatch):

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "weights_sha256", interrupt)  # the weights are written by then
        with pytest.raises(KeyboardInterrupt):
            build(DROP)
    assert not published(tmp_path)
    assert not build(DROP).reused


@pytest.mark.usefixtures("in_fp32")
def test_an_interrupted_training_goes_on_in_the_next_build(build, tmp_path, interrupt_after, monkeypatch):
    monkeypatch.setattr("draftrank.building.training.distillation.CHECKPOINT_S", 0.0)
    whole = build(DROP, DISTILL, cache="whole")
    with pytest.raises(KeyboardInterrupt):
        build(DROP, DISTILL, cache="cut", progress=interrupt_after("distil", 4))
    assert not published(tmp_path / "cut")
    [spent] = (tmp_path / "cut" / "scratch").rglob("spent_s")
    seconds = float(spent.read_text())
    updates = []
    update = _Trainer._update
    monkeypatch.setattr(
        "draftrank.building.training.distillation._Trainer._update",
        lambda *given: updates.append(given) or update(*given),
    )
    again = build(DROP, DISTILL, cache="cut")
    assert 0 < len(updates) < 7
    assert again.weights_sha256 == whole.weights_sha256
    assert again.build_s > seconds
    assert not list((tmp_path / "cut" / "scratch").iterdir())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_killed_build_leaves_nothing_and_its_remains_are_removed(
    make_target, make_recipe, tmp_path, monkeypatch
):
    target, folder = make_target()
    child = os.fork()
    if child == 0:  # dies as if killed, after the weights are written and before they are published
        monkeypatch.setattr(pipeline, "weights_sha256", lambda *_: os._exit(9))
        build_draft(make_recipe(DROP), target, folder, FetchContext(tmp_path))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    [remains] = published(tmp_path)
    assert remains.name.startswith(".staging-")
    assert list(remains.glob("*.safetensors"))
    built = build_draft(make_recipe(DROP), target, folder, FetchContext(tmp_path))
    assert not built.reused
    assert published(tmp_path) == [built.folder]
    assert load_model(built.folder, "fp32", "cpu").config.num_hidden_layers == 2


def test_two_processes_build_one_good_draft(make_target, make_recipe, tmp_path):
    target, folder = make_target()
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=spawn) as processes:
        runs = [
            processes.submit(build_draft, make_recipe(DROP), target, folder, FetchContext(tmp_path))
            for _ in range(2)
        ]
        first, second = (run.result() for run in runs)
    assert sorted([first.reused, second.reused]) == [False, True]
    assert first.folder == second.folder
    assert published(tmp_path) == [first.folder]
    assert AutoModelForCausalLM.from_pretrained(first.folder).config.num_hidden_layers == 2


def test_a_waiting_build_says_so(build, make_target, make_recipe, tmp_path):
    _, folder = make_target()
    key = draft_key(make_recipe(DROP).draft, folder.weights_sha256)
    (tmp_path / "drafts").mkdir()
    lock = FileLock(tmp_path / "drafts" / f".{key}.lock")
    lock.acquire()
    said = []

    class Hearing(SilentProgress):
        def message(self, text):
            said.append(text)
            lock.release()

    build(DROP, progress=Hearing())
    assert said == ["waiting for another process that is making the draft small"]


def test_a_changed_draft_is_not_trusted(build):
    built = build(DROP)
    with (built.folder / "model.safetensors").open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(MissingDataError, match="was changed"):
        build(DROP)


def test_a_later_step_that_the_family_cannot_have_is_refused_before_the_first_is_applied(build, monkeypatch):
    monkeypatch.setattr(Architecture, "keep_layers", lambda *_: pytest.fail("a step was applied"))
    with pytest.raises(BuildError, match=r"step 2 \(prune_heads\) cannot be done: gpt2 .* use prune_ffn"):
        build(DROP, {"kind": "prune_heads", "keep_groups": 1}, architecture="gpt2")


TIE = {"kind": "tie_layers", "blocks": 3}
NF4 = {"kind": "quantize", "scheme": "nf4"}


@pytest.mark.parametrize(
    ("steps", "says"),
    [
        ((DISTILL, NF4), r"step 2 \(quantize\) cannot be done: .*(needs the library|needs a multiple of 64)"),
        ((DISTILL, {**TIE, "blocks": 9}), r"step 2 \(tie_layers\) cannot be done: the model has 4 layers"),
        (
            (DROP, DISTILL, TIE),
            r"step 3 \(tie_layers\) cannot be done: the model has 2 layers: write at most 2",
        ),
        ((DISTILL, {"kind": "trim_vocabulary", "keep_tokens": 9_999}), "9999 cannot be kept"),
        ((DISTILL, {"kind": "trim_vocabulary", "keep_tokens": 1}), "are kept in any case"),
        ((DISTILL, {"kind": "factorize_head", "rank": 33}), "has no rank 33"),
        ((DISTILL, {"kind": "sparsify", "method": "wanda", "pattern": "2:5"}), "no multiple of 5"),
        ((DISTILL, {"kind": "write_gguf"}), r"step 2 \(write_gguf\) cannot be done"),
        (({"kind": "prune_ffn", "keep_channels": 49}, DISTILL), "48 feed-forward channels per layer, so 49"),
        (({"kind": "prune_heads", "keep_groups": 3}, DISTILL), "2 query groups per layer, so 3"),
        (({"kind": "prune_hidden", "keep_channels": 33}, DISTILL), "32 hidden channels, so 33"),
        (({"kind": "merge_layers", "keep": 5}, DISTILL), "4 layers, so 5 cannot be left"),
    ],
)
def test_what_the_model_and_the_machine_tell_is_told_before_a_text_is_written(
    build, monkeypatch, steps, says
):
    monkeypatch.setattr(corpus, "write_rows", lambda *_: pytest.fail("a text was written"))
    with pytest.raises(BuildError, match=says):
        build(*steps)


def test_a_width_that_a_step_before_makes_fit_is_not_refused(build):
    sparse = {"kind": "sparsify", "method": "magnitude", "pattern": "2:5"}
    built = build(
        {"kind": "prune_ffn", "keep_channels": 40},
        {"kind": "prune_hidden", "keep_channels": 20},
        {"kind": "prune_heads", "keep_groups": 1},
        {**sparse, "pattern": "2:4"},
    )
    assert built.parameters
    with pytest.raises(BuildError, match=r"step 2 \(sparsify\) cannot be done: .* no multiple of 5"):
        build({"kind": "prune_ffn", "keep_channels": 40}, sparse)
    kinds = {"kind": "drop_layers", "keep": [1, 2]}  # of which the first is dense and the others have experts
    with pytest.raises(BuildError, match="layers of deepseek_v3 are of different kinds"):
        build({"kind": "tie_layers", "blocks": 1}, architecture="deepseek_v3")
    assert build(kinds, {"kind": "tie_layers", "blocks": 1}, architecture="deepseek_v3").parameters


def test_a_text_that_the_target_cannot_write_is_refused_before_the_first_step(build, monkeypatch):
    monkeypatch.setattr(DropLayers, "apply", lambda *_: pytest.fail("a step was applied"))
    data = {**DISTILL["data"], "sequence_tokens": 16}
    with pytest.raises(
        BuildError, match=r"text of distill cannot be written: rows of 16 tokens are too short"
    ):
        build(DROP, {**DISTILL, "data": data})
    source = {"kind": "local", "path": "prompts.jsonl", "sha256": "0" * 64}
    given = {"licence": "MIT", "source": source}
    with pytest.raises(BuildError, match=r"text of distill cannot be written: .*prompts"):
        build(DROP, {**DISTILL, "data": {**DISTILL["data"], "prompts": given}})


def test_a_ready_made_model_with_other_rows_is_not_distilled(build, make_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "write_rows", lambda *_: pytest.fail("a text was written"))
    small_model("llama", layers=2, vocabulary=len(make_tokenizer()) + 3).save_pretrained(tmp_path / "other")
    make_tokenizer().save_pretrained(tmp_path / "other")
    ready = {"kind": "pretrained", "licence": "MIT", "source": {"kind": "local", "path": "other"}}
    with pytest.raises(BuildError, match=r"step 2 \(distill\) cannot be done: .*rows of the vocabulary"):
        build(ready, DISTILL)
    assert build(ready).parameters


@pytest.mark.parametrize(
    ("steps", "asked"),
    [
        ((DROP, {"kind": "factorize", "keep_parameters": 0.5}, TIE), 1),
        (({"kind": "random"}, {"kind": "sparsify", "method": "magnitude", "sparsity": 0.5}), 1),
        (({"kind": "trim_vocabulary", "keep_tokens": 200}, QUANTIZE), 0),
    ],
)
def test_a_model_is_asked_once_whether_its_layers_are_those_found_and_only_for_steps_that_touch_them(
    build, monkeypatch, steps, asked
):
    names = []
    monkeypatch.setattr(pipeline, "require_every_layer", lambda _, name: names.append(name))
    steps = [{**step, "blocks": 2} if step is TIE else step for step in steps]
    build(*steps)
    assert names == ["model.layers"] * asked


@pytest.mark.parametrize(
    "step",
    [
        {"kind": "factorize", "keep_parameters": 0.5},
        {"kind": "prune_ffn", "keep_channels": 24},
        {"kind": "eagle_head", "aux_hidden_states": [1, 2]},
    ],
    ids=lambda step: step["kind"],
)
def test_layers_that_the_model_does_not_run_are_refused_before_a_step_touches_them(build, monkeypatch, step):
    load = pipeline.load_model

    def with_spare_layers(*given, **named):
        model = load(*given, **named)
        model.model.spare = copy.deepcopy(model.model.layers)
        return model

    monkeypatch.setattr(pipeline, "load_model", with_spare_layers)
    monkeypatch.setitem(discovery.OVERRIDES, "llama", {"decoder": "model", "layer_list": "spare"})
    with pytest.raises(
        BuildError, match=r"cannot be done: model\.spare .* is not the list of its decoder layers"
    ):
        build(step)


def test_a_change_that_no_folder_keeps_is_noticed_before_the_draft_is_there(build, tmp_path, monkeypatch):
    apply = DropLayers.apply

    def scaled(step, draft, context):
        apply(step, draft, context)
        for layer in draft.architecture.layers(draft.model):
            layer.self_attn.scaling *= 2  # neither a weight nor in the configuration

    with monkeypatch.context() as patch:
        patch.setattr(DropLayers, "apply", scaled)
        with pytest.raises(BuildError, match="computes something else when it is saved and opened again"):
            build(DROP)
    assert not published(tmp_path)
    assert not build(DROP).reused
