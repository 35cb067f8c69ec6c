"""Which boards lead."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from builders import MACHINE, result, slowed
from draftrank.board.order import in_order, places_of
from draftrank.board.ranking import build_boards
from examples import examples


def session(name, seconds=1.0, **changes):
    """A session of one draft; plain decoding takes 0.1 × `seconds` per token."""
    machine = MACHINE.model_copy(update={"machine_class": changes.pop("machine", "here")})

    found = result({name: 1.5}, id=f"20261101-{name}", machine=machine, **changes)
    return slowed(found, lambda _: seconds)


SESSIONS = [
    session("slow", 4, dtype="fp32"),
    session("fast", 1, dtype="bf16"),
    session("fast-few", 0.5, dtype="bf16", tasks={"chat": 3}),
    session("middle", 2, dtype="fp16"),
    session("other", 0.1, dtype="bf16", machine="there"),
    session("old", 0.01, dtype="bf16", draftrank_version="0.2.9"),
    session("older", 0.001, dtype="bf16", draftrank_version="0.1.0"),
    session("target", 0.05, dtype="bf16", target="another-target"),
    session("sampled", 0.2, dtype="fp16", tasks={"chat": 2}),
]


def names(boards):
    return [board.rows[0].draft for board in boards]


@given(st.permutations(SESSIONS))
@examples(10)
def test_this_machine_and_the_fastest_backend_lead_and_archived_boards_come_last(sessions):
    boards = in_order(build_boards(sessions), lambda machine: machine == "here")
    assert names(boards) == [
        "target", "fast", "fast-few", "middle", "sampled", "slow", "other", "old", "older",
    ]  # fmt: skip


def test_without_a_machine_of_its_own_the_fastest_place_of_a_target_leads():
    assert names(in_order(build_boards(SESSIONS)))[:3] == ["target", "other", "fast"]


def test_a_board_of_variants_or_of_a_search_does_not_lead_its_backend():
    more = {"chat": 9, "math": 9}
    explored = [session(f"of{suite}", suite=f"quick{suite}", tasks=more) for suite in ("-tuning", "-search")]
    (place,) = places_of(build_boards([*explored, session("plain")]))
    (boards,) = place.backends
    assert names(boards)[0] == "plain"
    assert len(boards) == 3


def test_a_place_holds_the_boards_of_each_backend():
    places = places_of(build_boards(SESSIONS))
    (here,) = (
        place
        for place in places
        if place.lead.key.machine_class == "here" and place.lead.rows[0].draft == "fast"
    )
    assert [names(boards) for boards in here.backends] == [
        ["fast", "fast-few"],
        ["middle", "sampled"],
        ["slow"],
    ]
    assert sum(len(boards) for place in places for boards in place.backends) == len(SESSIONS)
