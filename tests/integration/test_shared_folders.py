"""Built drafts, results and stores that several machines share."""

from __future__ import annotations

import json

import pytest
from sqlalchemy import create_engine, text

from commands import draftrank
from draftrank.building.shared_drafts import LIST
from draftrank.catalog.workspace import Workspace
from draftrank.jobs.execute import execute
from draftrank.jobs.executors.isolated import IsolatedExecutor
from draftrank.jobs.ledger import Ledger
from draftrank.jobs.planning import Plan, plan_jobs
from draftrank.jobs.session import RunRequest, build
from draftrank.progress import SilentProgress
from draftrank.store.store import Store
from listening import Listening
from parities import a_parity, a_turn
from postgresql import running_server
from served_sessions import a_serving_result


@pytest.fixture
def shared(tmp_path, monkeypatch):
    monkeypatch.setenv("DRAFTRANK_SHARED", f"file://{tmp_path}/shared")
    return tmp_path / "shared"


def machine(workspace_root, tmp_path, name):
    """The workspace as another machine sees it: the same declarations, nothing cached."""
    return Workspace(workspace_root, tmp_path / name)


def test_a_draft_is_built_on_one_machine_and_copied_to_the_next(workspace_root, tmp_path, shared):
    (first,) = build(machine(workspace_root, tmp_path, "one"), "tiny", ("shallow",))
    (key,) = [path.name for path in shared.iterdir()]
    assert first.folder.name == key
    heard = Listening()
    (second,) = build(machine(workspace_root, tmp_path, "two"), "tiny", ("shallow",), progress=heard)
    assert second.folder != first.folder
    assert second.build == first.build  # with the time that the first machine took
    assert {path.name for path in second.folder.iterdir()} == {path.name for path in first.folder.iterdir()}


@pytest.mark.parametrize("harm", ["changed", "missing", "climbing", "no list", "not JSON"])
def test_a_shared_draft_that_is_not_whole_is_built_anew(workspace_root, tmp_path, shared, harm):
    (first,) = build(machine(workspace_root, tmp_path, "one"), "tiny", ("shallow",))
    (folder,) = shared.iterdir()
    listed = folder / LIST
    weights = next(folder.glob("*.safetensors"))
    if harm == "changed":
        weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    elif harm == "missing":
        weights.unlink()
    elif harm == "climbing":
        listed.write_text(json.dumps({"../../outside": "0" * 64}))
    elif harm == "no list":
        listed.unlink()
    else:
        listed.write_text("{")
    heard = Listening()
    (second,) = build(machine(workspace_root, tmp_path, "two"), "tiny", ("shallow",), progress=heard)
    assert second.build.weights_sha256 == first.build.weights_sha256
    assert any("of no use" in message for message in heard.messages) == (harm != "no list")
    assert not (tmp_path / "outside").exists()


def test_where_nothing_can_be_shared_the_draft_is_built_all_the_same(workspace_root, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    for name, address in (("one", f"file://{tmp_path}/file"), ("two", "nosuch://bucket/drafts")):
        monkeypatch.setenv("DRAFTRANK_SHARED", address)
        heard = Listening()
        (arm,) = build(machine(workspace_root, tmp_path, name), "tiny", ("shallow",), progress=heard)
        assert arm.build is not None
        assert any("is not shared" in message for message in heard.messages)


def test_a_sweep_shares_what_its_isolated_jobs_build(workspace_root, tmp_path, shared):
    for name, kinds in (("one", ("fetch", "build")), ("two", ("fetch",))):
        workspace = machine(workspace_root, tmp_path, name)
        plan = plan_jobs(workspace, [RunRequest("tiny", ("shallow",), "quick")])
        plan = Plan(tuple(job for job in plan.jobs if job.kind in kinds))
        folder = workspace.state / "sweeps" / "one"
        ledger = Ledger.begin(folder, plan)
        executor = IsolatedExecutor(workspace, folder)
        with Store.open(workspace.store_url) as store:
            execute(ledger, executor, store, SilentProgress())
        executor.close()
        assert {facts.state for facts in ledger.facts.values()} == {"done"}
        assert shared.is_dir()
    assert "copy the shared draft" in next(folder.glob("fetch*.log")).read_text()
    assert len(list((workspace.cache / "drafts").glob("*/draftrank.json"))) == 1


def test_bundles_are_published_to_an_address_and_imported_from_there(measured_root, tmp_path):
    address = f"file://{tmp_path}/results"
    published = draftrank(measured_root, "publish", "--to", address, "--json")
    assert published.code == 0
    assert all(name.startswith(address) for name in published.json["files"])
    elsewhere = {"DRAFTRANK_STATE": str(tmp_path / "elsewhere")}
    imported = draftrank(measured_root, "import", address, "--json", **elsewhere)
    assert len(imported.json["files"]) == len(published.json["files"])
    board = draftrank(measured_root, "board", "--json", **elsewhere).json
    assert {row["draft"] for row in board["rows"]} >= {"ngram"}
    for wrong, words in (
        (f"file://{tmp_path}/empty", "holds no .json file"),
        ("nosuch://bucket", "cannot be reached"),
    ):
        said = draftrank(measured_root, "import", wrong)
        assert said.code == 2
        assert words in said.err


def test_parity_records_and_serving_sessions_are_published_to_an_address_too(measured_root, tmp_path):
    parity = a_parity([a_turn()]).model_copy(update={"id": "2026-11-30-abcdef012345"})
    served = a_serving_result()
    with Store.open(Workspace.open(measured_root).store_url) as store:
        store.add_parity(parity)
        store.serving.add_result(served)
    address = f"file://{tmp_path}/results"
    for record in (parity.id, served.session.id):
        published = draftrank(measured_root, "publish", record, "--to", address, "--json")
        assert published.code == 0, published.err
        assert [name.startswith(address) for name in published.json["files"]] == [True]
    elsewhere = {"DRAFTRANK_STATE": str(tmp_path / "elsewhere")}
    imported = draftrank(measured_root, "import", address, "--json", **elsewhere)
    assert len(imported.json["files"]) == 2
    with Store.open(tmp_path / "elsewhere" / "results.sqlite") as store:
        assert [one.id for one in store.parities()] == [parity.id]
        assert store.serving.results() == (served,)


def test_a_sweep_writes_to_a_server_and_shows_what_it_holds(workspace_root):
    with running_server() as address:
        url = address.format(database="postgres")
        store = {"DRAFTRANK_STORE": url}
        swept = draftrank(workspace_root, "sweep", "-d", "ngram", "--json", **store)
        assert swept.code == 0, swept.err
        assert "secret" not in swept.out + swept.err
        board = draftrank(workspace_root, "board", "--json", **store).json
        assert {row["draft"] for row in board["rows"]} == {"ngram"}
        engine = create_engine(url)
        with engine.connect() as connection:
            assert connection.execute(text("SELECT count(*) FROM sessions")).scalar() == 1
        engine.dispose()
        # The same command finds it measured, and `run` goes to the server as well.
        again = draftrank(workspace_root, "sweep", "-d", "ngram", "--json", **store)
        assert again.json["jobs"] == []
        assert draftrank(workspace_root, "run", "-d", "ngram", "--json", **store).code == 0
        assert len(draftrank(workspace_root, "board", "--json", **store).json["rows"]) == 1
