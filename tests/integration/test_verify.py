"""An honest bundle holds when it is run again; one tampered with by hand does not, and says where."""

from __future__ import annotations

import json
from datetime import datetime, timedelta

import pytest

from commands import several
from draftrank import Store, Workspace, verify
from draftrank.errors import InvalidInputError
from draftrank.measure.records import sha256_of_ids
from draftrank.store.bundle import part_of, publish, read_bundle
from draftrank.store.merging import join
from forging import version_2
from tiny_workspace import write_tiny_workspace
from workspaces import PROMPTS, run_drafts, write_draft, write_prompts

EVERYTHING = {"prompts": len(PROMPTS), "seed": 1}
DISTILLED = """kind: draft_model
  steps:
    - {kind: drop_layers, keep: 2, select: ends}
    - kind: distill
      data: {kind: self_generated, tokens: 1000, sequence_tokens: 16}
      learning_rate: 0.001"""


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A workspace and the text of the bundle of each draft that was measured in it."""
    root = write_tiny_workspace(tmp_path_factory.mktemp("verify") / "workspace")
    write_draft(root, "distilled", DISTILLED)
    return root, {**measure(root, "fp32", "shallow", "ngram", "distilled"), **measure(root, "bf16", "int8")}


def measure(root, dtype, *drafts):
    result = run_drafts(root, *drafts, dtype=dtype)
    return {draft: json.dumps(version_2(part_of(result, {draft}))) for draft in drafts}


@pytest.fixture
def bundle(published, tmp_path):
    """Writes the bundle of a draft after a change, as if measured elsewhere unless told otherwise."""

    def write(draft, change=None, *, elsewhere=True):
        data = json.loads(published[1][draft])
        if elsewhere:
            data["session"]["machine"]["machine_class"] = "another-machine"
        if change is not None:
            change(data)
        path = tmp_path / "bundle.json"
        path.write_text(json.dumps(data))
        return path

    return write


def check(published, path, **arguments):
    (found,) = verify(Workspace.open(published[0]), path, **(EVERYTHING | arguments))
    return found, {one.name: one for one in found.checks}


def failed(published, path):
    found, checks = check(published, path)
    assert not found.holds
    return {name: one.detail for name, one in checks.items() if one.status == "fails"}


def trials_of(data, arm=None, prompt=None):
    return [t for t in data["trials"] if arm in (None, t["arm"]) and prompt in (None, t["prompt"])]


def edit_tokens(trial, index=5):
    trial["token_ids"][index] = 40 if trial["token_ids"][index] != 40 else 41
    trial["token_ids_sha256"] = sha256_of_ids(trial["token_ids"])


def raise_acceptance(trial):
    """Two steps that accepted nothing become one that accepted a token; all sums still hold."""
    histogram = trial["accept_histogram"]
    histogram[0] -= 2
    histogram[1] += 1
    trial["steps"] -= 1
    biggest = max(i for i, steps in enumerate(trial["proposal_sizes"]) if steps)
    trial["proposal_sizes"][biggest] -= 1
    reached = [sum(histogram[i:]) for i in range(len(histogram))]
    trial["offered"] = [
        max(min(offered, high), low)
        for offered, high, low in zip(trial["offered"], reached[:-1], reached[1:], strict=True)
    ]
    verified = sum(i * steps for i, steps in enumerate(trial["proposal_sizes"]))
    trial["proposed"] = max(sum(trial["offered"]), min(trial["proposed"], verified))


@pytest.mark.parametrize("draft", ["shallow", "ngram", "int8"])
def test_an_honest_bundle_holds_in_fp32_and_bf16(published, bundle, draft):
    found, checks = check(published, bundle(draft))
    assert found.holds, found.checks
    timed = {"step cost", "speedup"}
    assert {one.status for name, one in checks.items() if name not in timed} == {"holds"}
    assert {checks[name].status for name in timed} == {"skipped"}
    assert found.prompts == ("small/one", "small/two", "small/three")
    assert "machine class: another-machine there" in found.notes[0]


def test_an_honest_bundle_of_a_build_that_rounds_otherwise_holds(published, bundle):
    def say_bf16(data):
        data["session"]["dtype"] = "bf16"
        for arm in data["session"]["arms"]:
            arm["dtype"] = None

    # Measured in fp32, it is as of a program that rounds less.
    path = bundle("ngram", say_bf16)
    found, checks = check(published, path)
    assert found.holds, found.checks
    assert "but for ties" in checks["outputs"].detail


def test_seconds_of_another_minor_version_are_not_compared(published, bundle):
    path = bundle("ngram", lambda data: data["session"].update(draftrank_version="0.2.0"), elsewhere=False)
    found, checks = check(published, path)
    assert found.holds, found.checks
    for name in ("step cost", "speedup"):
        assert (checks[name].status, checks[name].detail[:9]) == ("skipped", "draftrank")


def test_a_token_that_the_target_does_not_have_is_no_tie(published, bundle):
    def edit(data):
        for trial in trials_of(data, "ngram", "two"):
            trial["token_ids"][5] = 10**6
            trial["token_ids_sha256"] = sha256_of_ids(trial["token_ids"])

    assert "from token 5 on" in failed(published, bundle("ngram", edit))["outputs"]


def test_the_sample_is_seeded_and_no_larger_than_asked(published, bundle):
    path = bundle("ngram")
    first, again = (check(published, path, prompts=1, seed=7)[0] for _ in range(2))
    assert first == again
    assert len(first.prompts) == 1
    assert check(published, path, prompts=1, seed=None)[0].holds


def test_a_raised_speedup_is_contradicted_by_the_re_run(published, bundle):
    def raise_speed(data):
        """Every trial a hundred times as fast as the baseline's of the same repeat: no interval is that wide."""
        baseline = {(t["prompt"], t["turn"], t["repeat"]): t["decode_s"] for t in trials_of(data, "baseline")}
        for trial in trials_of(data, "ngram"):
            raised = trial["decode_s"] / (baseline[trial["prompt"], trial["turn"], trial["repeat"]] / 100)
            for name in ("decode_s", "propose_s", "verify_s"):
                trial[name] /= raised
        # The times of day are moved along, so that no hole is left in the clock.
        trials = sorted(data["trials"], key=lambda trial: trial["started_at"])
        now = datetime.fromisoformat(trials[0]["started_at"])
        for trial in trials:
            trial["started_at"] = now.isoformat()
            now += timedelta(seconds=trial["prefill_s"] + trial["decode_s"] + 0.001)

    detail = failed(published, bundle("ngram", raise_speed, elsewhere=False))["speedup"]
    assert "exclude each other" in detail


def test_a_slowed_baseline_runs_into_the_next_trial(published, bundle):
    def slow_down(data):
        for trial in trials_of(data, "baseline"):
            trial["decode_s"] *= 1000

    assert "but the next began" in failed(published, bundle("ngram", slow_down))["times"]


def test_an_edited_histogram_is_named(published, bundle):
    def edit(data):
        trial = next(t for t in trials_of(data, "shallow") if t["accept_histogram"][0] > 2)
        raise_acceptance(trial)

    found = failed(published, bundle("shallow", edit))
    assert set(found) == {"accept histograms"}
    assert "accept_histogram" in found["accept histograms"]


def test_histograms_that_rounding_cannot_explain_fail_in_bf16(published, bundle):
    def edit(data):
        for trial in trials_of(data, "int8"):
            while trial["accept_histogram"][0] > 2:
                raise_acceptance(trial)
            while trial["accept_histogram"][3] > 0:
                trial["accept_histogram"][3] -= 1
                trial["accept_histogram"][0] += 4
                trial["steps"] += 3
                trial["proposal_sizes"][3] += 3
                trial["offered"][0] = max(trial["offered"][0], sum(trial["accept_histogram"][1:]))
                trial["offered"][2] = min(trial["offered"][2], sum(trial["accept_histogram"][2:]))
                trial["offered"][1] = min(trial["offered"][1], sum(trial["accept_histogram"][1:]))

    assert "more than" in failed(published, bundle("int8", edit))["accept histograms"]


@pytest.mark.parametrize(
    ("draft", "arm"), [("shallow", "baseline"), ("shallow", "shallow"), ("int8", "int8")]
)
def test_an_edited_output_is_named(published, bundle, draft, arm):
    def edit(data):
        for trial in trials_of(data, arm, "two"):
            edit_tokens(trial)

    assert f"{arm} at small/two" in failed(published, bundle(draft, edit))["outputs"]


def test_an_output_whose_hash_was_forgotten_makes_no_sound_bundle(published, bundle):
    def edit(data):
        data["trials"][0]["token_ids"][1] += 1

    assert "not the hash" in failed(published, bundle("ngram", edit))["bundle"]


@pytest.mark.parametrize(
    ("change", "name", "told"),
    [
        (lambda s: s["arms"][2]["draft"].update(weights_sha256="0" * 64), "weights", "left to chance"),
        (lambda s: s["arms"][2]["draft"].update(trained=True), "weights", "trained is True"),
        (lambda s: s["arms"][2]["draft"].update(recipe_sha256="0" * 64), "recipe", "not the hash"),
        (
            lambda s: s["arms"][2]["draft"]["recipe"]["draft"]["steps"][0].update(keep=1),
            "recipe",
            "not the hash",
        ),
        (lambda s: s["arms"][2].update(lossy=True), "recipe", "lossy"),
        (lambda s: s["tasks"][0].update(task_sha256="0" * 64), "task small", "another version"),
        (lambda s: s["tasks"][0].update(prompts_sha256="0" * 64), "task small", "other texts"),
        (lambda s: s.update(target_sha256="0" * 64), "target", "declared otherwise"),
        (lambda s: s.update(target_weights_sha256="0" * 64), "target weights", "published"),
        (lambda s: s.update(repeats=1), "suite", "repeats is 1"),
        (lambda s: s.update(finished_at="2020-01-01T00:00:00Z"), "times", "after its session"),
    ],
)
def test_what_was_measured_is_compared_before_anything_is_run(published, bundle, change, name, told):
    path = bundle("shallow", lambda data: change(data["session"]))
    found, _ = check(published, path)
    assert found.prompts == ()
    assert told in failed(published, path)[name]


def test_a_draft_that_was_trained_elsewhere_is_compared_by_its_acceptance_length(published, bundle):
    def retrained(data):
        data["session"]["arms"][2]["draft"]["weights_sha256"] = "0" * 64

    found, checks = check(published, bundle("distilled", retrained))
    assert found.holds
    assert checks["weights"].status == "skipped"
    assert "times the published one" in checks["acceptance length"].detail
    assert checks["outputs"].status == "holds"


def test_a_suite_that_has_changed_since_is_told_and_does_not_matter(published, bundle):
    path = bundle("ngram", lambda data: data["session"].update(suite_sha256="0" * 64))
    found, checks = check(published, path, prompts=1)
    assert found.holds
    assert "declared otherwise" in checks["suite"].detail


def test_another_version_of_a_task_in_the_workspace_is_said(tmp_path):
    root = write_tiny_workspace(tmp_path / "workspace")
    text = measure(root, "fp32", "ngram")["ngram"]
    path = tmp_path / "bundle.json"
    path.write_text(text)
    write_prompts(root, [{"id": str(i), "turns": [f"word {i}"]} for i in range(3)])
    (found,) = verify(Workspace.open(root), path)
    assert [one.status for one in found.checks if one.name == "task small"] == ["fails"]
    (root / "drafts" / "tiny" / "ngram.yaml").unlink()
    checks = {one.name: one for one in next(verify(Workspace.open(root), path)).checks}
    assert "no draft 'ngram'" in checks["recipe"].detail


def test_the_command_says_it_and_its_exit_code_too(published, bundle, tmp_path):
    honest = bundle("ngram").rename(tmp_path / "honest.json")
    forged = bundle("ngram", lambda data: edit_tokens(trials_of(data, "ngram", "two")[0]))
    holds, fails, both, missing = several(
        published[0],
        ["verify", str(honest), "--prompts", "1", "--seed", "3", "--json"],
        ["verify", str(forged), "--prompts", "3", "--json"],
        ["verify", str(honest), str(forged), "--prompts", "3"],
        ["verify", str(tmp_path / "none.json")],
    )
    assert (holds.code, fails.code, both.code, missing.code) == (0, 1, 1, 2)
    assert holds.json["holds"]
    assert [one["seed"] for one in holds.json["bundles"]] == [3]
    assert not fails.json["holds"]
    assert "ngram at small/two, turn 0, repeat 0 from token 5 on" in fails.out
    assert both.out.index("it holds") < both.out.index("it does not hold")
    assert "none.json" in missing.err


def test_nothing_of_a_re_run_is_left_among_the_results(published, bundle):
    workspace = Workspace.open(published[0])
    with Store.open(workspace.store_url) as store:
        before = store.sessions()
        list(verify(workspace, bundle("ngram"), prompts=1))
        assert store.sessions() == before


def test_a_bundle_that_is_not_there_is_wrong_use(published, tmp_path):
    with pytest.raises(InvalidInputError, match="is not a file"):
        list(verify(Workspace.open(published[0]), tmp_path / "none.json"))


def test_each_draft_of_a_bundle_is_verified_by_itself(published, tmp_path):
    drafts = ("shallow", "ngram")
    parts = []
    for draft in drafts:
        (tmp_path / f"{draft}.json").write_text(published[1][draft])
        parts.append(read_bundle(tmp_path / f"{draft}.json"))
    whole = join(*parts)
    (path,) = publish(whole, tmp_path / "sound")
    found = list(verify(Workspace.open(published[0]), path, prompts=1, seed=1))
    assert [(one.draft, one.session) for one in found] == [
        (draft, whole.session.id) for draft in sorted(drafts)
    ]
    assert not [check for one in found for check in one.checks if check.status == "fails"]
    false = [
        trial.model_copy(update={"token_ids": (*trial.token_ids[:-1], trial.token_ids[-1] ^ 1)})
        if trial.arm == "ngram" and trial.decode_tokens
        else trial
        for trial in whole.trials
    ]
    (path,) = publish(whole.model_copy(update={"trials": tuple(false)}), tmp_path / "false")
    found = list(verify(Workspace.open(published[0]), path, prompts=1, seed=1))
    assert {one.draft: [check.name for check in one.checks if check.status == "fails"] for one in found} == {
        "ngram": ["outputs"],
        "shallow": [],
    }
