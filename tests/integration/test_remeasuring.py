"""Published boards measured again, those of suites that no file declares too."""

from __future__ import annotations

import pytest

from draftrank.board.ranking import build_boards
from draftrank.board.reproduce import SEARCH
from draftrank.catalog.workspace import Workspace
from draftrank.jobs.session import plan_run
from draftrank.measure.sessions.session import run_session
from draftrank.store.store import Store
from draftrank.workflows import remeasure
from draftrank.workflows.declared_alike import check_tasks
from listening import Listening
from workspaces import plain_request, run_drafts, write_prompts


@pytest.fixture
def again(workspace_root, monkeypatch):
    """Measures the n-gram draft of the only board of a session again, whatever its speed: result or None, and messages."""
    monkeypatch.setenv("DRAFTRANK_WATCH", "off")
    monkeypatch.setattr(remeasure, "leaders", lambda *_: ("ngram",))
    workspace, told = Workspace.open(workspace_root), Listening()

    def run(result):
        (board,) = build_boards([result])
        with Store.open(workspace.store_url) as store:
            found = remeasure.remeasure(workspace, board, store, most=1, progress=told)
        return found and found.result, told.messages

    return run


def searched(root):
    """A session of a suite that `search` named by itself."""
    workspace = Workspace.open(root)
    suite = workspace.suite("quick")
    plan = plan_run(
        workspace,
        plain_request("tiny", ("ngram",)),
        suite=suite.model_copy(update={"id": f"{suite.id}{SEARCH}"}),
    )
    with Store.open(workspace.store_url) as store:
        return run_session(plan, store)


def same_board(one, other):
    (before,), (after,) = build_boards([one]), build_boards([other])
    return one.session.id != other.session.id and before.key == after.key


@pytest.mark.parametrize(
    ("suite", "measure"),
    [
        ("quick", lambda root: run_drafts(root, "ngram")),
        ("quick-custom", lambda root: run_drafts(root, "ngram", tasks=("small",), repeats=3)),
        ("quick-search", searched),
    ],
)
def test_a_board_is_measured_again_in_its_own_suite(workspace_root, again, suite, measure):
    result = measure(workspace_root)
    assert result.session.suite == suite
    found, _ = again(result)
    assert found is not None
    assert same_board(result, found)
    assert found.session.repeats == result.session.repeats


def test_a_session_of_a_search_is_of_the_suite_that_it_searched_on(workspace_root):
    checks, _ = check_tasks(Workspace.open(workspace_root), searched(workspace_root).session)
    assert [(check.name, check.status) for check in checks] == [("task small", "holds"), ("suite", "holds")]


def test_a_board_of_other_prompts_or_of_another_target_is_left_out_and_why(workspace_root, again):
    result = run_drafts(workspace_root, "ngram", repeats=1)
    prompts = workspace_root / "tasks" / "prompts" / "small.jsonl"
    before = prompts.read_text()
    write_prompts(workspace_root, before.replace("the dog", "the hen"))
    found, (told,) = again(result)
    assert found is None
    assert f"the prompts of small are not those of session {result.session.id}" in told
    assert "`draftrank run`" in told
    write_prompts(workspace_root, before)
    target = workspace_root / "drafts" / "tiny" / "target.yaml"
    target.write_text(target.read_text().replace("prompt_format: completion", "prompt_format: chat"))
    found, (*_, told) = again(result)
    assert found is None
    assert "tiny is declared otherwise here" in told
    (workspace_root / "tasks" / "suites" / "quick.yaml").unlink()
    found, (*_, told) = again(result)
    assert found is None
    assert "there is no suite 'quick'" in told
