"""A whole run on a tiny target: built, measured, kept, continued and ranked."""

from __future__ import annotations

import json
from datetime import datetime

import pytest
from safetensors.torch import load_file, save_file
from tokenizers import pre_tokenizers
from transformers.utils import chat_template_utils

from draftrank import Store, Workspace, build_boards, run, summarise, verify
from draftrank.board.remarks import remarks_on
from draftrank.catalog.decoding_mode import DecodingMode
from draftrank.engine.backends.transformers import runtime as torch_runtime
from draftrank.engine.backends.transformers.attention import NAME
from draftrank.engine.loop import ContextOverflowError
from draftrank.errors import InvalidInputError, UnsupportedModelError
from draftrank.jobs.session import build
from draftrank.measure.fidelity.sampling_check import check_sampling
from draftrank.measure.sessions import bench
from draftrank.models import prompting
from draftrank.models.loading import load_tokenizer
from draftrank.progress import SilentProgress
from draftrank.store.bundle import publish
from listening import Listening
from models import ARCHITECTURES, save_small_target, small_model, small_tokenizer
from tiny_workspace import write_tiny_workspace
from vocabularies import byte_level
from workspaces import PROMPTS, plain_request, recipe_of, run_drafts, write_draft, write_prompts

DRAFTS = ["early-exit", "int8", "ngram", "shallow"]
# Prompt one has two turns, the others one; two repeats; every draft, the baseline and its twin.
TRIALS = 4 * 2 * (len(DRAFTS) + 2)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_kind_of_draft_is_measured_and_lossless(tmp_path, architecture):
    workspace = Workspace.open(write_tiny_workspace(tmp_path, architecture))
    with Store.open(workspace.store_url) as store:
        result = run(workspace, plain_request("tiny"), store)
        assert store.result(result.session.id) == result
    assert result.session.finished_at is not None
    assert [arm.failure for arm in result.session.arms] == [None] * 6
    assert len(result.trials) == TRIALS
    # The same prompt turn has the same output in every arm and repeat: greedy, fp32.
    outputs = {}
    for trial in result.trials:
        outputs.setdefault((trial.prompt, trial.turn), set()).add(trial.token_ids)
    assert all(len(found) == 1 for found in outputs.values())
    summary = summarise(result)
    for arm in summary.arms:
        if arm.arm.kind == "draft":
            assert arm.fidelity.status == "identical"
            assert arm.missing == 0
            assert 1.0 <= arm.acceptance.length <= 4.0
            assert arm.arm.latencies
            assert arm.arm.peak_memory_bytes is None or arm.arm.peak_memory_bytes > 0
    int8 = next(arm for arm in result.session.arms if arm.id == "int8").draft
    assert int8.parameters > 0
    assert int8.weights_sha256 is not None
    assert int8.techniques == ("quantization",)
    board = build_boards([result])[0]
    assert {row.draft for row in board.rows} == set(DRAFTS)


def test_the_second_turn_is_asked_in_the_context_of_the_first_answer(workspace_root):
    result = run_drafts(workspace_root, "ngram")
    turns = {trial.turn: trial for trial in result.trials if trial.prompt == "one" and trial.arm == "ngram"}
    first, second = turns[0], turns[1]
    question = "and then the dog"
    assert second.prompt_tokens >= first.prompt_tokens + len(first.token_ids) + len(question) // 4


def test_every_end_token_that_the_target_names_ends_an_output_and_a_disagreement_is_told(workspace_root):
    """The configuration names one token, the tokenizer another, and there is no generation configuration."""
    model = workspace_root / "models" / "tiny"
    (model / "generation_config.json").unlink()

    def outputs(config, tokenizer):
        for name, changes in (("config", {"eos_token_id": config}), ("tokenizer_config", tokenizer)):
            path = model / f"{name}.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        result = run_drafts(workspace_root, "ngram", repeats=1)
        (trial,) = [found for found in result.trials if (found.arm, found.prompt) == ("ngram", "two")]
        return trial, result.session.warnings

    free, _ = outputs(1, {"eos_token": "<|im_start|>"})
    ids = list(dict.fromkeys(free.token_ids))
    assert free.finish == "length"
    late, early = ids[4], ids[2]
    tokens = load_tokenizer(model).convert_ids_to_tokens([early])
    ended, (warning,) = outputs(late, {"eos_token": tokens[0]})
    assert (ended.finish, ended.token_ids) == ("stop", free.token_ids[: free.token_ids.index(early) + 1])
    assert f"config.json: {late} (" in warning
    assert f"the tokenizer: {early} (" in warning


def test_a_session_notes_which_tokens_of_its_outputs_a_trimmed_head_does_not_know(workspace_root):
    draft = """kind: draft_model
  calibration: {kind: self_generated, tokens: 1000, sequence_tokens: 64}
  steps:
    - {kind: trim_vocabulary, keep_tokens: 60}"""
    write_draft(workspace_root, "trimmed", draft)
    workspace = Workspace.open(workspace_root)
    with Store.open(workspace.store_url) as store:
        result = run(workspace, plain_request("tiny", drafts=("trimmed", "shallow")), store)
        assert store.result(result.session.id) == result
    (trimmed,) = build(workspace, "tiny", ("trimmed",))
    known = set(load_file(trimmed.folder / "model.safetensors")["lm_head.token_ids"].tolist())
    said = [token for trial in result.trials if trial.arm == "baseline" for token in trial.token_ids]
    builds = {arm.id: arm.draft for arm in result.session.arms}
    assert builds["trimmed"].unknown_tokens == tuple(sorted(set(said) - known)) != ()
    assert builds["shallow"].unknown_tokens is None
    (task,) = next(arm for arm in summarise(result).arms if arm.arm.id == "trimmed").tasks
    assert task.known_share == sum(token in known for token in said) / len(said)


LETTERS = [*"abcdefghijklmnoprstuwy", *sorted(pre_tokenizers.ByteLevel.alphabet())[-128:]]


@pytest.mark.parametrize("way", ["token_intersection", "string_match"])
def test_a_draft_with_another_vocabulary_is_measured_and_its_row_says_what_it_can_propose(
    workspace_root, way
):
    tokenizer = byte_level((("b", "a"), ("e", "r")), letters=LETTERS)
    small_model("llama", layers=1, vocabulary=len(tokenizer)).save_pretrained(
        workspace_root / "models" / "other"
    )
    tokenizer.save_pretrained(workspace_root / "models" / "other")
    draft = f"""kind: draft_model
  vocabulary: {way}
  steps:
    - {{kind: pretrained, licence: MIT, source: {{kind: local, path: models/other}}}}"""
    write_draft(workspace_root, "other", draft)
    workspace = Workspace.open(workspace_root)
    with Store.open(workspace.store_url) as store:
        result = run(workspace, plain_request("tiny", drafts=("other",)), store)
        with pytest.raises(InvalidInputError, match="the target's vocabulary"):
            run(workspace, plain_request("tiny", drafts=("other",), references=("assisted",)), store)
    (arm,) = [one for one in result.session.arms if one.id == "other"]
    assert arm.failure is None
    assert {(entry.part, entry.tokens) for entry in arm.latencies} >= {("draft", 1), ("target", 4)}
    # The draft has some of the 256 bytes and other merges: with text it can say all tokens of these bytes.
    target, own = load_tokenizer(workspace_root / "models" / "tiny"), tokenizer.get_vocab()
    texts = {
        piece: token for piece, token in target.get_vocab().items() if token not in target.all_special_ids
    }
    sayable = {
        token
        for piece, token in texts.items()
        if piece in own or (way == "string_match" and set(piece) <= own.keys())
    }
    assert arm.draft.vocabulary_share == len(sayable) / len(target)
    outputs = {(t.arm, *t.cell): t.token_ids for t in result.trials}
    assert all(ids == outputs["baseline", *cell] for (name, *cell), ids in outputs.items() if name == "other")
    said = {token for t in result.trials if t.arm == "baseline" for token in t.token_ids}
    assert arm.draft.unknown_tokens == tuple(sorted(said - sayable))
    summary = summarise(result)
    remarks = remarks_on(summary, next(one for one in summary.arms if one.arm.id == "other"))
    assert any(
        f"can propose {len(sayable) / len(target):.1%} of the target's vocabulary" in one for one in remarks
    )


def test_a_second_run_measures_nothing(workspace_root):
    workspace = Workspace.open(workspace_root)
    with Store.open(workspace.store_url) as store:
        first = run(workspace, plain_request("tiny", drafts=("ngram",)), store)
        again = run(workspace, plain_request("tiny", drafts=("ngram",)), store)
        assert again == first
        fresh = run(workspace, plain_request("tiny", drafts=("ngram",), fresh=True), store)
        assert fresh.session.id != first.session.id
        other = run(workspace, plain_request("tiny", drafts=("ngram",), repeats=1), store)
        assert other.session.suite == "quick-custom"
        assert len(store.sessions()) == 3


class PowerCutError(Exception):
    pass


class InterruptingJournal:
    """A store that loses power after some trials."""

    def __init__(self, store, trials):
        self.store, self.left = store, trials

    def __getattr__(self, name):
        return getattr(self.store, name)

    def add_trial(self, session_id, trial):
        if self.left == 0:
            raise PowerCutError
        self.left -= 1
        self.store.add_trial(session_id, trial)


at_night = pytest.mark.nightly
"""What shares its law with a case that runs by day."""


def test_a_run_that_cannot_be_resumed_says_what_has_changed(workspace_root):
    workspace, told = Workspace.open(workspace_root), Listening()
    with Store.open(workspace.store_url) as store:
        with pytest.raises(PowerCutError):
            run(workspace, plain_request("tiny", drafts=("ngram", "shallow")), InterruptingJournal(store, 5))
        write_draft(
            workspace_root,
            "shallow",
            "kind: draft_model\n  steps:\n    - {kind: drop_layers, keep: 1, select: ends}",
        )
        (left,) = store.sessions()
        for asked, expected in (
            (plain_request("tiny", drafts=("ngram",)), None),
            (
                plain_request("tiny", drafts=("ngram", "shallow"), seed=3),
                "the seed, the recipe of shallow, the weights of shallow",
            ),
        ):
            told.messages.clear()
            run(workspace, asked, store, told)
            said = [text for text in told.messages if "cannot be resumed" in text]
            assert len(said) == (expected is not None)
            if expected:
                assert f"session {left.id} of the same drafts" in said[0]
                assert f"since: {expected}; all is measured anew" in said[0]


@pytest.mark.parametrize("after", [0, 5, *(pytest.param(after, marks=at_night) for after in (1, 17))])
def test_an_interrupted_run_goes_on_where_it_stopped(workspace_root, after):
    workspace = Workspace.open(workspace_root)
    request = plain_request("tiny", drafts=("ngram", "shallow"))
    with Store.open(workspace.store_url) as store:
        with pytest.raises(PowerCutError):
            run(workspace, request, InterruptingJournal(store, after))
        (session,) = store.sessions()
        kept = store.trials(session.id)
        assert len(kept) == after
        result = run(workspace, request, store)
        assert result.session.id == session.id
        assert len(result.trials) == 4 * 2 * 4
        assert set(kept) <= set(result.trials)
        later = [trial for trial in result.trials if trial not in kept]
        assert {trial.process for trial in later} == {1 if after else 0}


def test_a_draft_that_cannot_be_built_does_not_stop_the_others(workspace_root):
    too_deep = "kind: draft_model\n  steps:\n    - {kind: drop_layers, keep: 99, select: ends}"
    write_draft(workspace_root, "too-deep", too_deep)
    result = run_drafts(workspace_root, "too-deep", "ngram")
    failed = next(arm for arm in result.session.arms if arm.id == "too-deep")
    assert "build failed" in failed.failure
    rows = {row.draft: row for row in build_boards([result])[0].rows}
    assert not rows["too-deep"].ranked
    assert rows["ngram"].speedup is not None


CALIBRATED = """\
kind: draft_model
  calibration:
    kind: self_generated
    tokens: 1000
    sequence_tokens: 192
    prompts:
      source: {{kind: inline, prompts: [{{turns: ["{question}"]}}]}}
      licence: CC0-1.0
  steps:
    - {{kind: sparsify, method: wanda, sparsity: 0.5}}"""


def test_a_draft_made_with_a_tasks_prompt_is_refused(workspace_root):
    for name, question in (("leaky", "A dog, and a cat, and a dog!"), ("clean", "a bird and a cat")):
        draft = CALIBRATED.format(question=question)
        write_draft(workspace_root, name, draft)
    result, again = (run_drafts(workspace_root, "leaky", "clean") for _ in range(2))
    assert again.session.id == result.session.id
    rows = {row.draft: row for row in build_boards([result])[0].rows}
    assert not rows["leaky"].ranked
    assert rows["clean"].speedup is not None
    failures = {arm.id: arm.failure for arm in result.session.arms}
    assert failures["clean"] is None
    assert rows["clean"].build.text_compared == "text"
    assert not any("compared" in remark for remark in rows["clean"].remarks)
    assert "the prompt three of the task small" in failures["leaky"]
    assert "a dog and a cat and a dog" in failures["leaky"]


def test_text_that_is_gone_is_said_to_be_unchecked(workspace_root):
    draft = CALIBRATED.format(question="a bird and a cat")
    write_draft(workspace_root, "clean", draft)
    workspace = Workspace.open(workspace_root)
    build(workspace, "tiny", ("clean",))
    (corpus,) = (workspace.cache / "corpora").glob("*.safetensors")
    corpus.unlink()
    with Store.open(workspace.store_url) as store:
        result = run(workspace, plain_request("tiny", drafts=("clean",)), store)
    assert not result.session.warnings  # the remark says it
    arm = next(arm for arm in result.session.arms if arm.id == "clean")
    assert (arm.failure, arm.draft.text_compared) == (None, "nothing")
    (row,) = build_boards([result])[0].rows
    assert "was not compared with the prompts" in row.remarks[-1]


def test_a_draft_that_cannot_be_opened_does_not_stop_the_others(workspace_root):
    write_draft(workspace_root, "late-exit", "kind: early_exit\n  layers: 40")
    result = run_drafts(workspace_root, "late-exit", "ngram")
    failed = next(arm for arm in result.session.arms if arm.id == "late-exit")
    assert "leaves nothing out" in failed.failure
    assert {trial.arm for trial in result.trials} == {"baseline", "baseline-control", "ngram"}


def test_a_prompt_that_outgrows_the_window_is_refused_and_leaves_no_session(workspace_root):
    write_prompts(workspace_root, [{"id": "long", "turns": ["word " * 400]}])
    workspace = Workspace.open(workspace_root)
    with Store.open(workspace.store_url) as store:
        with pytest.raises(ContextOverflowError, match="small/long needs"):
            run(workspace, plain_request("tiny", drafts=("ngram",)), store)
        assert store.sessions() == ()


SHORT = "kind: draft_model\n  steps:\n    - {kind: pretrained, licence: MIT, source: {kind: local, path: models/short}}"


def test_a_draft_with_a_short_window_proposes_nothing_behind_it_and_all_is_told_before(workspace_root):
    """Prompt `one` needs 2 turns of 12 tokens more than it has; only `three` stays within 48."""
    save_small_target(workspace_root / "models" / "short", window=48)
    write_draft(workspace_root, "short", SHORT)
    workspace, told = Workspace.open(workspace_root), []

    class Told(SilentProgress):
        def message(self, text):
            told.append(text)

        def stage(self, label, total=None):
            told.append(label)
            return super().stage(label, total)

    with Store.open(workspace.store_url) as store:
        request = plain_request("tiny", drafts=("short", "ngram"), references=("assisted",))
        result = run(workspace, request, store, Told())
    # The tokenizer has bytes and three merges, of which only a blank before an `a` occurs in these texts.
    words = {
        prompt["id"]: [len(one.encode()) - one.count(" a") for one in prompt["turns"]] for prompt in PROMPTS
    }
    prompts = {t.prompt: t.prompt_tokens for t in result.trials if t.turn == 0}
    assert prompts == {name: turns[0] for name, turns in words.items()}
    most = words["one"][0] + 12 + len("\n\n") + words["one"][1] + 12
    warning = (
        f"short reads at most 48 tokens, which 1 of 3 prompts can outgrow (most: small/one, up to {most}): "
        "behind them it proposes nothing"
    )
    assert warning in result.session.warnings
    assert told.index(warning) < told.index("load the target")
    failures = {arm.id: arm.failure for arm in result.session.arms if arm.failure}
    assert list(failures.values()) == [
        "prompts can outgrow the 48 tokens that the draft short reads, and `generate` would go on asking it"
    ]
    assert {arm.kind for arm in result.session.arms if arm.failure} == {"reference"}
    trials = [trial for trial in result.trials if trial.arm == "short"]
    assert len(trials) == 8
    for trial in trials:
        if trial.prompt_tokens >= 48:
            assert (trial.proposed, trial.draft_forwards, trial.steps) == (0, 0, len(trial.token_ids) - 1)
        elif trial.prompt != "one":
            assert trial.proposed > 0
    assert {trial.proposed for trial in trials if (trial.prompt, trial.turn) == ("one", 1)} == {0}
    row = next(row for row in build_boards([result])[0].rows if row.draft == "short")
    assert row.complete
    assert row.remarks[:1] == (
        "It reads at most 48 tokens: in 2 of 4 prompt turns it proposed nothing behind them.",
    )


def test_a_template_with_the_date_gives_one_plan_on_every_day(workspace_root, monkeypatch):
    target = workspace_root / "drafts" / "tiny" / "target.yaml"
    target.write_text(target.read_text().replace("completion", "chat"))
    small_tokenizer(
        "{{ strftime_now('%d %b %Y') }}{% for message in messages %}"
        "{{ '<|im_start|>' + message['content'] + '<|im_end|>' }}{% endfor %}"
    ).save_pretrained(workspace_root / "models" / "tiny")
    workspace, request = Workspace.open(workspace_root), plain_request("tiny", drafts=("ngram",))
    found = []
    with Store.open(workspace.store_url) as store:
        for day in (datetime(2026, 11, 1), datetime(2031, 7, 4)):
            then = type("Then", (datetime,), {"now": staticmethod(lambda day=day: day)})
            monkeypatch.setattr(chat_template_utils, "datetime", then)
            found.append(run(workspace, request, store))
        assert found[0] == found[1]
        (path,) = publish(found[0], workspace_root / "bundles")
        checks = {one.name: one for one in next(verify(workspace, path, prompts=1)).checks}
        timed = ("speedup", "step cost")
        assert not [one for name, one in checks.items() if name not in timed and one.status != "holds"]
        # What renders to other tokens is another plan, though no declaration says so.
        monkeypatch.setattr(prompting, "TEMPLATE_DATE", datetime(2027, 2, 2))
        again = run(workspace, request, store)
        assert again.session.id != found[0].session.id
        assert again.session.tasks[0].declared == found[0].session.tasks[0].declared
    (other,) = verify(workspace, path)
    assert (other.holds, other.prompts) == (False, ())
    (failing,) = (one for one in other.checks if one.status == "fails")
    assert failing.name == "rendered prompts"
    assert "small: the chat template or the tokenizer gives other token ids here" in failing.detail


def test_a_task_without_its_data_is_skipped_with_a_warning(workspace_root):
    suite = workspace_root / "tasks" / "suites" / "quick.yaml"
    suite.write_text(suite.read_text().replace("- task: small", "- task: small\n  - task: absent"))
    task = (workspace_root / "tasks" / "small.yaml").read_text()
    (workspace_root / "tasks" / "absent.yaml").write_text(
        task.replace("id: small", "id: absent").replace("small.jsonl", "absent.jsonl")
    )
    result = run_drafts(workspace_root, "ngram")
    assert "task absent is skipped" in result.session.warnings[0]
    assert result.session.skipped_tasks == ("absent",)
    assert not build_boards([result])[0].rows[0].ranked


def test_sampling_runs_are_reproducible_and_on_a_board_of_their_own(workspace_root):
    workspace = Workspace.open(workspace_root)
    request = plain_request(
        "tiny", drafts=("ngram", "shallow"), mode=DecodingMode(temperature=0.8, top_p=0.9)
    )
    with Store.open(workspace.store_url) as store:
        first = run(workspace, request, store)
        greedy = run(workspace, plain_request("tiny", drafts=("ngram",)), store)
        again = run(
            workspace,
            plain_request("tiny", drafts=("ngram", "shallow"), mode=request.mode, fresh=True),
            store,
        )
    tokens = [{trial.key: trial.token_ids for trial in result.trials} for result in (first, again)]
    assert tokens[0] == tokens[1]
    # Two repeats draw different outputs.
    assert len({t.token_ids for t in first.trials if (t.arm, t.prompt) == ("baseline", "two")}) == 2
    assert len(build_boards([first, greedy])) == 2
    assert summarise(first).arms[2].fidelity.status == "not compared"


def test_samples_are_tested_in_the_session(workspace_root, monkeypatch):
    monkeypatch.setattr(bench, "check_sampling", check_sampling)  # with as many draws as for users
    drafts = ("ngram", "early-exit")
    result = run_drafts(workspace_root, *drafts, mode=DecodingMode(temperature=1.0))
    checks = {arm.id: arm.sampling for arm in result.session.arms}
    assert checks["baseline"] is None
    assert all(checks[name].p_value > 0.001 and checks[name].draws for name in drafts)


def test_a_lossy_draft_is_ranked_apart_with_the_quality_of_its_outputs(workspace_root):
    recipe = (workspace_root / "drafts" / "tiny" / "shallow.yaml").read_text()
    lossy = (
        recipe.replace("id: shallow", "id: typical")
        + "  typical_acceptance: {threshold: 0.001, alpha: 0.001}\n"
    )
    (workspace_root / "drafts" / "tiny" / "typical.yaml").write_text(lossy)
    write_prompts(
        workspace_root, [{"id": f"p{i}", "turns": [f"{i} and {i}"], "reference": "5"} for i in range(3)]
    )
    result = run_drafts(workspace_root, "typical", "shallow")
    (board,) = build_boards([result])
    rows = {row.draft: row for row in board.rows}
    row = rows["typical"]
    assert (row.lossy, row.fidelity.status, rows["shallow"].fidelity.status) == (True, "lossy", "identical")
    assert row.acceptance_length > rows["shallow"].acceptance_length
    assert row.quality.outputs == row.baseline_quality.outputs == 6
    assert row.quality.log_likelihood < row.baseline_quality.log_likelihood
    assert (row.quality.rouge_l < 1, row.baseline_quality.rouge_l) == (True, 1)
    assert row.quality.correct is not None
    assert "not-lossless" not in [finding.gate for finding in row.findings]
    assert rows["shallow"].quality is None


def test_low_precision_divergences_are_judged(workspace_root):
    result = run_drafts(workspace_root, "ngram", "shallow", dtype="bf16", repeats=1)
    assert result.session.numerics.positions > 0
    assert len(result.session.numerics.quantiles) == 101
    assert len(result.session.numerics.gap_quantiles) == 101
    for arm in summarise(result).arms:
        assert arm.fidelity.status in ("identical", "ties")


def test_no_gpu_is_a_clear_error(workspace_root):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(InvalidInputError, match="no CUDA device"):
        build(Workspace.open(workspace_root), "tiny", device="cuda")


def break_ngram(monkeypatch, times):
    """Makes the n-gram draft raise in its first proposals."""
    from draftrank.engine.proposers.ngram import NgramProposer

    left = [times]
    propose = NgramProposer.propose

    def breaking(self, context, count):
        if left[0]:
            left[0] -= 1
            raise RuntimeError("out of luck")
        return propose(self, context, count)

    monkeypatch.setattr(NgramProposer, "propose", breaking)


def test_a_draft_that_failed_is_tried_again_in_a_new_session(workspace_root, monkeypatch):
    workspace = Workspace.open(workspace_root)
    request = plain_request("tiny", drafts=("ngram", "shallow"))
    break_ngram(monkeypatch, 1)
    with Store.open(workspace.store_url) as store:
        first = run(workspace, request, store)
        assert "RuntimeError: out of luck" in next(a for a in first.session.arms if a.id == "ngram").failure
        assert len([t for t in first.trials if t.arm == "shallow"]) == 8
        second = run(workspace, request, store)
        assert second.session.id != first.session.id
        assert [arm.failure for arm in second.session.arms] == [None] * 4


def test_an_arm_is_never_measured_without_its_baseline_beside_it(workspace_root, monkeypatch):
    """It failed before the interruption, and would open after it: the baseline's minutes are gone."""
    workspace = Workspace.open(workspace_root)
    request = plain_request("tiny", drafts=("ngram", "shallow"))
    break_ngram(monkeypatch, 1)
    with Store.open(workspace.store_url) as store:
        with pytest.raises(PowerCutError):
            run(workspace, request, InterruptingJournal(store, 9))
        result = run(workspace, request, store)
    assert not [trial for trial in result.trials if trial.arm == "ngram"]
    assert not {row.draft: row for row in build_boards([result])[0].rows}["ngram"].ranked


def test_a_broken_baseline_stops_the_run(workspace_root, monkeypatch):
    from draftrank.measure.sessions import bench

    def broken(*_):
        raise RuntimeError("no baseline")

    workspace = Workspace.open(workspace_root)
    monkeypatch.setattr(bench, "autoregressive", broken)
    with Store.open(workspace.store_url) as store, pytest.raises(RuntimeError, match="no baseline"):
        run(workspace, plain_request("tiny", drafts=("ngram",)), store)


def test_an_imported_part_of_a_session_is_not_taken_for_the_whole(workspace_root, tmp_path):
    from draftrank.store.bundle import publish
    from draftrank.store.shared_bundles import import_file

    workspace = Workspace.open(workspace_root)
    request = plain_request("tiny", drafts=("ngram", "shallow"))
    with Store.open(workspace.store_url) as store:
        whole = run(workspace, request, store)
    files = publish(whole, tmp_path / "bundles", ("ngram",))
    with Store.open(tmp_path / "other.sqlite") as store:
        import_file(files[0], store)
        again = run(workspace, request, store)
    assert again.session.id != whole.session.id
    assert {arm.id for arm in again.session.arms} == {arm.id for arm in whole.session.arms}


def test_changed_prompts_are_another_board(workspace_root):
    first = run_drafts(workspace_root, "ngram")
    write_prompts(workspace_root, [{"id": str(i), "turns": [f"word {i} word {i}"]} for i in range(3)])
    second = run_drafts(workspace_root, "ngram")
    assert second.session.suite_sha256 == first.session.suite_sha256
    assert len(build_boards([first, second])) == 2


def test_a_changed_configuration_of_the_target_is_measured_anew(workspace_root):
    config = workspace_root / "models" / "tiny" / "generation_config.json"
    first = run_drafts(workspace_root, "ngram")
    config.write_text(config.read_text().replace('"eos_token_id": 2', '"eos_token_id": [2, 40]'))
    assert run_drafts(workspace_root, "ngram").session.id != first.session.id


def test_the_baseline_and_its_twin_need_the_same_memory(workspace_root):
    result = run_drafts(workspace_root)
    peaks = {arm.id: arm.peak_memory_bytes for arm in result.session.arms}
    assert abs((peaks["baseline"] or 0) - (peaks["baseline-control"] or 0)) < 32 << 20


@pytest.mark.parametrize(
    "architecture",
    [
        "deepseek_v3",
        "bloom",
        *(pytest.param(one, marks=at_night) for one in ("gpt_oss", "gemma2", "mistral")),
    ],
)
def test_other_architectures_are_measured_with_text_matching_drafts(tmp_path, architecture):
    root = write_tiny_workspace(tmp_path, architecture)
    target = root / "drafts" / "tiny" / "target.yaml"
    target.write_text(target.read_text() + "context_window: 256\n")
    suffixes = "kind: suffix\nspeculate:\n  branch_above_probability: 0.1"
    text = recipe_of("suffixes", suffixes).replace("0.1\nspeculate:", "0.1")
    (root / "drafts" / "tiny" / "suffixes.yaml").write_text(text)
    if architecture == "bloom":  # told before the run, and no other draft's matter
        with pytest.raises(InvalidInputError, match=r"the draft suffixes .* trees of tokens cannot be read"):
            run_drafts(root, "ngram", "suffixes")
    result = run_drafts(root, "ngram", "suffixes", leave_misfits_out=True)
    failures = {arm.id: arm.failure for arm in result.session.arms}
    assert set(failures.values()) == {None}
    assert ("suffixes" in failures) == (architecture != "bloom")
    for arm in summarise(result).arms:
        if arm.arm.kind == "draft" and arm.arm.failure is None:
            assert arm.fidelity.status == "identical"


def test_a_tokenizer_of_another_model_and_damaged_weights_are_told_before_the_run(workspace_root):
    folder = workspace_root / "models" / "tiny"
    good = load_file(folder / "model.safetensors")
    bad = {name: weight * float("nan") for name, weight in good.items()}
    save_file(bad, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UnsupportedModelError, match="gives logits that are no numbers, in transformers too"):
        run_drafts(workspace_root, "ngram")
    cut = {name: weight[:100].clone() if len(weight) == 262 else weight for name, weight in good.items()}
    save_file(cut, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 100}))
    with pytest.raises(
        InvalidInputError, match=r"config\.json: vocab_size: its tokenizer gives token \d+ for small/one"
    ):
        run_drafts(workspace_root, "ngram")


def test_a_session_whose_target_is_not_computed_as_transformers_does_does_not_start(tmp_path, monkeypatch):
    """Attention leaves the sinks out, and there is no other way of computing it."""
    workspace = Workspace.open(write_tiny_workspace(tmp_path, "gpt_oss"))
    monkeypatch.setattr(
        torch_runtime, "use_grouped_attention", lambda model: model.set_attn_implementation(NAME)
    )
    monkeypatch.setattr(torch_runtime.TransformersRuntime, "compute_otherwise", lambda _: False)
    with Store.open(workspace.store_url) as store:
        with pytest.raises(
            UnsupportedModelError,
            match=r"models/tiny \(gpt_oss\) is not computed by the backend transformers as",
        ):
            run(workspace, plain_request("tiny", drafts=("ngram",)), store)
        assert not store.sessions()


def test_a_model_that_is_not_computed_as_transformers_does_is_computed_by_its_own_attention(
    tmp_path, monkeypatch
):
    root = write_tiny_workspace(tmp_path, "gpt_oss")
    monkeypatch.setattr(
        torch_runtime, "use_grouped_attention", lambda model: model.set_attn_implementation(NAME)
    )
    result = run_drafts(root, "ngram")
    (arm,) = (arm for arm in summarise(result).arms if arm.arm.kind == "draft")
    assert (arm.arm.failure, arm.fidelity.status) == (None, "identical")
    assert {one.fallback for one in result.session.arms} == {"attention by eager"}
    (told,) = [one for one in remarks_on(summarise(result), arm) if "fastest way" in one]
    assert "for the target (attention by eager)" in told
    with Store.open(Workspace.open(root).store_url) as store:
        assert store.result(result.session.id).session.arms == result.session.arms


def test_a_draft_that_is_not_computed_as_transformers_does_is_a_failed_arm(workspace_root, monkeypatch):
    """Its cache loses a token too few, which no output of the session would show."""
    forget = torch_runtime.TransformersRuntime.rollback

    def forget_less(self, count):
        forget(self, count - (self.model.config.num_hidden_layers == 2 and count > 1))

    monkeypatch.setattr(torch_runtime.TransformersRuntime, "rollback", forget_less)
    result = run_drafts(workspace_root)
    failures = {arm.id: arm.failure for arm in result.session.arms if arm.kind == "draft"}
    assert failures["ngram"] is failures["int8"] is None
    for wrong in ("shallow", "early-exit"):
        assert "is not computed by the backend transformers as transformers computes it" in failures[wrong]
