"""The command on a draft's page is one that the command line takes, and names the same run."""

from __future__ import annotations

import shlex

import pytest
import typer

from builders import result
from draftrank.board.reproduce import reproduce_command, serve_command
from draftrank.catalog.decoding_mode import DecodingMode
from draftrank.cli.main import app
from served_sessions import a_serving_session


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"dtype": "bf16", "device": "cuda", "seed": 3},
        {"mode": DecodingMode(temperature=0.7, top_p=0.9, top_k=40)},
        {"suite": "quick-custom", "repeats": 5},
    ],
)
def test_the_command_parses_to_the_sessions_own_settings(changes):
    session = result({"a": 2.0}).session.model_copy(update=changes)
    words = shlex.split(reproduce_command(session, "a"))
    assert words[:2] == ["draftrank", "run"]
    command = typer.main.get_command(app).commands["run"]
    found = command.make_context("run", words[2:]).params
    assert found["target"] == session.target
    assert found["draft"] == ["a"]
    assert found["suite"] == session.suite.removesuffix("-custom")
    assert (found["dtype"], found["device"], found["seed"]) == (session.dtype, session.device, session.seed)
    (temperature,) = found["temperature"] or (0.0,)
    assert (temperature, found["top_p"], found["top_k"]) == (
        session.mode.temperature,
        session.mode.top_p,
        session.mode.top_k,
    )
    custom = session.suite.endswith("-custom")
    assert (found["repeats"] is not None) == custom
    assert bool(found["task"]) == custom


@pytest.mark.parametrize(
    ("changes", "asked"),
    [
        ({}, {}),
        ({"seed": 3, "rate": 2.5}, {}),
        ({"suite": "quick-custom"}, {"task": ["code"], "prompts": 2}),
    ],
)
def test_the_command_of_a_serving_session_parses_to_its_settings(changes, asked):
    session = a_serving_session(("ngram", "suffix"), **changes)
    words = shlex.split(serve_command(session))
    assert words[:2] == ["draftrank", "serve-bench"]
    found = typer.main.get_command(app).commands["serve-bench"].make_context("serve-bench", words[2:]).params
    same = ("target", "server", "rounds", "rate", "seed")
    assert {name: found[name] for name in same} == {name: getattr(session, name) for name in same}
    assert (found["draft"], tuple(found["concurrency"])) == (["ngram", "suffix"], session.concurrencies)
    assert (found["suite"], found["task"] or [], found["prompts"]) == (
        "quick",
        asked.get("task", []),
        asked.get("prompts"),
    )
    assert not found["k"]


def test_the_command_of_a_serving_session_names_every_k_that_is_not_the_recipes():
    session = a_serving_session(("ngram", "suffix"))
    arms = [arm.model_copy(update={"num_speculative_tokens": k}) for arm in session.arms[2:] for k in (2, 8)]
    several = session.model_copy(update={"arms": (*session.arms[:2], *_declaring(arms, 4))})
    words = shlex.split(serve_command(several))
    assert [words[place + 1] for place, word in enumerate(words) if word == "--k"] == ["2", "8"]
    assert words.count("--draft") == 2


def _declaring(arms, k):
    for arm in arms:
        recipe = {**arm.draft.recipe, "speculate": {"num_speculative_tokens": k}}
        yield arm.model_copy(update={"draft": arm.draft.model_copy(update={"recipe": recipe})})
