"""Numbers as text, and coordinates of charts."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftrank.board import formats
from draftrank.board.site import charts


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (formats.times(1.836), "1.84×"),
        (formats.times(None), "–"),
        (formats.span((1.2, 1.349)), "1.20–1.35"),
        (formats.span((0.997, 1.003)), "0.997–1.003"),
        (formats.span((0.86, 1.0004)), "0.86–1.0004"),
        (formats.span((0.95, 1.0)), "0.95–1.00"),
        (formats.span((1 - 1e-9, 1.005001)), "1.00–1.01"),
        (formats.rank((2, 2)), "2"),
        (formats.rank((2, 4)), "2–4"),
        (formats.rank(None), "–"),
        (formats.percent(0.7142), "71\u00a0%"),
        (formats.percent(0.9996), "99.96\u00a0%"),
        (formats.percent(1.0), "100\u00a0%"),
        (formats.count(134_515_008), "135\u00a0M"),
        (formats.count(950), "950"),
        (formats.count(0), "0"),
        (formats.size(41_200_000), "41.2\u00a0MB"),
        (formats.duration(0.0421), "42\u00a0ms"),
        (formats.duration(3.14), "3.1\u00a0s"),
        (formats.duration(1520.0), "25\u00a0min"),
        (formats.duration(9000.0), "2.5\u00a0h"),
        (formats.day("2026-11-01T10:00:00Z"), "2026-11-01"),
    ],
)
def test_figures(text, expected):
    assert text == expected


def test_all_but_one_output_in_a_million_is_not_all():
    assert formats.percent(1 - 1e-6) != formats.percent(1.0)


ends = st.tuples(st.floats(0.01, 50), st.floats(0, 50)).map(lambda pair: (pair[0], pair[0] + pair[1]))


@given(st.lists(ends, max_size=5), st.lists(st.floats(0.01, 50), max_size=5))
def test_a_scale_holds_its_values_and_one_and_never_leaves_the_chart(spans, values):
    scale = charts.Scale.over(values, spans)
    assert all(scale.low <= value <= scale.high for value in (1.0, *values))
    for low, high in spans:
        assert 0 < scale.x(low) <= scale.x(high) < charts.WIDTH
    ticks = scale.ticks
    assert "1×" in [tick.label for tick in ticks]
    for left, right in pairwise(ticks):
        assert right.x - left.x >= 32


def test_one_wide_interval_does_not_flatten_the_others():
    scale = charts.Scale.over([1.5, 2.0, 1.2], [(1.4, 1.6), (1.9, 2.1), (0.01, 400.0)])
    assert (scale.low, scale.high) == (0.8, 2.5)
    assert scale.x(2.1) - scale.x(1.9) > 10


def test_equal_ratios_are_equally_long():
    scale = charts.Scale.over([0.5, 4.0])
    assert scale.x(2.0) - scale.x(1.0) == pytest.approx(scale.x(4.0) - scale.x(2.0), abs=0.02)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=4))
def test_stacked_parts_never_leave_the_bar(shares):
    parts = charts.stacked([(str(index), share) for index, share in enumerate(shares)])
    assert parts[-1].x + parts[-1].width <= 100.05
    for left, right in pairwise(parts):
        assert right.x == pytest.approx(left.x + left.width, abs=0.02)


def test_the_tallest_bar_fills_the_chart_and_nothing_divides_by_zero():
    assert [bar.height for bar in charts.bars([1, 4], ["0", "1"], 100)] == [25.0, 100.0]
    assert [bar.height for bar in charts.bars([0, 0], ["0", "1"], 100)] == [0.0, 0.0]
    assert charts.bars([0.5], ["1"], 100, 1.0)[0].height == 50.0


def test_latencies_are_in_milliseconds():
    assert [formats.milliseconds(value) for value in (None, 0.00004, 0.0197, 0.412, 2.5)] == [
        "–",
        "0.0\u00a0ms",
        "19.7\u00a0ms",
        "412\u00a0ms",
        "2,500\u00a0ms",
    ]
