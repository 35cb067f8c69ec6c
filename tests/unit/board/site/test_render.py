"""The static site: complete, safe with hostile records, the same bytes every time."""

from __future__ import annotations

import csv
import json
import os
import shutil
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import jsonschema
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from builders import MACHINE, arm_of, build, result, sha, slowed
from draftrank.board.formats import span
from draftrank.board.ranking import build_boards
from draftrank.board.site import Declarations, render_site
from draftrank.board.site.addresses import (
    badge,
    board_page,
    draft_page,
    machine_page,
    safe_name,
    target_page,
    task_page,
)
from draftrank.board.site.files import LISTING, site_source, write_site
from draftrank.board.site.render import render_pages
from draftrank.catalog.target import Target
from draftrank.catalog.task import Task
from draftrank.errors import InvalidInputError
from draftrank.measure.evidence import Divergence, Judgement, Numerics, Quality
from draftrank.measure.gates.verdict import GATES
from draftrank.version import __version__
from examples import examples
from site_pages import EVIL, Page, check_harmless, check_links, meanings, pages_of, text_of
from strategies import session_results


def boards():
    model = build(
        "cut",
        recipe=build("cut").recipe
        | {"draft": {"kind": "draft_model", "steps": [{"kind": "drop_layers", "keep": 6, "select": "even"}]}},
        techniques=("layer dropping",),
        trained=True,
        parameters=41_300_000,
        bytes_on_disk=165_000_000,
        build_s=1520.0,
        weights_sha256=sha("cut weights"),
    )
    arms = [
        arm_of("cut", draft=model),
        arm_of("ngram-3"),
        arm_of("dead", draft=None, failure="out of memory"),
    ]
    first = result({"cut": 1.8, "ngram-3": 1.4}, arms=arms, histogram=(1, 0, 1, 1))
    other = result({"ngram-3": 1.2}, id="20261102-b", dtype="bf16", tasks={"chat": 2, "math": 2})
    return build_boards([first, other])


@pytest.fixture
def out(tmp_path):
    return (tmp_path / "site").resolve()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The whole site of `boards`. Not to be changed."""
    folder = (tmp_path_factory.mktemp("whole") / "site").resolve()
    render_site(boards(), folder)
    return folder


def test_all_links_resolve_and_nothing_is_loaded_from_elsewhere(site):
    pages = check_links(site)
    fixed = {"index.html", "study.html", "methodology.html", "submit.html", "data.html"}
    assert fixed <= {str(path.relative_to(site)) for path in pages}
    # two boards, three drafts, one target, two tasks, one machine class
    assert len(pages) == len(fixed) + 2 + 3 + 1 + 2 + 1
    for page in pages.values():
        assert "iframe" not in page.tags
        page.check_scripts()


def test_every_board_has_a_page_with_all_its_figures(out):
    found = boards()
    write_site(render_pages(found, plots=False), out)
    for board in found:
        text = text_of(out, board_page(board.key))
        for row in board.rows:
            assert row.title in text
            if row.speedup:
                assert f"{row.speedup:.2f}×" in text
                assert span(row.ci) in text
        assert "A/A" in text
    text = text_of(out, board_page(found[1].key))
    assert "failed: out of memory" in text
    assert text.count("Not ranked") == 1
    assert text.index("The draft cut") < text.index("dead")


def test_the_first_page_leads_to_all_boards(out):
    found = boards()
    write_site(render_pages(found, plots=False), out)
    page = Page((out / "index.html").read_text(encoding="utf-8"))
    assert {board_page(board.key) for board in found} <= set(page.links)


def shown_answers(out, results):
    write_site(render_pages(build_boards(results), plots=False), out)
    return text_of(out, "index.html").split("The leading board in full")[0]


def test_the_first_page_names_the_leading_draft_of_the_fastest_backend(out):
    """Plain decoding: 10 tokens/s in fp32, 4 in bf16, where a draft gains more but decodes 12 tokens/s at most. The slow
    board holds more prompts and is newer."""
    fast = result({"a": 1.5, "b": 1.2}, id="20261101-a")
    slow = result({"c": 3.0}, id="20261109-b", dtype="bf16", tasks={"chat": 9, "math": 9})
    text = shown_answers(out, [fast, slowed(slow, lambda _: 2.5)])
    assert text.index("transformers fp32") < text.index("transformers bf16")
    (board,) = (one for one in build_boards([fast]))
    best = board.rows[0]
    assert f"Use The draft a n-gram with the transformers fp32 backend: {best.speedup:.2f}×" in text
    assert (
        f"{best.tokens_per_second:.1f} tokens/s instead of {board.newest.baseline_tokens_per_second:.1f} in the "
        "same session." in text
    )
    assert "reaches more" not in text
    assert "The draft c" in text


def test_the_first_page_tells_when_a_slower_backend_gets_further_with_a_draft(out):
    """Plain decoding 10 and 8 tokens/s; drafts bring the first to 9, the second to 16."""
    plain = result({"a": 0.9}, id="20261101-a")
    drafted = slowed(result({"c": 2.0}, id="20261102-b", dtype="bf16"), lambda _: 1.25)
    text = shown_answers(out, [plain, drafted])
    assert "The transformers fp32 backend has the fastest plain decoding, 1" in text
    assert "No lossless draft there is surely faster: the leading one, The draft a, reaches 0.90×" in text
    assert "transformers bf16 reaches more with The draft c n-gram: 1.99×" in text


def test_archived_boards_never_lead(out):
    """The archived board is faster and newer and holds more."""
    old = result({"a": 3.0}, id="20261109-o", draftrank_version="0.2.9", tasks={"chat": 9, "math": 9})
    new = slowed(result({"b": 1.5}, id="20261101-n"), lambda _: 4)
    found = build_boards([old, new])
    archived, current = sorted(found, key=lambda board: board.key.draftrank_version)
    write_site(render_pages(found, plots=False), out)
    check_links(out)
    page = Page((out / "index.html").read_text(encoding="utf-8"))
    assert "The draft b" in page.text
    assert "The draft a" not in page.text
    assert board_page(archived.key) not in page.links[: page.links.index(board_page(current.key))]
    assert "1 archived board of earlier versions" in " ".join(page.text.split())
    archive = text_of(out, "archive.html")
    assert "not comparable" in archive
    assert "The draft a" in archive
    assert "The draft b" not in archive
    assert "Archived. An earlier minor version" in text_of(out, board_page(archived.key))
    assert "Archived." not in text_of(out, board_page(current.key))
    rows = json.loads((out / "index.json").read_text(encoding="utf-8"))["boards"]
    assert [row["id"] for row in rows] == [current.key.id, archived.key.id]


def test_a_machine_that_only_an_earlier_version_measured_is_answered_by_it(out):
    new = result({"b": 1.5}, id="20261101-n")
    old = result({"a": 3.0}, id="20261109-o", draftrank_version="0.2.9")
    machine = old.session.machine.model_copy(update={"machine_class": "another-class"})
    old = old.model_copy(update={"session": old.session.model_copy(update={"machine": machine})})
    text = shown_answers(out, [old, new])
    assert text.index("The draft b") < text.index("another-class") < text.index("The draft a")
    assert "archived: draftrank 0.2" in text


def test_the_first_page_begins_with_the_target_that_this_version_measured(out):
    new = result({"b": 1.5}, id="20261101-n")
    old = result({"a": 3.0}, id="20261109-o", draftrank_version="0.2.9")
    old = old.model_copy(update={"session": old.session.model_copy(update={"target": "a-target"})})
    text = shown_answers(out, [old, new])
    assert text.index("The draft b") < text.index("The draft a")


def test_with_archived_results_alone_the_first_page_says_so_and_answers(out):
    old = result({"a": 2.0}, draftrank_version="0.2.9")
    text = shown_answers(out, [old])
    assert f"draftrank {'.'.join(__version__.split('.')[:2])} has no results yet" in text
    assert "archived: draftrank 0.2" in text
    assert "Use The draft a" in text


def test_no_archive_without_archived_boards(out):
    write_site(render_pages(boards(), plots=False), out)
    assert not (out / "archive.html").exists()
    assert "rchive" not in (out / "index.html").read_text(encoding="utf-8")


class Tables(HTMLParser):
    """Collects each table's columns: heading and the texts of its cells."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.cell, self.svg = [], None, 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][-1].append("")
            self.cell = True
        elif tag in ("line", "circle") and self.cell:
            self.handle_data("drawn")

    def handle_endtag(self, tag):
        if tag in ("th", "td"):
            self.cell = None

    def handle_data(self, data):
        if self.cell:
            self.tables[-1][-1][-1] += data.strip()

    @property
    def columns(self):
        """(heading, cells) of each column of each table; rows of a single cell are dividers."""
        for table in self.tables:
            lines = [line for line in table[1:] if len(line) == len(table[0])]
            for place, heading in enumerate(table[0]):
                if lines and place:
                    yield heading, [line[place] for line in lines]


def test_no_column_of_the_first_page_is_empty_where_no_draft_is_ranked(out):
    """Alone and with another board without a ranked draft beside it: all their speedups are unknown."""
    dead = result({"a": 1.0}, arms=[arm_of("a", draft=None, failure="no")], drop=lambda one: one.arm == "a")
    none = result({}, id="20261102-b", dtype="bf16")
    write_site(render_pages(build_boards([dead, none]), plots=False), out)
    text = (out / "index.html").read_text(encoding="utf-8")
    columns = [(heading, cells) for heading, cells in Tables(text).columns if set(cells) <= {"", "–"}]
    assert "none is ranked" in text
    assert columns == []


def test_no_column_of_a_board_is_empty(out):
    """Without forward times, sizes and memory."""
    bare = arm_of("bare", latencies=(), peak_memory_bytes=None)
    found = build_boards([result({"bare": 1.5}, arms=[bare])])
    write_site(render_pages(found, plots=False), out)
    columns = [
        column
        for address in ("index.html", board_page(found[0].key))
        for column in Tables((out / address).read_text(encoding="utf-8")).columns
    ]
    assert "Speedup" in [heading for heading, _ in columns]
    assert not [heading for heading, cells in columns if set(cells) <= {"", "–", "none"}]
    assert "Cost" not in [heading for heading, _ in columns]
    assert "Params" not in [heading for heading, _ in columns]
    full = build_boards([result({"a": 1.5}, arms=[arm_of("a", draft=build("a", parameters=9))])])
    write_site(render_pages(full, plots=False), out)
    headings = [
        heading for heading, _ in Tables((out / board_page(full[0].key)).read_text(encoding="utf-8")).columns
    ]
    assert {"Cost", "Params", "Memory", "Tokens/s"} <= set(headings)


def test_switches_lead_to_the_nearest_board_that_differs(out):
    found = boards()
    write_site(render_pages(found, plots=False), out)
    for own, other in (found, found[::-1]):
        page = Page((out / board_page(own.key)).read_text(encoding="utf-8"))
        assert f"../../../../{board_page(other.key)}" in page.links
        assert own.key.dtype in page.text


def test_targets_tasks_and_machines_have_pages(out):
    target = Target.model_validate_json(
        json.dumps(
            {
                "schema_version": 1,
                "id": "tiny-target",
                "title": "A tiny target",
                "licence": "MIT",
                "source": {"kind": "local", "path": "weights"},
            }
        )
    )
    task = Task.model_validate_json(
        json.dumps(
            {
                "schema_version": 1,
                "id": "math",
                "title": "Sums",
                "licence": "CC0-1.0",
                "source": {"kind": "inline", "prompts": [{"turns": ["1+1"]}]},
            }
        )
    )
    write_site(render_pages(boards(), declared=Declarations.of([target], [task]), plots=False), out)
    assert "A tiny target" in text_of(out, target_page("tiny-target"))
    assert "Leading lossless draft" in text_of(out, target_page("tiny-target"))
    assert "Sums" in text_of(out, task_page("math"))
    assert "The draft cut" in text_of(out, task_page("math"))
    assert "The draft cut" in text_of(out, task_page("chat"))  # (not declared here)
    machine = text_of(out, machine_page("cpu-2core"))
    assert "Example CPU" in machine
    assert "20261102-b" in machine


def test_a_draft_page_sets_it_against_its_neighbours(out):
    found = boards()
    write_site(render_pages(found, plots=False), out)
    text = text_of(out, draft_page("tiny-target", "cut"))
    ratio = found[1].rows[0].speedup / found[1].rows[1].speedup
    assert "Compared with its neighbours" in text
    assert f"{ratio:.2f}×" in text
    assert "> 99.9 %" in text.replace("\u00a0", " ")


def test_a_draft_page_says_how_other_programs_use_it(out):
    write_site(render_pages(boards(), plots=False), out)
    text = text_of(out, draft_page("tiny-target", "ngram-3"))
    assert "prompt_lookup_num_tokens=3" in text
    assert "vllm serve" in text
    assert "assistant_model=draft" in text_of(out, draft_page("tiny-target", "cut"))


def test_a_recipe_that_this_version_no_longer_knows_is_shown_as_it_was_recorded(out):
    steps = [
        {"kind": "drop_layers", "keep": [2]},
        {"kind": "read_hidden_states", "layers": [0]},  # (old word)
    ]
    recipe = build("own").recipe | {"draft": {"kind": "draft_model", "steps": steps}}
    made = build("own", recipe=recipe, techniques=("layer dropping", "EAGLE head"), parameters=9)
    arms = [arm_of("own", draft=made), arm_of("ngram")]
    write_site(render_pages(build_boards([result({"own": 1.5, "ngram": 1.2}, arms=arms)]), plots=False), out)
    text = text_of(out, draft_page("tiny-target", "own"))
    assert "Layer dropping, then EAGLE head." in text
    assert "kind: read_hidden_states" in text  # (old word)
    assert "needs draftrank as it was on" in text
    assert "needs draftrank as it was on" not in text_of(out, draft_page("tiny-target", "ngram"))


def test_a_draft_page_tells_how_much_of_each_task_its_head_knows(out):
    """Baselines write nine tokens, 100 to 108, but in math a tenth, 7: of nine or ten, eight are known."""

    def changed(one):
        return one.model_copy(update={"token_ids": (7, *one.token_ids)}) if one.task == "math" else one

    def shown(unknown):
        arms = [arm_of("small", draft=build("small", unknown_tokens=unknown)), arm_of("whole")]
        found = result({"small": 1.5, "whole": 1.4}, arms=arms)
        trials = tuple(map(changed, found.trials))
        board = build_boards([found.model_copy(update={"trials": trials})])[0]
        rows = {row.draft: row for row in board.rows}
        write_site(render_pages([board], plots=False), out)
        pages = [text_of(out, draft_page("tiny-target", name)) for name in rows]
        return rows["small"], dict(zip(rows, pages, strict=True))

    row, pages = shown((7, 103))
    assert {task.task: task.known_share for task in row.summary.tasks} == {"chat": 8 / 9, "math": 8 / 10}
    (remark,) = row.remarks
    assert "knows only 80.0 % in math to 88.9 % in chat of the tokens that the target writes" in remark
    assert remark in pages["small"]
    assert "Tokens it can propose" in pages["small"]
    assert "Tokens it can propose" not in pages["whole"]
    row, pages = shown(())
    assert [task.known_share for task in row.summary.tasks] == [1, 1]
    assert row.remarks == ()
    assert "Tokens it can propose" in pages["small"]


def test_a_draft_page_has_its_figures_by_context_length(out):
    """Where every task has several lengths; the other board's prompts are all alike."""
    tasks = {"chat": 8, "math": 8}
    lengths = result(
        {"a": 1.5},
        suite="lengths",
        tasks=tasks,
        change=lambda one: one.model_copy(update={"prompt_tokens": (1_000, 4_096)[one.prompt >= "p4"]}),
    )
    found = build_boards([lengths, result({"a": 1.5}, id="20261102-b", tasks=tasks)])
    write_site(render_pages(found, plots=False), out)
    tables = Tables((out / draft_page("tiny-target", "a")).read_text(encoding="utf-8")).tables
    (table,) = (table for table in tables if table[0][0] == "Tokens of the prompt")
    assert [line[0] for line in table[1:]] == ["1,000", "4,096"]
    (row,) = (board.rows[0] for board in found if board.key.suite == "lengths")
    for line, cell in zip(table[1:], row.per_length, strict=True):
        assert f"{cell.speedup:.2f}×" in line[1]
        assert span(cell.ci) in line[1]
        assert line[3:] == [f"{cell.acceptance_length:.2f}", "8"]
    rows = json.loads((out / "index.json").read_text(encoding="utf-8"))["rows"]
    assert sorted(len(row["per_length"]) for row in rows) == [0, 2]


def test_badges_are_drawings_of_rank_and_speedup(out):
    found = boards()
    write_site(render_pages(found, plots=False), out)
    drawing = ElementTree.fromstring((out / badge("tiny-target", "cut")).read_text(encoding="utf-8"))
    assert (
        drawing.find("{http://www.w3.org/2000/svg}title").text
        == f"draftrank: {found[1].rows[0].speedup:.2f}× · rank 1"
    )
    dead = (out / badge("tiny-target", "dead")).read_text(encoding="utf-8")
    assert "not ranked" in dead


def test_a_draft_page_tells_how_it_was_made_and_how_to_repeat_it(site):
    text = " ".join(pages_of(site)[site / draft_page("tiny-target", "cut")].text.split())
    assert "keep 6 layers, evenly spread." in text
    assert "draftrank run tiny-target --draft cut --suite quick" in text
    assert sha("cut weights") in text
    assert sha("recipe cut") in text
    assert "kind: drop_layers" in text
    assert "20261101-a" in text
    assert "All 16 outputs are the target's own" in text
    assert "target forward" in text  # (where a step's time goes)
    assert "Forward times and acceptance predict a speedup of" in text


def test_ties_breaks_and_lossy_outputs_are_told_apart(out):
    def changed(one):
        if one.prompt != "p1" or one.arm not in ("tied", "broken", "loose", "open") or one.repeat:
            return one
        gap = {"tied": 0.01, "broken": 3.0, "loose": 3.0, "open": 3.0}[one.arm]
        judgement = Judgement(
            divergence=Divergence(
                index=4,
                gap=gap,
                baseline_gap=0.0,
                **(
                    {"before": "Hello <b>", "text": "there", "baseline_text": ""} if one.arm == "tied" else {}
                ),
            ),
            quality=Quality(log_likelihood=-1.5, rouge_l=0.75) if one.arm == "loose" else None,
        )
        tokens = (*one.token_ids[:4], 7, *one.token_ids[5:])
        known = None if one.arm == "open" else judgement
        return one.model_copy(update={"token_ids": tokens, "judgement": known})

    rounding = Numerics(positions=100, forward_tokens=(4,), quantiles=(0.0,) * 100 + (0.1,))
    arms = [arm_of("tied"), arm_of("broken"), arm_of("loose", lossy=True), arm_of("open")]
    speeds = {"tied": 1.5, "broken": 2.0, "loose": 2.5, "open": 1.2}
    found = build_boards([result(speeds, arms=arms, change=changed, dtype="bf16", numerics=rounding)])
    write_site(render_pages(found, plots=False), out)
    index = text_of(out, "index.html")
    assert "identical up to 2 ties" in index
    assert "Lossy: the output may differ from the target's" in index
    pages = {name: (out / draft_page("tiny-target", name)).read_text() for name in speeds}
    assert "token 4 of math/p1: tie, 0.010 below the target's best logit" in Page(pages["tied"]).text
    told = Page(pages["tied"]).text
    assert "… Hello <b>" in told
    assert "(ends)" in told
    assert "there …" in told
    assert "token 4 of math/p1: break, 3.000 below" in Page(pages["broken"]).text
    assert "not judged" not in Page(pages["broken"]).text
    assert "0 differ beyond rounding (breaks), 2 differ and are not judged." in Page(pages["open"]).text
    assert "-1.500 mean log-likelihood per token" in Page(pages["loose"]).text.replace("−", "-")


def test_a_draft_on_two_boards_has_one_page_with_both(site):
    text = " ".join(pages_of(site)[site / draft_page("tiny-target", "ngram-3")].text.split())
    assert "Results: quick, transformers bf16" in text
    assert "Results: quick, transformers fp32" in text


def test_the_methodology_lists_every_word_and_gate(out):
    render_site([], out)
    text = " ".join(pages_of(out)[out / "methodology.html"].text.split())
    assert all(meaning in text for meaning in meanings("Terms"))
    for gate in GATES:
        assert gate.id in text
        assert gate.meaning in text


def test_no_results_yet_is_a_page_with_the_next_command(out):
    render_site([], out)
    pages = check_links(out)
    assert "No results yet" in pages[out / "index.html"].text
    assert "draftrank run" in pages[out / "index.html"].text


def test_a_board_of_the_baseline_alone_renders(out):
    render_site(build_boards([result({})]), out)
    check_links(out)


def test_a_draft_page_shows_the_plain_decoding_of_the_session_that_measured_it(out):
    older = slowed(result({"a": 2.0}), lambda _: 2.0)
    (board,) = build_boards([older, result({"b": 1.5}, id="20261102-b")])
    write_site(render_pages([board], plots=False), out)
    newer, own = (session.baseline_tokens_per_second for session in board.sessions)
    text = text_of(out, draft_page("tiny-target", "a"))
    assert f"plain {own:.1f}" in text
    assert f"plain {newer:.1f}" not in text


def test_rows_of_several_sessions_are_pointed_out(out):
    found = build_boards([result({"a": 2.0}), result({"b": 1.5}, id="20261102-b")])
    write_site(render_pages(found, plots=False), out)
    assert "Rows come from 2 sessions" in text_of(out, "index.html")


@pytest.mark.parametrize("evil", EVIL)
def test_hostile_records_are_only_text(evil, out):
    recipe = build("a").recipe | {
        "title": evil,
        "description": evil,
        "authors": [{"name": evil, evil: evil}],
        "draft": {"kind": evil},
    }
    arms = [
        arm_of(evil, draft=build("a", recipe=recipe, techniques=(evil, "n-gram"))),
        arm_of("dead", draft=None, failure=evil),
    ]
    machine = MACHINE.model_copy(
        update={"cpu": evil, "machine_class": evil, "packages": {evil: evil}, "platform": evil, "gpu": evil}
    )
    hostile = result(
        {evil: 1.5},
        arms=arms,
        tasks={evil: 3, "math": 3},
        id=evil,
        created_at=evil,
        finished_at=evil,
        target=evil,
        suite=evil,
        warnings=(evil,),
        draftrank_version=evil,
        machine=machine,
    )
    render_site(build_boards([hostile]), out)
    assert {path.parent for path in out.parent.iterdir()} == {out.parent}
    pages = check_harmless(out)
    assert evil in pages[out / "index.html"].text


def test_half_a_surrogate_pair_does_not_stop_the_site():
    broken = build("a", recipe=build("a").recipe | {"title": "bad \ud800 title"})
    found = build_boards([result({"a": 1.5}, arms=[arm_of("a", draft=broken)])])
    assert "bad ? title" in render_pages(found)["index.html"].decode("utf-8")


def test_equal_results_give_equal_bytes_in_any_order():
    one, other = result({"a": 2.0}), result({"b": 1.5}, id="20261102-b")
    assert render_pages(build_boards([one, other])) == render_pages(build_boards([other, one]))


def test_a_history_shows_earlier_results_and_records(out):
    slow = result({"a": 1.2}, id="20261101-a")
    fast = result(
        {"b": 2.0}, id="20261105-b", created_at="2026-11-05T10:00:00Z", finished_at="2026-11-05T11:00:00Z"
    )
    again = result(
        {"a": 1.3}, id="20261107-c", created_at="2026-11-07T10:00:00Z", finished_at="2026-11-07T11:00:00Z"
    )
    write_site(render_pages(build_boards([slow, fast, again]), plots=False), out)
    assert "The draft b 1.99×" in text_of(out, "index.html").split("Records")[1]
    assert "over The draft a with 1.19×" in text_of(out, "index.html")
    history = text_of(out, draft_page("tiny-target", "a")).split("History")[1]
    assert "2026-11-01" in history
    assert "2026-11-07" in history


@given(st.lists(session_results(), max_size=3))
@examples(15, suppress_health_check=list(HealthCheck))
def test_any_valid_results_can_be_shown(results):
    found = build_boards(results)
    pages = render_pages(found, plots=False)
    assert pages == render_pages(build_boards(results[::-1]), plots=False)
    for name, content in pages.items():
        if name.endswith(".html"):
            page = Page(content.decode())
            numbers = [
                v for name, v in page.attributes if name in ("x", "y", "x1", "x2", "cx", "width", "height")
            ]
            assert not {"nan", "inf"} & set(numbers)


def test_the_json_document_is_part_of_the_site_and_follows_its_schema(site):
    document = json.loads((site / "index.json").read_text(encoding="utf-8"))
    schema = json.loads((site / "index.schema.json").read_text(encoding="utf-8"))
    assert len(document["rows"]) == 4
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(document, schema)
    described = schema["$defs"]["Row"]["properties"]
    assert described["speedup"]["description"] == "Overall, over the baseline of the same session."
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document | {"rows": [{"draft": "cut"}]}, schema)


def test_the_table_of_all_rows_opens_in_a_spreadsheet(out):
    hostile = build("=1+1", recipe=build("=1+1").recipe | {"title": "=cmd()"})
    found = build_boards([result({"=1+1": 1.5, "b": 2.0}, arms=[arm_of("=1+1", draft=hostile), arm_of("b")])])
    write_site(render_pages(found, plots=False), out)
    rows = list(csv.DictReader((out / "results.csv").read_text(encoding="utf-8").splitlines()))
    assert [row["draft"] for row in rows] == ["b", "'=1+1"]
    assert rows[1]["title"] == "'=cmd()"
    assert float(rows[0]["speedup"]) == pytest.approx(found[0].rows[0].speedup)
    assert float(rows[0]["speedup_math"]) == pytest.approx(found[0].rows[0].per_task["math"].speedup)


def test_the_feed_tells_of_results_and_records(out):
    slow = result({"a": 1.2}, id="20261101-a")
    fast = result(
        {"b": 2.0}, id="20261105-b", created_at="2026-11-05T10:00:00Z", finished_at="2026-11-05T11:00:00Z"
    )
    write_site(render_pages(build_boards([slow, fast]), url="https://example.org/board/", plots=False), out)
    atom = "{http://www.w3.org/2005/Atom}"
    feed = ElementTree.parse(out / "feed.xml").getroot()
    assert feed.get("{http://www.w3.org/XML/1998/namespace}base") == "https://example.org/board/"
    titles = [entry.find(f"{atom}title").text for entry in feed.iter(f"{atom}entry")]
    assert "New record: The draft b with 1.99×" in titles
    assert "The draft a: 1.19×" in titles
    links = [entry.find(f"{atom}link").get("href") for entry in feed.iter(f"{atom}entry")]
    assert all((out / link).is_file() for link in links)
    ids = [entry.find(f"{atom}id").text for entry in feed.iter(f"{atom}entry")]
    assert len(set(ids)) == len(ids)


def test_pages_that_are_gone_are_removed_and_other_files_stay(site, out):
    shutil.copytree(site, out)
    (out / "CNAME").write_text("example.org", encoding="utf-8")
    (out / "drafts" / "notes.txt").write_text("mine", encoding="utf-8")
    write_site(render_pages(build_boards([result({"a": 2.0})]), plots=False), out)
    assert sorted(path.name for path in (out / "drafts" / "tiny-target").iterdir()) == ["a"]
    assert (out / "CNAME").exists()
    assert (out / "drafts" / "notes.txt").exists()
    assert not [path for path in out.iterdir() if path.name.startswith(".draftrank-new")]
    check_links(out)


def test_a_listing_that_leads_out_of_the_folder_removes_nothing(out, tmp_path):
    precious = tmp_path / "precious.txt"
    precious.write_text("keep", encoding="utf-8")
    render_site([], out)
    os.symlink(tmp_path, out / "link")
    with (out / LISTING).open("a", encoding="utf-8") as listing:
        listing.write(f"../precious.txt\n{precious}\nlink/precious.txt\n")
    render_site([], out)
    assert precious.exists()


def test_a_foreign_site_is_not_overwritten(out):
    out.mkdir()
    (out / "index.html").write_text("mine", encoding="utf-8")
    with pytest.raises(InvalidInputError, match="another folder"):
        render_site([], out)
    assert (out / "index.html").read_text(encoding="utf-8") == "mine"
    with pytest.raises(InvalidInputError, match="not a folder"):
        render_site([], out / "index.html")


def test_a_page_that_cannot_be_written_leaves_the_old_site_whole(out):
    render_site([], out)
    before = (out / "index.html").read_bytes()
    with pytest.raises(OSError, match="name too long"):
        write_site({"index.html": b"new", "x" * 400: b"too long"}, out)
    assert (out / "index.html").read_bytes() == before
    assert not [path for path in out.iterdir() if path.name.startswith(".draftrank-new")]


@given(st.text(max_size=80))
def test_file_names_are_always_safe(text):
    name = safe_name(text)
    assert 0 < len(name) <= 64
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789.-")
    assert not name.startswith((".", "-"))


@given(st.text(max_size=8), st.text(max_size=8))
def test_different_texts_have_different_file_names(one, other):
    assert (safe_name(one) == safe_name(other)) == (one == other)


def test_identifiers_stay_as_they_are():
    assert safe_name("depth6-distilled.v2") == "depth6-distilled.v2"


def test_the_source_of_the_site_is_found():
    assert (site_source() / "templates" / "base.html.j2").is_file()
    assert (site_source() / "static" / "site.css").is_file()


def test_the_style_loads_nothing_from_other_hosts():
    css = (site_source() / "static" / "site.css").read_text(encoding="utf-8")
    assert "url(" not in css
    assert "@import" not in css
