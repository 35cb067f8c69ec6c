"""The JSON document that scripts read."""

from __future__ import annotations

import json

from builders import arm_of, result
from draftrank.board.as_json import board_document
from draftrank.board.ranking import build_boards

ROW_FIELDS = {
    "board", "draft", "title", "rank", "ranked", "reason", "gates", "speedup", "ci", "acceptance_length",
    "acceptance_rate", "draft_cost", "predicted_speedup", "engine_efficiency", "best_k", "best_k_extrapolated", "tokens_per_second", "per_length", "per_task", "proposer", "techniques", "trained", "k", "parameters", "complete",
    "bytes_on_disk", "build_s", "peak_memory_bytes", "fidelity", "session", "measured_at", "recipe_sha256",
    "weights_sha256", "reproduce", "lossy", "quality", "baseline_quality",
    "ahead", "outliers", "remarks", "backend", "dtype", "earlier_recipe",
}  # fmt: skip


def document(*results):
    found = board_document(build_boards(results))
    return json.loads(json.dumps(found, allow_nan=False)), found


def test_one_board_stands_at_the_top():
    arms = [arm_of("a"), arm_of("dead", draft=None, failure="no", peak_memory_bytes=None)]
    plain, found = document(result({"a": 2.0}, arms=arms, warnings=("slow disk",)))
    assert plain == found  # only plain JSON values: nothing changed on the way
    ranked, failed = plain["rows"]
    assert set(ranked) == ROW_FIELDS
    assert set(failed) == ROW_FIELDS
    assert ranked["rank"] == [1, 1]
    assert ranked["ci"][0] <= ranked["speedup"] <= ranked["ci"][1]
    assert ranked["fidelity"] == {
        "status": "identical",
        "exact_match": 1.0,
        "ties": 0,
        "breaks": 0,
        "agreement": 1.0,
    }
    assert set(ranked["per_task"]["math"]) == {"speedup", "ci", "acceptance_length", "tokens_per_second"}
    assert isinstance(ranked["per_task"]["math"]["ci"], list)
    assert (failed["rank"], failed["ranked"], failed["speedup"], failed["ci"]) == (None, False, None, None)
    assert failed["reason"] == "failed: no"
    assert failed["gates"][0] == "failed"
    assert plain["target"] == "tiny-target"
    assert plain["machine"]["machine_class"] == "cpu-2core"
    assert plain["warnings"] == ["slow disk"]
    assert 9 < plain["baseline_tokens_per_second"] < 11
    low, high = plain["noise"]["ci"]
    assert low <= plain["noise"]["speedup"] <= high


def test_rows_of_several_boards_name_theirs():
    plain, _ = document(result({"a": 2.0}), result({"a": 1.5}, id="20261102-b", dtype="bf16"))
    assert "target" not in plain
    assert {row["board"] for row in plain["rows"]} == {board["id"] for board in plain["boards"]}
    assert [board["dtype"] for board in plain["boards"]] == ["bf16", "fp32"]


def test_nothing_measured_is_an_empty_document():
    plain, _ = document()
    assert (plain["rows"], plain["boards"]) == ([], [])
