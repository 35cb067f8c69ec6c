"""What stands beside a row because its figures do not say it."""

from __future__ import annotations

from builders import arm_of, build, result
from draftrank.board.ranking import build_boards
from draftrank.board.remarks import remarks_on
from draftrank.measure.summaries.summary import summarise


def remarks(found):
    summary = summarise(found)
    return remarks_on(summary, summary.arms[-1])


def windowed(window):
    """Two tasks of four prompts of 12 tokens; every output has 9."""
    return result({"d": 2.0}, arms=[arm_of("d", draft=build("d", context_window=window))])


def test_a_window_that_prompts_outgrew_is_told_with_their_number():
    # 12 + 9 tokens: the last one is chosen behind 20.
    assert remarks(windowed(20)) == remarks(windowed(None)) == ()
    assert remarks(windowed(19)) == (
        "It reads at most 19 tokens: in 8 of 8 prompt turns it proposed nothing behind them.",
    )


def test_a_draft_that_seldom_proposes_says_so_and_one_that_never_does_is_not_ranked():
    def proposing(steps_of_p0):
        def change(one):
            if one.arm != "d":
                return one
            count = steps_of_p0 if one.prompt == "p0" else 0
            return one.model_copy(
                update={"offered": (count, 0, 0), "proposed": 3 * count, "draft_forwards": 3 * count}
            )

        return result({"d": 0.99, "other": 0.9}, histogram=(8, 0, 0, 0), change=change)

    # A quarter of the prompts with 8 steps each: 3 of 8 are 9.4 % of all, 4 of 8 are 12.5 %.
    seldom = build_boards([proposing(3)])[0]
    row = next(row for row in seldom.rows if row.draft == "d")
    assert row.remarks == ("It proposed something in 9.4% of its steps; all others are plain decoding.",)
    row = next(row for row in build_boards([proposing(4)])[0].rows if row.draft == "d")
    assert row.remarks == ()
    never = next(row for row in build_boards([proposing(0)])[0].rows if row.draft == "d")
    assert (never.ranked, never.rank) == (False, None)
    assert never.reason.startswith("proposes nothing")
