"""The order of arms: every cell once, every place equally often, reversed in every second repeat."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from draftrank.catalog.decoding_mode import DecodingMode
from draftrank.measure.records import SessionTask
from draftrank.measure.sessions.plan import trial_seed
from draftrank.measure.sessions.schedule import round_order, schedule

ZERO = "0" * 64


def task(name: str, turns: list[int]) -> SessionTask:
    return SessionTask(
        task=name,
        task_sha256=ZERO,
        prompts=tuple(f"p{i}" for i in range(len(turns))),
        turns=tuple(turns),
        prompts_sha256=ZERO,
        max_new_tokens=8,
    )


tasks = st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=5), min_size=1, max_size=3).map(
    lambda lists: [task(f"t{i}", turns) for i, turns in enumerate(lists)]
)


@given(tasks=tasks, arms=st.integers(2, 6), repeats=st.integers(1, 3), seed=st.integers(0, 99))
def test_every_cell_stands_once_and_turns_follow_one_another(tasks, arms, repeats, seed):
    names = [f"a{i}" for i in range(arms)]
    blocks = [block for repeat in range(repeats) for block in schedule(tasks, names, repeat, seed)]
    cells = [(b.task, b.prompt, b.turn, b.repeat) for b in blocks]
    assert len(set(cells)) == len(cells) == repeats * sum(sum(t.turns) for t in tasks)
    assert all(sorted(b.arms) == names for b in blocks)
    for before, block in pairwise(blocks):
        if block.turn:
            assert (before.task, before.prompt, before.turn) == (block.task, block.prompt, block.turn - 1)
    assert list(schedule(tasks, names, repeats - 1, seed)) == blocks[-len(blocks) // repeats :]


@given(arms=st.integers(2, 6), rounds=st.integers(1, 4), seed=st.integers(0, 99))
def test_each_arm_stands_in_each_place_equally_often(arms, rounds, seed):
    names = [f"a{i}" for i in range(arms)]
    blocks = list(schedule([task("t", [1] * (arms * rounds))], names, 0, seed))
    places = Counter((arm, place) for block in blocks for place, arm in enumerate(block.arms))
    assert set(places.values()) == {rounds}


@given(tasks=tasks, arms=st.integers(2, 6), seed=st.integers(0, 99))
def test_the_second_repeat_reverses_the_first(tasks, arms, seed):
    names = [f"a{i}" for i in range(arms)]
    first, second = (list(schedule(tasks, names, repeat, seed)) for repeat in (0, 1))
    assert all(a.arms == b.arms[::-1] for a, b in zip(first, second, strict=True))


def test_seeds_differ_between_cells_and_not_between_arms():
    mode = DecodingMode(temperature=1.0)
    assert trial_seed(mode, ("t", "p", 0, 0)) == trial_seed(mode, ("t", "p", 0, 0))
    assert trial_seed(mode, ("t", "p", 0, 0)) != trial_seed(mode, ("t", "p", 0, 1))


def test_rounds_of_a_block_are_in_an_order_of_their_own():
    arms = ["baseline", "baseline-control", "a", "b"]
    orders = [round_order(arms, "plan", 4, index) for index in range(48)]
    assert all(sorted(order) == sorted(arms) for order in orders)
    assert orders == [round_order(arms, "plan", 4, index) for index in range(48)]
    assert len(set(orders)) > 12
    assert orders != [round_order(arms, "plan", 1, index) for index in range(48)]
    assert orders != [round_order(arms, "another plan", 4, index) for index in range(48)]
