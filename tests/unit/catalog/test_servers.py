"""Servers as they are declared, and drafts that only external engines run."""

from __future__ import annotations

import pytest

from draftrank.catalog.formatting import is_canonical
from draftrank.catalog.server import Server
from draftrank.catalog.starters import start
from draftrank.catalog.workspace import Workspace
from draftrank.errors import InvalidInputError
from draftrank.jobs.session import choose_recipes, plan_run
from workspaces import REPOSITORY, plain_request, write_draft, write_workspace

SERVER = """\
schema_version: 1
id: mine
title: Mine
engine: vllm
dtype: bf16
context: 512
"""
METHOD = "kind: engine_method\n  method: suffix\n  options: {depth: 3}"


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    return Workspace.open(write_workspace(tmp_path))


def declare(workspace: Workspace, text: str) -> Server:
    path = workspace.root / "tasks" / "servers" / "mine.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return workspace.server("mine")


def test_the_servers_of_the_repository_compute_in_the_dtype_that_people_serve_in_or_say_so():
    servers = Workspace.open(REPOSITORY).check().servers
    assert {server.id: (server.engine, server.dtype) for server in servers} == {
        "vllm-cpu": ("vllm", "bf16"),
        "vllm-cpu-fp32": ("vllm", "fp32"),
        "llama-server": ("llama.cpp", "bf16"),
    }


def test_a_new_server_is_valid_and_found(workspace):
    path = start(workspace, "server", "new-one")
    assert is_canonical(path, Server)
    assert workspace.server("new-one").max_requests == 16
    assert [one.id for one in workspace.check().servers] == ["new-one"]


@pytest.mark.parametrize(
    ("more", "field", "told"),
    [
        ("flags: [--port=1]\n", None, "set by draftrank"),
        ("flags: [--api-key, secret]\n", None, "set by draftrank"),
        ("attach: {url: 'http://example.org'}\n", "attach.url", "pattern"),
        ("attach: {url: 'https://user:secret@example.org'}\n", "attach.url", "pattern"),
        ("attach: {url: 'https://example.org'}\nflags: [--x]\n", None, "`attach` names one that runs"),
        ("attach: {url: 'https://example.org', token: secret}\n", "attach.token", "not a known field"),
        ("engine: lm-studio\n", None, "found more than once|not a known|vllm"),
    ],
)
def test_what_cannot_be_is_refused_with_its_field(workspace, more, field, told):
    text = SERVER.replace("engine: vllm\n", "") if more.startswith("engine") else SERVER
    with pytest.raises(InvalidInputError, match=told) as error:
        declare(workspace, text + more)
    assert field is None or error.value.problems[0].field == field


def test_an_address_on_this_machine_or_by_https_is_taken(workspace):
    found = declare(
        workspace,
        SERVER
        + "attach: {url: 'http://127.0.0.1:8000', drafts: {ngram: 'https://a.org'}, token_env: TOKEN}\n",
    )
    assert found.attach is not None
    assert found.attach.drafts == {"ngram": "https://a.org"}


def test_only_what_decides_speed_makes_a_server_another_one(workspace):
    one = declare(workspace, SERVER)
    assert declare(workspace, SERVER.replace("Mine", "Ours")).content_sha256() == one.content_sha256()
    assert declare(workspace, SERVER + "max_requests: 8\n").content_sha256() != one.content_sha256()


def test_a_method_of_engines_is_declared_and_not_run_here(workspace):
    write_draft(workspace.root, "tree", METHOD)
    assert not workspace.check().problems
    assert workspace.recipe("tiny", "tree").draft.techniques == ("suffix",)
    assert [recipe.id for recipe in choose_recipes(workspace, "tiny", ())] == ["ngram"]
    with pytest.raises(InvalidInputError, match="draftrank serve-bench tiny --draft tree"):
        plan_run(workspace, plain_request("tiny", ("tree",)))


def test_a_methods_weights_come_from_the_hub_or_a_folder(workspace):
    source = "method: suffix\n  source: {kind: inline, prompts: []}"
    write_draft(workspace.root, "tree", METHOD.replace("method: suffix", source))
    with pytest.raises(InvalidInputError):
        workspace.recipe("tiny", "tree")
