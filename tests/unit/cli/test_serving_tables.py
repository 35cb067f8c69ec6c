"""Serving boards in the terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from draftrank.board.serving_ranking import build_serving_boards
from draftrank.cli import output, serving_tables
from servings import a_serving, an_arm


@pytest.fixture
def printed(monkeypatch):
    memory = io.StringIO()
    console = Console(file=memory, width=200, highlight=False, emoji=False)
    monkeypatch.setattr(output, "out", console)
    monkeypatch.setattr(serving_tables, "out", console)

    def show(*results):
        for board in build_serving_boards(results):
            serving_tables.print_serving_board(board)
        return memory.getvalue()

    return show


def test_every_concurrency_has_a_column_with_sign_interval_and_rank(printed):
    text = printed(a_serving({"ngram": {1: 1.5, 4: 1.0, 16: 0.7}}, noise=0.005, seed=2))
    (line,) = (line for line in text.splitlines() if line.startswith("ngram"))
    assert "+1.50×" in line
    assert "~1.0" in line
    assert "-0.70×" in line
    assert "#1" in line
    assert "between 1 and 16" in line
    assert "vLLM 0.32 bf16 · vllm-cpu · quick · cpu-2core · 2026-11-30" in text
    assert "plain server tok/s: 3" in text


def test_the_best_k_is_named_at_each_concurrency(printed):
    arms = {"ngram-k2": an_arm("ngram-k2", 2), "ngram-k5": an_arm("ngram-k5", 5)}
    speedups = {"ngram-k5": {1: 1.5, 4: 1.2, 16: 0.7}, "ngram-k2": {1: 1.2, 4: 1.2, 16: 0.9}}
    text = printed(a_serving(speedups, arms=arms, seed=1))
    assert "best k of ngram: 5 at 1, 2 or 5 at 4, 2 at 16 in flight" in text
    assert "joined by “or” are not told apart" in " ".join(text.split())
    assert "best k" not in printed(a_serving()).removeprefix(text)


def test_what_is_not_ranked_is_told_with_its_reason(printed):
    arms = {"dead": an_arm("dead", draft=None, failure="no memory")}
    text = printed(a_serving({"dead": 1.0}, arms=arms, rate=2.0, warnings=("two groups",)))
    assert "not ranked: dead: failed: no memory" in text
    assert "2 requests/s" in text
    assert "two groups" in text
    old = printed(a_serving(draftrank_version="0.1.0"))
    assert "archived: measured by draftrank 0.1" in old
