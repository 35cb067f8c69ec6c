"""The site in a real browser: what scripts add, what stays without them, and that nothing is loaded from elsewhere."""

from __future__ import annotations

import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from builders import MACHINE, arm_of, build, result, slowed
from draftrank.board.formats import rank, span
from draftrank.board.ranking import build_boards, contender_of
from draftrank.board.serving_ranking import build_serving_boards
from draftrank.board.site import render_site
from draftrank.board.site.addresses import (
    board_page,
    draft_page,
    machine_page,
    serving_page,
    target_page,
    task_page,
)
from draftrank.board.site.files import write_site
from draftrank.board.site.render import render_pages
from draftrank.measure.statistics.ranking_evidence import ratio_of
from servings import a_serving, an_arm

playwright_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
EVIL = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">{{7*7}}"
SPEEDS = {"quick": 2.1, "twin": 2.1, "middle": 1.4, "none": 0.99, "slow": 0.7, "evil": 1.2, "loose": 2.4}
WIDTHS = (360, 1280, 2560)
"""From the narrowest: a page opens in it and then grows."""


def trained(name, **changes):
    return build(
        name, techniques=("layer dropping", "distillation"), trained=True, parameters=40_000_000, **changes
    )


def gain(name, task):
    """`middle` is faster at math than elsewhere, so that the weights of tasks matter."""
    return 1.6 if (name, task) == ("middle", "math") else 1.0


def sessions():
    hostile = build(
        "evil", recipe=build("evil").recipe | {"title": EVIL, "description": EVIL}, techniques=(EVIL,)
    )
    arms = [
        arm_of("quick"),
        arm_of("twin", draft=trained("twin")),
        arm_of("middle", draft=trained("middle", bytes_on_disk=170_000_000, build_s=95.0)),
        arm_of("none"),
        arm_of("slow", draft=trained("slow")),
        arm_of("evil", draft=hostile),
        arm_of("loose", lossy=True),
        arm_of("d" * 60, draft=None, failure="it could not be built: " + "no memory " * 30),
    ]
    tasks = {"chat": 6, "math": 5, "code": 4}
    first = result(
        SPEEDS,
        arms=arms,
        tasks=tasks,
        histogram=(1, 0, 1, 1),
        gain=gain,
    )
    second = result(
        {"quick": 1.9, "middle": 1.2}, id="20261103-b", dtype="bf16", tasks={"chat": 3, "math": 3}
    )
    other = MACHINE.model_copy(update={"machine_class": "gpu-small", "gpu": "Small GPU"})
    third = result({"quick": 0.9}, id="20261104-c", machine=other, tasks={"chat": 3})
    later = {"created_at": "2026-11-05T10:00:00Z", "finished_at": "2026-11-05T11:00:00Z"}
    fourth = result({"late": 1.7}, id="20261105-d", tasks=tasks, **later)
    archived = result({"quick": 1.6}, id="20261001-e", tasks={"chat": 3}, draftrank_version="0.2.9")
    lengths = result(
        {"quick": 1.6, "middle": 1.3},
        id="20261106-f",
        suite="lengths",
        tasks={"chat": 8},
        change=lambda one: one.model_copy(update={"prompt_tokens": (1_000, 4_000)[one.prompt >= "p4"]}),
    )
    return [first, second, third, fourth, archived, lengths]


@pytest.fixture(scope="module")
def boards():
    return build_boards(sessions())


@pytest.fixture(scope="module")
def servings():
    """Several k, a failed arm with a long reason, one with hostile text, and one that is slower."""
    hostile = build("evil", recipe=build("evil").recipe | {"title": EVIL}, techniques=(EVIL,))
    arms = {
        "quick-k2": an_arm("quick-k2", 2),
        "quick-k5": an_arm("quick-k5", 5),
        "evil": an_arm("evil", draft=hostile, differs=(EVIL,)),
        "dead": an_arm("dead", draft=None, failure="the server ended: " + "no memory " * 30),
    }
    speedups = {
        "quick-k2": {1: 1.2, 2: 1.15, 4: 1.1, 8: 1.05, 16: 1.0},
        "quick-k5": {1: 1.6, 2: 1.3, 4: 1.05, 8: 0.9, 16: 0.8},
        "evil": 0.8,
        "dead": 1.0,
    }
    found = a_serving(
        speedups,
        concurrencies=(1, 2, 4, 8, 16),
        arms=arms,
        change=lambda one: None if one.arm == "dead" else one,
    )
    return build_serving_boards([found])


@pytest.fixture(scope="module")
def main_board(boards):
    return next(board for board in boards if len(board.rows) > 5)


@pytest.fixture(scope="module")
def folder(boards, servings, tmp_path_factory):
    out = tmp_path_factory.mktemp("pages") / "site"
    render_site(boards, out, servings=servings)
    return out


@pytest.fixture(scope="module")
def server(folder):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{found.server_address[1]}"
        found.shutdown()


@pytest.fixture(scope="module")
def browser():
    with playwright_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield found
        found.close()


class Visit:
    """A page that notes every complaint and every request."""

    def __init__(self, browser, **options):
        self.context = browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | options))
        self.page = self.context.new_page()
        self.complaints, self.requests = [], []
        self.page.on(
            "console",
            lambda line: self.complaints.append(line.text) if line.type in ("error", "warning") else 0,
        )
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))

    def shown(self, selector="#ranking tbody.ranked tr[data-draft]"):
        """Drafts of the visible lines, from the top."""
        script = "lines => lines.filter(line => line.offsetParent).map(line => line.dataset.draft)"
        return self.page.eval_on_selector_all(selector, script)

    def titles(self):
        """Titles of the ranked lossless drafts, from the top."""
        links = self.page.locator("#ranking tbody.ranked tr[data-draft] th a").all_inner_texts()
        return [text.strip().lower() for text in links]

    def cells(self, column, selector="#ranking tbody.ranked tr[data-draft]"):
        script = "(lines, column) => lines.map(line => line.cells[column].innerText)"
        return self.page.eval_on_selector_all(selector, script, column)


@pytest.fixture
def visit(browser):
    opened = []

    def open_page(url, **options):
        found = Visit(browser, **options)
        opened.append(found)
        found.page.goto(url)
        return found

    yield open_page
    for found in opened:
        found.context.close()


@pytest.fixture
def ranking(visit, server, main_board):
    return visit(f"{server}/{board_page(main_board.key)}")


def kinds(boards, servings):
    """One page of each kind."""
    main = max(boards, key=lambda board: len(board.rows))
    target = main.key.target
    return [
        "index.html",
        serving_page(servings[0].key),
        "archive.html",
        board_page(main.key),
        draft_page(target, "quick"),
        draft_page(target, "middle"),
        draft_page(target, "evil"),
        draft_page(target, "d" * 60),
        draft_page(target, "dead"),
        target_page(target),
        task_page("math"),
        machine_page("cpu-2core"),
        "serving/index.html",
        "study.html",
        "methodology.html",
        "submit.html",
        "data.html",
        board_page(next(board for board in boards if board.key.suite == "lengths").key),
    ]


def to_the_plots(found):
    found.page.locator(".plots").scroll_into_view_if_needed()
    found.page.wait_for_selector(".drawing .live canvas", timeout=20_000)


@pytest.mark.parametrize("scheme", ["http", "file"])
def test_no_page_complains_or_asks_another_host(scheme, visit, server, folder, boards, servings):
    base = server if scheme == "http" else folder.as_uri()
    for address in kinds(boards, servings)[: None if scheme == "file" else 4]:
        found = visit(f"{base}/{address}")
        if found.page.locator("[data-plot]").count():  # the study's plots are drawings
            to_the_plots(found)
        assert found.complaints == [], address
        assert [url for url in found.requests if not url.startswith((base, "data:"))] == []
        assert found.page.title() != "owned"
        assert EVIL not in found.page.content()


def test_sorting_by_header_buttons(ranking, main_board):
    by_rank = ranking.shown()
    assert by_rank == [row.draft for row in main_board.rows if row.rank and not row.lossy]
    ranking.page.get_by_role("button", name="Cost").click()
    assert "sort=cost" in ranking.page.url
    ranking.page.locator("th[data-sort=draft] button").click()
    titles = [row.title.lower() for row in main_board.rows if row.rank and not row.lossy]
    assert ranking.titles() == sorted(titles)
    ranking.page.locator("th[data-sort=draft] button").click()
    assert ranking.titles() == sorted(titles, reverse=True)
    assert ranking.page.locator("th[aria-sort]").count() == 1
    assert ranking.page.locator("th[aria-sort]").get_attribute("aria-sort") == "descending"
    heat = ranking.page.eval_on_selector_all(
        "#heat tbody tr", "lines => lines.map(line => line.dataset.draft)"
    )
    assert [draft for draft in heat if draft in by_rank] == ranking.shown()


def test_search_and_filters_hide_rows_and_say_how_many(ranking):
    ranking.page.get_by_label("Search").fill("distillation")
    assert set(ranking.shown()) == {"twin", "middle", "slow"}
    assert ranking.page.locator("#count").inner_text() == "3 of 9 drafts"
    ranking.page.get_by_label("Search").fill("nothing like it")
    assert ranking.shown() == []
    assert ranking.page.locator("#nothing").is_visible()
    ranking.page.get_by_role("button", name="Reset").click()
    ranking.page.get_by_role("button", name="lossless only").click()
    assert ranking.shown("#ranking tbody.lossy tr[data-draft]") == []
    ranking.page.get_by_role("button", name="trained", exact=True).click()
    assert set(ranking.shown()) == {"twin", "middle", "slow"}
    ranking.page.get_by_role("button", name="no training").click()
    assert set(ranking.shown()) == {"quick", "none", "evil", "late"}
    assert (
        ranking.page.get_by_role("button", name="trained", exact=True).get_attribute("aria-pressed")
        == "false"
    )


def test_everything_stands_in_the_address(ranking, visit):
    ranking.page.get_by_label("Search").fill("draft")
    ranking.page.get_by_role("button", name="layer dropping").click()
    ranking.page.get_by_role("button", name="complete only").click()
    ranking.page.get_by_role("button", name="Accept").click()
    ranking.page.locator("#weights summary").click()
    ranking.page.locator("input[data-task=math]").fill("4")
    ranking.page.locator("tr[data-draft=twin] input[type=checkbox]").check()
    ranking.page.locator("tr[data-draft=slow] input[type=checkbox]").check()
    again = visit(ranking.page.url)
    assert again.page.url == ranking.page.url
    assert again.shown() == ranking.shown()
    assert again.cells(2) == ranking.cells(2)
    assert again.page.get_by_label("Search").input_value() == "draft"
    assert again.page.locator("input[data-task=math]").input_value() == "4"
    assert again.page.locator("#compare").inner_text() == ranking.page.locator("#compare").inner_text()
    again.page.get_by_role("button", name="Reset").click()
    assert "#" not in again.page.url


def test_an_address_full_of_nonsense_does_no_harm(visit, server, main_board):
    odd = "#sort=constructor&technique=<b>&only=__proto__,trained&weight=math:99&weight=:1&weight=chat:0&compare=x&q=%00"
    found = visit(f"{server}/{board_page(main_board.key)}{odd}")
    assert found.complaints == []
    found.page.get_by_role("button", name="Reset").click()
    assert len(found.shown()) == 7


def test_the_browser_ranks_by_the_same_evidence(ranking, main_board):
    """With equal weights the scripts must find what Python found, to the last shown digit."""
    ranked = [row for row in main_board.rows if row.rank and not row.lossy]
    script = """drafts => {
        const { evidence, rows } = window.draftrank.board;
        const places = drafts.map(draft => rows.find(row => row.draft === draft).index);
        const equal = evidence.tasks.map(() => 1);
        return {
            ranks: evidence.ranks(places, equal),
            ends: places.map(place => evidence.interval(evidence.overall(place, equal))),
            ratios: places.map(one => places.map(other => {
                const found = evidence.ratio(one, other, equal);
                return [Math.exp(found.value), ...evidence.interval(found), evidence.aboveOne(found)];
            })),
        };
    }"""
    found = ranking.page.evaluate(script, [row.draft for row in ranked])
    assert [tuple(ends) for ends in found["ranks"]] == [row.rank for row in ranked]
    for row, ends in zip(ranked, found["ends"], strict=True):
        assert ends == pytest.approx(row.ci, rel=1e-4)
    for one, ratios in zip(ranked, found["ratios"], strict=True):
        for other, (ratio, low, high, likely) in zip(ranked, ratios, strict=True):
            if one is other:
                continue
            wanted = ratio_of(contender_of(one), contender_of(other))
            assert ratio == pytest.approx(wanted.ratio, rel=1e-6)
            assert (low, high) == pytest.approx(wanted.ends(), rel=1e-3)
            assert likely == pytest.approx(one.ahead[other.draft], abs=1e-3)


def test_weights_recompute_speedups_and_ranks(ranking, main_board):
    ranking.page.locator("#weights summary").click()
    for task in ("chat", "code"):
        ranking.page.locator(f"input[data-task={task}]").fill("0")
    ranked = [row for row in main_board.rows if row.rank and not row.lossy]
    by_math = sorted(ranked, key=lambda row: -row.per_task["math"].speedup)
    assert ranking.shown() == [row.draft for row in by_math]
    assert by_math[0].draft != ranked[0].draft
    for row, text in zip(by_math, ranking.cells(2), strict=True):
        cell = row.per_task["math"]
        assert text.split() == [f"{cell.speedup:.2f}×", span(cell.ci)]
    for task in ("chat", "code"):
        ranking.page.locator(f"input[data-task={task}]").fill("1")
    assert ranking.shown() == [row.draft for row in ranked]
    assert [text.strip() for text in ranking.cells(0)] == [rank(row.rank) for row in ranked]


def test_the_browser_writes_intervals_as_the_pages_do(ranking):
    ends = [(0.997, 1.003), (0.86, 1.0), (1.00004, 1.2), (0.99996, 3.456)]
    written = ranking.page.evaluate("ends => ends.map(window.draftrank.board.span)", ends)
    assert written == [span(pair) for pair in ends]


def test_drafts_are_compared_side_by_side(ranking, main_board):
    rows = {row.draft: row for row in main_board.rows}
    for draft in ("quick", "middle"):
        ranking.page.locator(f"tr[data-draft={draft}] input[type=checkbox]").check()
    text = ranking.page.locator("#compare").inner_text()
    wanted = ratio_of(contender_of(rows["quick"]), contender_of(rows["middle"]))
    assert f"{wanted.ratio:.2f}×" in text
    assert span(wanted.ends()) in text
    assert "> 99.9 %" in text
    for draft in ("twin", "late"):
        ranking.page.locator(f"tr[data-draft={draft}] input[type=checkbox]").check()
    assert ranking.page.locator("tr[data-draft=slow] input[type=checkbox]").is_disabled()
    assert "can't tell" in ranking.page.locator("#compare").inner_text()
    assert "from different sessions" in ranking.page.locator("#compare").inner_text()
    ranking.page.get_by_role("button", name="Clear the comparison").click()
    assert not ranking.page.locator("#compare").is_visible()


def test_the_theme_is_chosen_and_remembered(ranking, server):
    def paper():
        return ranking.page.evaluate("getComputedStyle(document.body).backgroundColor")

    light = paper()
    button = ranking.page.locator("#theme")
    button.click()
    assert paper() == light  # from the system's, which is light here, to light
    button.click()
    dark = paper()
    assert dark != light
    ranking.page.goto(f"{server}/methodology.html")
    assert paper() == dark
    ranking.page.locator("#theme").click()
    assert paper() == light


def test_plots_come_alive_in_both_themes(ranking):
    to_the_plots(ranking)
    ranking.page.wait_for_function("document.querySelectorAll('.live canvas').length === 4")
    assert not ranking.page.locator(".drawing img:visible").count()
    for _ in range(2):
        ranking.page.locator("#theme").click()
    ranking.page.wait_for_timeout(500)
    assert ranking.page.locator(".live canvas").count() == 4
    assert ranking.complaints == []


def test_without_scripts_all_of_it_is_there(visit, folder, main_board):
    found = visit(f"{folder.as_uri()}/{board_page(main_board.key)}", java_script_enabled=False)
    assert found.page.locator("#ranking tr[data-draft]:visible").count() == len(main_board.rows)
    assert not found.page.locator("#controls").is_visible()
    assert not found.page.locator("#theme").is_visible()
    assert found.page.locator(".drawing img:visible").count() == 4
    found.page.get_by_role("link", name="The draft middle").first.click()
    assert "Compared with its neighbours" in found.page.content()


def test_context_lengths_are_drawn_without_scripts_and_come_alive_with_them(visit, server, folder, boards):
    address = board_page(next(board for board in boards if board.key.suite == "lengths").key)
    still = visit(f"{folder.as_uri()}/{address}", java_script_enabled=False)
    drawn = still.page.locator("[data-plot^=length] .drawing img:visible")
    assert drawn.count() == 2
    drawn.first.scroll_into_view_if_needed()
    still.page.wait_for_function("document.querySelector('[data-plot^=length] img').naturalWidth > 0")
    assert "at 1,000" in still.page.locator("[data-plot=length-speedup]").inner_text()
    live = visit(f"{server}/{address}")
    to_the_plots(live)
    live.page.wait_for_function("document.querySelectorAll('[data-plot^=length] .live canvas').length === 2")
    assert live.complaints == []


def test_a_serving_board_is_whole_without_scripts_and_its_plots_come_alive_with_them(
    visit, server, folder, servings
):
    address = serving_page(servings[0].key)
    still = visit(f"{folder.as_uri()}/{address}", java_script_enabled=False)
    assert still.page.locator(".serving tbody tr:visible").count() == 1 + len(servings[0].rows)
    assert still.page.locator(".drawing img:visible").count() == 2
    live = visit(f"{server}/{address}")
    to_the_plots(live)
    live.page.wait_for_function("document.querySelectorAll('.live canvas').length === 2")
    assert live.complaints == []


def test_the_keyboard_is_enough(ranking):
    ranking.page.keyboard.press("Tab")
    assert ranking.page.evaluate("document.activeElement.className") == "skip"
    for _ in range(60):
        ranking.page.keyboard.press("Tab")
        if ranking.page.evaluate("document.activeElement.closest('th')?.dataset.sort") == "speedup":
            break
    else:
        pytest.fail("the header's button is not reached by Tab")
    outline = ranking.page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none"
    ranking.page.keyboard.press("Enter")
    assert "sort=-speedup" in ranking.page.url


def test_no_page_is_wider_than_the_window(visit, server, boards, servings):
    for address in (*kinds(boards, servings)[:9], "study.html"):
        found = visit(f"{server}/{address}", viewport={"width": WIDTHS[0], "height": 900})
        for width in WIDTHS:
            found.page.set_viewport_size({"width": width, "height": 900})
            over = found.page.evaluate(
                "document.documentElement.scrollWidth - document.documentElement.clientWidth"
            )
            assert over <= 0, (address, width)


def test_a_row_takes_at_most_two_lines(visit, tmp_path):
    """With the longest title that recipes have had, and what proposes beside it."""
    head = [
        {"kind": "eagle_head"},
        {"kind": "trim_vocabulary"},
        {"kind": "distill"},
        {"kind": "quantize"},
    ]
    recipe = build("long").recipe | {
        "title": "Suffix copies, and an EAGLE-3 head in int8 where they find nothing",
        "draft": {"kind": "cascade", "min_probability": 0.5, "steps": head},
    }
    arms = [arm_of("long", draft=trained("long", recipe=recipe)), arm_of("short")]
    (board,) = build_boards([result({"long": 2.0, "short": 1.5}, arms=arms)])
    write_site(render_pages([board], plots=False), tmp_path / "site")
    found = visit((tmp_path / "site" / board_page(board.key)).as_uri())
    line = found.page.evaluate(
        "parseFloat(getComputedStyle(document.querySelector('#ranking td')).lineHeight)"
    )
    script = "rows => rows.map(row => row.querySelector('th').getBoundingClientRect().height)"
    heights = found.page.eval_on_selector_all("#ranking tr[data-draft]", script)
    assert all(height < 3 * line for height in heights)


def test_an_interval_beyond_the_axis_is_cut_off_with_an_arrow(visit, tmp_path):
    wide = slowed(
        result({"wide": 1.5, "calm": 1.4}),
        lambda one: 1.0 if one.arm != "wide" else 0.5 if one.prompt == "p0" else 1.3,
    )
    (board,) = build_boards([wide])
    write_site(render_pages([board], plots=False), tmp_path / "site")
    for scripts in (True, False):
        found = visit((tmp_path / "site" / board_page(board.key)).as_uri(), java_script_enabled=scripts)
        assert found.page.locator("tr[data-draft=wide] .beyond.right").is_visible()
        assert not found.page.locator("tr[data-draft=calm] .beyond.right").is_visible()
        assert "1×" in found.page.locator("#ranking .axis text").all_text_contents()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_pages_are_accessible(theme, visit, server, boards, servings):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed").Axe()
    # Colours are the same variables on every page: the dark theme is looked at on the richest ones.
    for address in kinds(boards, servings)[: None if theme == "light" else 5]:
        found = visit(f"{server}/{address}", color_scheme=theme)
        if address == board_page(max(boards, key=lambda board: len(board.rows)).key):
            found.page.locator("tr[data-draft=quick] input[type=checkbox]").check()
            found.page.locator("tr[data-draft=middle] input[type=checkbox]").check()
            found.page.locator("#weights summary").click()
        answer = axe.run(found.page, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]})
        wrong = [
            (rule["id"], [node["target"] for node in rule["nodes"][:3]])
            for rule in answer.response["violations"]
        ]
        assert wrong == [], address


def test_printing_leaves_the_controls_out(ranking):
    ranking.page.emulate_media(media="print")
    assert not ranking.page.locator("#controls").is_visible()
    assert ranking.page.locator("#ranking").is_visible()


def test_a_long_board_shows_its_first_rows_until_all_are_asked_for(visit, tmp_path):
    speeds = {f"draft-{number:03}": 1.0 + number / 1000 for number in range(120)}
    (long,) = build_boards([result(speeds, tasks={"chat": 3}, repeats=1)])
    write_site(render_pages([long], plots=False), tmp_path / "site")
    found = visit((tmp_path / "site" / board_page(long.key)).as_uri())
    best_first = [row.draft for row in long.rows]
    assert found.shown() == best_first[:100]
    assert found.shown("#heat tr[data-draft]") == best_first[:100]
    assert found.page.locator("#count").inner_text() == "120 drafts"
    found.page.get_by_label("Search").fill("draft-00")
    assert len(found.shown()) == 10
    assert not found.page.locator("#more").is_visible()
    found.page.get_by_role("button", name="Reset").click()
    found.page.get_by_role("button", name="Show all 120 drafts").click()
    assert found.shown() == best_first
    assert found.complaints == []
