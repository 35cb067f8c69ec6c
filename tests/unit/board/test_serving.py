"""Serving boards: which sessions go together, who leads at which concurrency, and what the documents say."""

from __future__ import annotations

import json

import jsonschema
import pytest

from builders import build
from draftrank.board.as_json import serving_document
from draftrank.board.serving_ranking import COUNTED, build_serving_boards
from draftrank.board.site.index_schema import index_schema
from servings import a_serving, an_arm, with_requests

CURVE = {1: 1.5, 4: 1.2, 16: 0.8}
FLAT = {1: 1.2, 4: 1.15, 16: 1.1}


def only(*results):
    (board,) = build_serving_boards(results)
    return board


def rows_of(board):
    return {row.draft: row for row in board.rows}


def test_each_concurrency_has_its_own_leader_and_ranks():
    board = only(a_serving({"steep": CURVE, "flat": FLAT}))
    steep, flat = rows_of(board)["steep"], rows_of(board)["flat"]
    assert (steep.best[1].rank, flat.best[1].rank) == ((1, 1), (2, 2))
    assert (steep.best[16].rank, flat.best[16].rank) == ((2, 2), (1, 1))
    assert [board.leader(at).draft for at in board.concurrencies] == ["steep", "steep", "flat"]
    assert [row.draft for row in board.rows] == ["flat", "steep"]  # 1.52 and 1.44 over all
    assert steep.best[16].answer == "slower"
    assert (steep.switch_off.at, steep.switch_off.words) == (16, "between 4 and 16")
    assert flat.switch_off.words == "beyond 16"


def test_equal_drafts_share_their_ranks():
    board = only(a_serving({"a": 1.3, "b": 1.3}, seed=3))
    assert {row.best[4].rank for row in board.rows} == {(1, 2)}


def test_where_nothing_pays_there_is_no_leader():
    board = only(a_serving({"slow": 0.8, "even": 1.0}))
    assert [board.leader(at) for at in board.concurrencies] == [None, None, None]
    assert rows_of(board)["even"].best[4].answer == "can't tell"


def test_of_several_k_the_best_one_is_shown_at_each_concurrency():
    arms = {"ngram-k2": an_arm("ngram-k2", 2), "ngram-k5": an_arm("ngram-k5", 5)}
    board = only(
        a_serving({"ngram-k5": {1: 1.5, 4: 1.0, 16: 0.7}, "ngram-k2": {1: 1.3, 4: 1.2, 16: 1.1}}, arms=arms)
    )
    (row,) = board.rows
    assert {at: found.k for at, found in row.best.items()} == {1: 5, 4: 2, 16: 2}
    assert [figures[0].k for figures in row.arms] == [2, 5]
    assert board.several_k == (row,)
    assert row.switch_off.words == "beyond 16"
    assert row.best[1].rank == (1, 1)
    assert {found.rank for figures in row.arms for found in figures} == {None}


def test_the_best_k_is_named_where_it_is_surely_faster():
    arms = {f"ngram-k{k}": an_arm(f"ngram-k{k}", k) for k in (1, 2, 5)}
    drafts = {
        "ngram-k1": {1: 1.2, 4: 1.3, 16: 0.9},
        "ngram-k2": {1: 1.3, 4: 1.3, 16: 0.8},
        "ngram-k5": {1: 1.5, 4: 1.1, 16: 0.7},
    }
    board = only(a_serving({**drafts, "suffix": 1.1}, arms=arms, seed=3))
    row = rows_of(board)["ngram"]
    assert row.best_k == {1: (5,), 4: (1, 2), 16: (1,)}
    assert [row.best_k_words(at) for at in (1, 4, 16, 64)] == ["5", "1 or 2", "1", "–"]
    assert rows_of(board)["suffix"].best_k == {}
    ((document,),) = [one["rows"] for one in serving_document([only(a_serving(drafts, arms=arms, seed=3))])]
    assert document["best_k"] == {"1": [5], "4": [1, 2], "16": [1]}


def test_a_k_that_failed_a_gate_is_not_the_best():
    arms = {"ngram-k2": an_arm("ngram-k2", 2), "ngram-k5": an_arm("ngram-k5", 5, failure="no memory")}
    (row,) = only(a_serving({"ngram-k5": 2.0, "ngram-k2": 1.2}, arms=arms)).rows
    assert {found.k for found in row.best.values()} == {2}
    assert row.best_k == {}  # nothing to compare it with


def test_acceptance_from_the_servers_counters_is_marked_as_a_bound():
    def counted(one):
        return with_requests(one, lambda r: r.model_copy(update={"accepted": None, "proposed": None}))

    assert only(a_serving()).rows[0].differs == ()
    (row,) = only(a_serving(change=counted)).rows
    assert row.differs == (COUNTED,)
    assert row.best[4].acceptance_length == only(a_serving()).rows[0].best[4].acceptance_length


def test_what_fails_a_gate_is_shown_with_its_reason_and_not_ranked():
    def busy(one):
        return one.model_copy(update={"client_cpu": 0.9}) if one.concurrency == 16 else one

    arms = {"dead": an_arm("dead", draft=None, failure="the server ended with code 1")}
    board = only(
        a_serving(
            {"ngram": 1.3, "dead": 1.0},
            arms=arms,
            change=lambda one: None if one.arm == "dead" else busy(one),
        )
    )
    ngram, dead = rows_of(board)["ngram"], rows_of(board)["dead"]
    assert ngram.best[4].ranked
    assert not ngram.best[16].ranked
    (reason,) = ngram.reasons
    assert reason.startswith("at 16: the client was the bottleneck")
    assert ngram.switch_off.words == "beyond 4"
    assert dead.reasons == ("failed: the server ended with code 1",)
    assert dead.switch_off.words == "unknown"
    assert not dead.ranked
    assert [row.draft for row in board.rows] == ["ngram", "dead"]
    assert [cell.concurrency for cell in board.frontier] == [1, 4]


@pytest.mark.parametrize(
    "changes",
    [
        {"engine_version": "0.33.0"},
        {"engine": "llama.cpp"},
        {"dtype": "fp32"},
        {"server_sha256": "1" * 64},
        {"rate": 2.0},
        {"suite_sha256": "2" * 64},
        {"target_weights_sha256": "3" * 64},
        {"draftrank_version": "0.1.0"},
    ],
)
def test_boards_never_mix(changes):
    first, other = a_serving(), a_serving(seed=1, **changes)
    assert len(build_serving_boards([first, other])) == 2


def test_boards_never_mix_prompts_or_their_limits():
    first = a_serving()
    fewer = a_serving(seed=1, turns=first.session.turns[:8])
    assert len(build_serving_boards([first, fewer])) == 2
    # The plain server's outputs may differ by rounding from session to session.
    turn = first.session.turns[0]
    other = turn.model_copy(update={"token_ids": turn.token_ids[:-1]})
    again = a_serving(seed=1, turns=[other, *first.session.turns[1:]])
    assert len(build_serving_boards([first, again])) == 1


def test_patches_of_engine_and_draftrank_share_a_board_and_the_newest_ranked_result_stands():
    early = a_serving({"a": 1.2, "b": 1.3}, engine_version="0.32.0", finished_at="2026-11-29T10:00:00Z")
    late = a_serving(
        {"a": 1.4}, seed=1, engine_version="0.32.1", id="2026-12-01-x", finished_at="2026-12-01T10:00:00Z"
    )
    board = only(late, early)
    assert board == only(early, late)
    rows = rows_of(board)
    assert rows["a"].session == "2026-12-01-x"
    assert rows["b"].best[1].speedup == pytest.approx(1.3, rel=0.05)
    assert rows["a"].best[1].rank in {(1, 1), (1, 2)}
    assert [session.record.id for session in board.sessions] == ["2026-12-01-x", early.session.id]
    broken = a_serving({"a": 9.9}, seed=2, rounds=2, id="2026-12-02-y", finished_at="2026-12-02T10:00:00Z")
    again = only(late, early, broken)
    assert rows_of(again)["a"].session == "2026-12-01-x"
    assert again.sessions == board.sessions  # the head shows no plain server beside which no row was measured


def test_a_session_that_went_on_counts_once():
    whole = a_serving()
    half = whole.model_copy(update={"rounds": whole.rounds[:20]})
    assert only(half, whole) == only(whole)


def test_the_frontier_is_what_nothing_beats_for_the_user_and_in_total():
    board = only(a_serving({"good": 1.4, "bad": 0.6}, noise=0.001))
    assert {cell.arm for cell in board.frontier} == {"good"}
    assert [cell.concurrency for cell in board.frontier] == [1, 4, 16]
    pairs = [(cell.per_user, cell.throughput) for cell in board.frontier]
    assert pairs == sorted(pairs, key=lambda pair: -pair[0])
    assert [cell.arm for cell in board.plain_frontier] == ["baseline"] * 3


def test_an_engine_method_without_a_recipe_of_ours_is_named_by_its_method():
    own = build("mtp", recipe={"id": "mtp", "draft": {"kind": "engine_method", "method": "mtp"}})
    board = only(a_serving({"mtp": 1.3}, arms={"mtp": an_arm("mtp", draft=own)}))
    assert rows_of(board)["mtp"].title == "mtp"


def document(*results):
    whole = {"schema_version": 1, "boards": [], "rows": [], "parities": []}
    return json.loads(json.dumps(whole | {"servings": serving_document(build_serving_boards(results))}))


def test_the_document_follows_its_schema():
    arms = {"dead": an_arm("dead", draft=None, failure="no memory")}
    found = document(
        a_serving({"steep": CURVE}),
        a_serving({"dead": 1.0}, seed=1, arms=arms, dtype="fp32", rounds=1, rate=2.0),
    )
    jsonschema.validate(found, index_schema())
    (steep,) = (
        found["servings"][-1]["rows"]
        if found["servings"][-1]["dtype"] == "bf16"
        else found["servings"][0]["rows"]
    )
    assert steep["best"]["1"]["speedup"] == pytest.approx(1.5, rel=0.05)
    assert steep["switch_off_words"] == "between 4 and 16"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(found | {"servings": [{"id": "x"}]}, index_schema())


def test_nothing_in_the_document_is_infinite_where_a_session_has_nothing():
    empty = a_serving(change=lambda one: with_requests(one, lambda _: None))
    json.dumps(document(empty), allow_nan=False)
