"""transformers' `generate` measured beside the engine's own arms, and shown beside them."""

from __future__ import annotations

import pytest

from commands import draftrank, several
from draftrank import DecodingMode, Store, Workspace, build_boards, render_site
from draftrank.board.as_json import board_document
from draftrank.board.site.addresses import board_page
from draftrank.engine.backends.transformers.generate import GenerateDecoder
from draftrank.errors import InvalidInputError
from draftrank.store.bundle import load_results, publish, read_bundle
from workspaces import run_drafts

ALL = ("prompt_lookup", "generate", "assisted")
REFERENCES = ["transformers-assisted-shallow", "transformers-generate", "transformers-prompt-lookup-ngram"]


def measure(root, drafts=("ngram", "shallow"), references=ALL, **changes):
    return run_drafts(root, *drafts, references=references, repeats=1, **changes)


def test_references_decode_the_same_prompts_and_stand_beside_ours(workspace_root):
    result = measure(workspace_root)
    arms = {arm.id: arm for arm in result.session.arms}
    assert sorted(id_ for id_, arm in arms.items() if arm.kind == "reference") == REFERENCES
    assert all(arm.failure is None for arm in arms.values())
    outputs = {}
    for trial in result.trials:
        outputs.setdefault((trial.prompt, trial.turn), []).append(trial.token_ids)
    assert all(len(found) == 7 and len(set(found)) == 1 for found in outputs.values())
    (board,) = build_boards([result])
    assert sorted(row.draft for row in board.rows) == ["ngram", "shallow"]
    beside = {row.id: row for row in board.references}
    assert sorted(beside) == REFERENCES
    ours = {row.draft: row.tokens_per_second for row in board.rows}
    assisted = beside["transformers-assisted-shallow"]
    assert (assisted.beside, assisted.beside_tokens_per_second) == ("shallow", ours["shallow"])
    assert beside["transformers-generate"].beside == "baseline"
    assert beside["transformers-generate"].acceptance_length == 1.0
    for row in beside.values():
        assert row.speedup > 0
        assert row.implementation.startswith("transformers 5")
        assert row.fidelity == "identical"
        assert len(row.differs) > 1


def test_sampling_sessions_have_references_too(workspace_root):
    result = measure(workspace_root, mode=DecodingMode(temperature=0.8, top_k=20, top_p=0.95))
    assert all(arm.failure is None for arm in result.session.arms)
    assert {trial.arm for trial in result.trials} >= set(REFERENCES)


def test_an_equal_request_measures_nothing_and_another_is_another_session(workspace_root):
    first = measure(workspace_root)
    assert measure(workspace_root, references=("generate", "assisted", "prompt_lookup", "generate")) == first
    other = measure(workspace_root, references=("generate",))
    assert other.session.id != first.session.id


def test_bundles_carry_the_references_of_their_draft_and_become_one_session_again(workspace_root, tmp_path):
    result = measure(workspace_root)
    held = {}
    for draft in ("ngram", "shallow"):
        (file,) = publish(result, tmp_path / "bundles", (draft,))
        held[draft] = {arm.id for arm in read_bundle(file).session.arms}
    (joined,) = load_results(None, tmp_path / "bundles")
    assert {arm.id for arm in joined.session.arms} == {arm.id for arm in result.session.arms}
    assert sorted(trial.key for trial in joined.trials) == sorted(trial.key for trial in result.trials)
    common = {"baseline", "baseline-control", "transformers-generate"}
    assert held["ngram"] == common | {"ngram", "transformers-prompt-lookup-ngram"}
    assert held["shallow"] == common | {"shallow", "transformers-assisted-shallow"}


def test_a_reference_that_crashes_does_not_stop_the_others(workspace_root, monkeypatch):
    decode = GenerateDecoder.decode

    def breaking(self, request):
        if self._draft is not None:
            raise RuntimeError("no assistance today")
        return decode(self, request)

    monkeypatch.setattr(GenerateDecoder, "decode", breaking)
    result = measure(workspace_root)
    (board,) = build_boards([result])
    failures = {row.id: row.failure for row in board.references}
    assert "no assistance today" in failures.pop("transformers-assisted-shallow")
    assert set(failures.values()) == {None}
    assert {row.draft: row.speedup is not None for row in board.rows} == {"ngram": True, "shallow": True}


def test_a_reference_without_a_suitable_draft_is_refused_before_anything_is_built(workspace_root):
    for method, draft, needed in (
        ("assisted", "ngram", "model of its own"),
        ("prompt_lookup", "shallow", "ngram"),
    ):
        with pytest.raises(InvalidInputError, match=needed):
            measure(workspace_root, drafts=(draft,), references=(method,))


def test_they_are_on_the_terminal_in_the_json_and_on_the_site(workspace_root, tmp_path):
    arguments = ["run", "--draft", "ngram", "--repeats", "1", "--json"]
    ran = draftrank(workspace_root, *arguments, "--reference", "generate", "--reference", "prompt-lookup")
    assert ran.code == 0, ran.err
    shown, board, refused = several(
        workspace_root,
        ["show", "transformers-prompt-lookup-ngram", "--json"],
        ["board"],
        [*arguments, "--reference", "vllm"],
    )
    document = ran.json
    assert [row["id"] for row in document["references"]] == REFERENCES[1:]
    assert document["references"] == document["boards"][0]["references"]
    for row in document["references"]:
        assert row["beside"] in ("baseline", "ngram")
        for sentence in row["differs"]:
            assert sentence in ran.out
            assert sentence in board.out
    assert "reference: transformers 5" in board.out
    assert shown.json["arms"][0]["arm"]["reference"]["method"] == "prompt_lookup"
    assert "earliest match" in " ".join(shown.out.split())
    assert refused.code == 2
    workspace = Workspace.open(workspace_root)
    with Store.open(workspace.store_url) as store:
        boards = build_boards(load_results(store, None))
    assert board_document(boards)["references"] == document["references"]
    render_site(boards, tmp_path / "site")
    page = (tmp_path / "site" / board_page(boards[0].key)).read_text()
    assert "Other implementations in the same session" in page
    assert "earliest match" in page
