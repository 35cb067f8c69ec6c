"""The plots: drawn from the rows alone, the same bytes every time, legible in both themes."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree

import pytest

from builders import arm_of, build, result
from draftrank.board.ranking import build_boards
from draftrank.board.site.board_view import views_of
from draftrank.board.site.drawing import chart_library, draw
from draftrank.board.site.plots import config_of, plots_of, with_rows


def view(**changes):
    arms = [
        arm_of(
            "small", draft=build("small", techniques=("layer dropping",), trained=True, parameters=40_000)
        ),
        arm_of("grams"),
        arm_of("loose", lossy=True),
    ]
    speeds = {"small": 1.4, "grams": 1.1, "loose": 2.0}
    (found,) = views_of(build_boards([result(speeds, arms=arms, histogram=(1, 0, 1, 1), **changes)]))
    return found


def texts(svg):
    return [part.text for part in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def test_each_plot_is_drawn_alike_every_time_and_says_what_it_shows():
    found = view()
    assert [plot.id for plot in found.plots] == ["cost", "acceptance", "size", "position"]
    for plot in found.plots:
        spec = with_rows(plot, found.data["rows"])
        light, dark = draw(spec, "light"), draw(spec, "dark")
        assert light == draw(json.loads(json.dumps(spec)), "light")
        assert light != dark
        assert plot.explanation.endswith(".")
        assert len(texts(light)) > 8  # axes and legend
    assert "speedup" in texts(draw(with_rows(found.plots[0], found.data["rows"]), "light"))


def test_legends_name_a_draft_by_what_proposes():
    head = [{"kind": "eagle_head"}, {"kind": "drop_layers"}, {"kind": "distill"}]
    recipe = build("a").recipe | {"draft": {"kind": "cascade", "min_probability": 0.5, "steps": head}}
    made = build("a", recipe=recipe, techniques=("EAGLE-3 head", "layer dropping", "distillation", "suffix"))
    arms = [arm_of("a", draft=made), arm_of("b")]
    (found,) = views_of(build_boards([result({"a": 1.5, "b": 1.2}, arms=arms)]))
    drawn = texts(draw(with_rows(found.plots[0], found.data["rows"]), "light"))
    assert "suffix decoding + EAGLE-3 head" in drawn
    assert "n-gram" in drawn
    assert "layer dropping" not in drawn


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_proposer_has_a_colour_of_its_own(theme):
    """One for each name of `proposer_of` that a model alone can have, and for cascades of the best of them."""
    colours = config_of(theme)["range"]["category"]
    assert len(set(colours)) == len(colours) >= 14


def test_lossy_drafts_are_shown_but_not_on_the_frontier():
    found = view()
    assert "loose" not in found.plots[0].explanation
    assert "small" in found.plots[0].explanation
    rows = with_rows(found.plots[0], found.data["rows"])["datasets"]["drafts"]
    assert {row["draft"] for row in rows} == {"small", "grams", "loose"}


def test_acceptance_by_position_draws_a_point_per_position():
    plot = view().plots[3]
    svg = draw(with_rows(plot, view().data["rows"]), "light")
    assert {"1", "2", "3"} <= set(texts(svg))


def two_lengths(one):
    """The first half of the prompts has some 1,000 tokens, the other 4,000."""
    return one.model_copy(update={"prompt_tokens": (1_000, 4_000)[int(one.prompt[1:]) >= 4]})


def test_context_lengths_are_drawn_where_every_task_has_several():
    found = view(tasks={"chat": 8, "math": 8}, change=two_lengths)
    assert [plot.id for plot in found.plots[4:]] == ["length-speedup", "length-acceptance"]
    for plot, axis in zip(found.plots[4:], ("speedup", "acceptance length (tokens per step)"), strict=True):
        spec = with_rows(plot, found.data["rows"])
        for theme in ("light", "dark"):
            assert {"1,000", "4,000", "small", "grams", axis} <= set(texts(draw(spec, theme)))
    told = found.plots[4].explanation
    for row in found.data["rows"]:
        short, long = row["lengths"]
        figures = f"{row['draft']}: {short['speedup']:.2f}× at 1,000, {long['speedup']:.2f}× at 4,000"
        assert figures in told


def test_nothing_measured_nothing_drawn():
    assert plots_of([], 1) == ()
    (board,) = build_boards(
        [
            result(
                {"dead": 1.0},
                arms=[arm_of("dead", draft=None, failure="no")],
                drop=lambda one: one.arm == "dead",
            )
        ]
    )
    assert views_of([board])[0].plots == ()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_plots_have_no_ground_of_their_own(theme):
    assert config_of(theme)["background"] is None


def test_the_chart_library_keeps_its_names_to_itself():
    text = chart_library().decode()
    assert text.startswith("/*")
    assert "window.vegaEmbed" in text
    assert "(function () {" in text[:200]
