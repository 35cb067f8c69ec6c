"""The command on a draft's page is one that the command line takes, and names the same run."""

from __future__ import annotations

import shlex

import pytest
import typer

from builders import result
from draftrank.board.reproduce import reproduce_command
from draftrank.catalog.decoding_mode import DecodingMode
from draftrank.cli.main import app


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
