"""What concurrency does to each technique, from serving boards whose truth is known."""

from __future__ import annotations

import pytest

from draftrank.board.concurrency import effect_of_concurrency, served_techniques
from draftrank.board.serving_ranking import build_serving_boards
from servings import a_serving, a_turn, an_arm

FALLS = {1: 1.5, 4: 1.0, 16: 0.7}
RISES = {1: 1.1, 4: 1.2, 16: 1.4}
LLAMA = {"engine": "llama.cpp", "engine_version": "b11434", "server": "llama-server"}


def an_arm_of(name, method, k=3):
    return an_arm(name, k, speculation={"method": method, "num_speculative_tokens": k})


def a_session(drafts, methods, **changes):
    arms = {name: an_arm_of(name, method) for name, method in methods.items()}
    return a_serving(drafts, arms=arms, noise=0.005, **changes)


def found(*results):
    return served_techniques(build_serving_boards(results))


def test_a_technique_is_what_the_server_ran_by_whatever_name():
    methods = {
        "mtp": "mtp",
        "head": "eagle3",
        "small": "draft_model",
        "suffix": "suffix",
        "copies": "ngram",
    }
    here = a_session(dict.fromkeys(methods, 1.2), methods)
    methods = {
        "head": "draft-eagle3",
        "small": "draft-simple",
        "copies": "ngram-simple",
        "cache": "ngram-cache",
    }
    there = a_session(dict.fromkeys(methods, 1.2), methods, seed=1, **LLAMA)
    both = found(here, there)
    assert list(both) == ["n-gram", "suffix decoding", "draft model", "EAGLE-3 head", "mtp", "ngram-cache"]
    engines = {technique: [one.board.key.engine for one in of_one] for technique, of_one in both.items()}
    assert engines == {
        "n-gram": ["llama.cpp", "vllm"],
        "suffix decoding": ["vllm"],
        "draft model": ["llama.cpp", "vllm"],
        "EAGLE-3 head": ["llama.cpp", "vllm"],
        "mtp": ["vllm"],
        "ngram-cache": ["llama.cpp"],
    }


def test_of_boards_that_differ_in_their_prompts_alone_the_newest_that_ranks_a_technique_counts():
    methods = {"copies": "ngram", "head": "eagle3"}
    old = a_session({"copies": 1.4, "head": 1.3}, methods, finished_at="2026-11-01T10:00:00Z")
    turns = [a_turn(index, 24) for index in range(7)]
    changes = {"id": "2026-12-01-new", "finished_at": "2026-12-01T10:00:00Z", "turns": turns, "seed": 1}
    new = a_session({"copies": 1.2}, {"copies": "ngram"}, **changes)
    both = found(old, new)
    assert [one.board.newest.record.id for one in both["n-gram"]] == ["2026-12-01-new"]
    assert [one.board.newest.record.id for one in both["EAGLE-3 head"]] == [old.session.id]
    assert {one.where for of_one in both.values() for one in of_one} == {"tiny-target in vLLM 0.32 bf16"}


def test_a_speedup_falls_or_rises_only_where_its_ends_do_not_overlap():
    drafts = {"copies": FALLS, "head": RISES, "small": 1.2}
    one = found(a_session(drafts, {"copies": "ngram", "head": "eagle3", "small": "draft_model"}))
    trends = {technique: of_one[0].trend for technique, of_one in one.items()}
    assert trends == {"n-gram": "falls", "EAGLE-3 head": "rises", "draft model": "can't tell"}
    (copies,) = one["n-gram"]
    first, last = copies.row.best[1], copies.row.best[16]
    assert copies.reverses
    assert copies.finding == (
        f"falls from {first.speedup:.2f}× at 1 request in flight to {last.speedup:.2f}× at 16 "
        f"(switch-off: {copies.row.switch_off.words})"
    )
    assert first.speedup == pytest.approx(1.5, rel=0.03)
    assert "which are not told apart (switch-off: beyond 16)" in one["draft model"][0].finding
    sentence = effect_of_concurrency(one)
    assert (
        "falls for 1 of 3 techniques in a server, rises for 1, and is not told apart for 1. For 1 a sure"
        in sentence
    )


def test_of_several_drafts_the_one_that_gains_most_stands_for_the_technique():
    methods = {"weak": "ngram", "strong": "ngram", "dead": "ngram"}
    arms = {name: an_arm_of(name, method) for name, method in methods.items()}
    arms["dead"] = an_arm("dead", failure="no memory")
    (one,) = found(a_serving({"weak": 1.1, "strong": 1.3, "dead": 9.0}, arms=arms))["n-gram"]
    assert one.row.draft == "strong"


def test_a_technique_that_is_ranked_nowhere_is_left_out():
    arms = {"dead": an_arm("dead", failure="no memory")}
    assert found(a_serving({"dead": 1.3}, arms=arms)) == {}
    assert effect_of_concurrency({}) == ""


def test_one_concurrency_shows_no_effect():
    one = found(a_serving({"ngram": 1.3}, concurrencies=(4,)))
    assert one["n-gram"][0].trend is None
    assert "at 4 requests in flight, the only concurrency" in one["n-gram"][0].finding
    assert effect_of_concurrency(one) == ""


def test_an_open_loop_is_left_out():
    assert found(a_serving({"ngram": 1.3}, rate=2.0)) == {}


def test_servers_are_told_apart():
    twice = found(a_serving(seed=1), a_serving(seed=2, suite_sha256="2" * 64, suite="core"))["n-gram"]
    assert len({one.where for one in twice}) == 2
    (alone,) = found(a_serving())["n-gram"]
    assert alone.where == "tiny-target in vLLM 0.32 bf16"
