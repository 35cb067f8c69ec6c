"""Pages of serving boards: complete, told without colour, linked from everywhere, safe with hostile records."""

from __future__ import annotations

import csv
import json
import re
import xml.etree.ElementTree as ElementTree

import jsonschema
import pytest

from builders import MACHINE, arm_of, build, result
from draftrank.board.formats import span
from draftrank.board.ranking import build_boards
from draftrank.board.serving_ranking import build_serving_boards
from draftrank.board.site import render_site
from draftrank.board.site.addresses import draft_page, machine_page, serving_page, target_page
from draftrank.board.site.files import write_site
from draftrank.board.site.render import render_pages
from draftrank.board.site.serving_plots import serving_plots, serving_rows
from draftrank.measure.gates.serving import SERVING_GATES
from servings import a_serving, an_arm
from site_pages import EVIL, Page, check_harmless, check_links, meanings, text_of

CURVE = {1: 1.5, 4: 1.0, 16: 0.7}


@pytest.fixture
def out(tmp_path):
    return (tmp_path / "site").resolve()


def served(*results):
    return build_serving_boards(results or [a_serving({"ngram": CURVE, "other": 1.2}, noise=0.005, seed=2)])


def own():
    return build_boards([result({"ngram": 1.4})])


def test_all_links_resolve_with_boards_of_both_kinds_and_with_servers_alone(out):
    servings = served()
    render_site(own(), out, servings=servings)
    pages = check_links(out)
    assert {out / "serving" / "index.html", out / serving_page(servings[0].key)} <= set(pages)
    for page in pages.values():
        page.check_scripts()
        assert any(link.endswith("serving/index.html") for link in page.links)
    alone = out.parent / "alone"
    write_site(render_pages([], servings=servings, plots=False), alone)
    check_links(alone)
    assert "No results yet" not in text_of(alone, "index.html")
    assert "In servers, with many users" in text_of(alone, "index.html")


def test_without_serving_boards_nothing_speaks_of_them(out):
    write_site(render_pages(own(), plots=False), out)
    assert not (out / "serving").exists()
    assert "Which draft should I use?" in text_of(out, "index.html")
    for page in ("index.html", "study.html", "data.html"):
        assert "serving" not in (out / page).read_text(encoding="utf-8").split("<main")[1]
    assert not (out / "serving.csv").exists()


def test_a_board_tells_speedups_by_sign_and_word_beside_colour(out):
    servings = served()
    (board,) = servings
    write_site(render_pages(own(), servings=servings, plots=False), out)
    source = (out / serving_page(board.key)).read_text(encoding="utf-8")
    text = " ".join(Page(source).text.split())
    row = next(row for row in board.rows if row.draft == "ngram")
    for at, sign, word in ((1, "▲", "faster"), (4, "≈", "can't tell"), (16, "▼", "slower")):
        cell = row.best[at]
        assert cell.answer == word
        assert f"{sign} {cell.speedup:.2f}× {word} {span(cell.ci)}" in text
    cells = dict(
        zip(
            board.concurrencies,
            re.findall(r'<td class="number (\S+)">', source.split("The draft ngram")[2]),
            strict=False,
        )
    )
    assert cells == {1: "fast-2", 4: "even", 16: "slow-2"}
    assert "between 1 and 16" in text
    assert "identical" in text
    assert f"{board.newest.plain[1].throughput:.1f}" in text


def test_a_sure_gain_of_little_has_a_colour_and_a_wide_one_that_is_not_sure_has_none():
    from draftrank.board.site.serving_view import tone

    sure, unsure = (
        build_serving_boards([a_serving({"d": 1.03}, noise=noise, seed=1)])[0].rows[0].best[1]
        for noise in (0.001, 0.1)
    )
    assert tone(sure) == "fast-1"
    assert tone(unsure) in ("even", "blank")


def test_the_first_page_answers_for_how_many_users(out):
    write_site(render_pages(own(), servings=served(), plots=False), out)
    text = text_of(out, "index.html")
    assert "Which draft, in which engine, for how many users?" in text
    answer = text.split("In servers, with many users")[1]
    assert re.search(r"1 The draft ngram 1\.\d\d×\s*4 The draft other 1\.\d\d×\s*16 The draft other", answer)
    page = Page((out / "index.html").read_text(encoding="utf-8"))
    assert page.links.count(draft_page("tiny-target", "ngram")) >= 2
    assert draft_page("tiny-target", "other") in page.links
    for address in (target_page("tiny-target"), machine_page("cpu-2core")):
        assert "In servers" in text_of(out, address)


def test_a_draft_page_shows_this_engine_and_each_server_side_by_side(out):
    other = a_serving(
        {"ngram": 1.1}, engine="llama.cpp", engine_version="b11434", server="llama-server", seed=5
    )
    write_site(render_pages(own(), servings=served(a_serving({"ngram": CURVE}), other), plots=False), out)
    text = text_of(out, draft_page("tiny-target", "ngram")).split("In each engine")[1].split("Results:")[0]
    assert text.index("draftrank, transformers fp32") < text.index("llama.cpp b11434 bf16")
    assert text.index("llama.cpp b11434 bf16") < text.index("vLLM 0.32 bf16")
    assert "Engine1416Switch-off" in text


def test_a_result_of_an_earlier_recipe_says_so_on_every_page_that_shows_it(out):
    old = {"ngram": an_arm("ngram", draft=build("ngram", recipe_sha256="0" * 64))}
    past = a_serving({"ngram": 1.3}, arms=old, finished_at="2026-10-01T10:00:00Z")
    servings = served(past)
    write_site(render_pages(own(), servings=servings, plots=False), out)
    for address in ("index.html", serving_page(servings[0].key), draft_page("tiny-target", "ngram")):
        assert text_of(out, address).count("earlier recipe") >= 1, address
    (document,) = json.loads((out / "index.json").read_text("utf-8"))["servings"]
    assert document["rows"][0]["earlier_recipe"]
    write_site(render_pages(own(), servings=served(a_serving({"ngram": 1.3})), plots=False), out)
    assert "earlier recipe" not in text_of(out, draft_page("tiny-target", "ngram"))


def test_a_draft_that_only_servers_run_has_a_page_that_says_so(out):
    method = {"id": "mtp", "title": "Own heads", "draft": {"kind": "engine_method", "method": "mtp"}}
    arms = {
        "mtp": an_arm("mtp", draft=build("mtp", recipe=method, techniques=("mtp",))),
        "late": an_arm("late", failure="the server ended with code 1"),
    }
    servings = served(a_serving({"mtp": CURVE, "late": 1.0}, arms=arms))
    write_site(render_pages(own(), servings=servings, plots=False), out)
    check_links(out)
    address = draft_page("tiny-target", "mtp")
    text = text_of(out, address)
    assert text.startswith("Own heads: draftrank")
    assert "The engine's own method mtp." in text
    assert "Only external engines run this draft" in text
    assert "vLLM 0.32 bf16" in text.split("In each engine")[1]
    assert "kind: engine_method" in text
    assert "Results:" not in text
    assert "Badge" not in text
    source = (out / address).read_text(encoding="utf-8")
    assert serving_page(servings[0].key) in source
    late = text_of(out, draft_page("tiny-target", "late"))
    assert "draftrank's own engine has not measured this draft" in late
    assert "failed: the server ended with code 1" in late
    # A draft that this engine has measured keeps its page, and targets list all of them.
    ngram = text_of(out, draft_page("tiny-target", "ngram"))
    assert "All results are of servers" not in ngram
    assert "Badge" in ngram
    listed = text_of(out, target_page("tiny-target")).split("Drafts Draft")[1]
    assert all(title in listed for title in ("Own heads", "The draft late", "The draft ngram"))
    for page in ("serving/index.html", serving_page(servings[0].key), target_page("tiny-target")):
        links = Page((out / page).read_text(encoding="utf-8")).links
        assert any(link.endswith(address) for link in links), page


def test_the_study_tells_what_concurrency_does_to_each_technique(out):
    arms = {
        "mtp": an_arm("mtp", speculation={"method": "mtp"}),
        "ngram-k2": an_arm("ngram-k2", 2),
        "ngram-k5": an_arm("ngram-k5", 5),
    }
    servings = served(a_serving({"ngram-k2": 0.9, "ngram-k5": CURVE, "mtp": 1.2}, arms=arms, noise=0.005))
    write_site(render_pages(own(), servings=servings, plots=False), out)
    check_links(out)
    text = text_of(out, "study.html").split("What concurrency does to each technique")[1]
    board = servings[0]
    ngram = next(row for row in board.rows if row.draft == "ngram")
    assert (
        f"n-gram: for tiny-target in vLLM 0.32 bf16 the speedup falls from {ngram.best[1].speedup:.2f}×"
        in text
    )
    assert "mtp: for tiny-target" in text
    for at, sign in ((1, "▲"), (16, "▼")):
        cell = ngram.best[at]
        assert f"{sign} {cell.speedup:.2f}× {cell.answer} {span(cell.ci)}k {cell.k}" in text
    assert ngram.switch_off.words in text


def test_archived_servers_are_studied_only_without_newer_ones(out):
    old = a_serving({"ngram": 1.3}, seed=1, draftrank_version="0.1.0", engine_version="0.20.0")
    write_site(render_pages([], servings=served(a_serving(), old), plots=False), out)
    study = text_of(out, "study.html")
    assert "vLLM 0.32" in study
    assert "vLLM 0.20" not in study
    write_site(render_pages([], servings=served(old), plots=False), out)
    assert "vLLM 0.20" in text_of(out, "study.html")


def test_the_table_of_servers_has_a_line_for_each_arm_and_concurrency(out):
    arms = {
        "ngram-k2": an_arm("ngram-k2", 2),
        "ngram-k5": an_arm("ngram-k5", 5),
        "dead": an_arm(
            "dead", draft=build("dead", recipe=build("dead").recipe | {"title": "=cmd()"}), failure="no"
        ),
    }
    servings = served(a_serving({"ngram-k2": 0.9, "ngram-k5": CURVE, "dead": 1.0}, arms=arms, noise=0.005))
    write_site(render_pages(own(), servings=servings, plots=False), out)
    lines = list(csv.DictReader((out / "serving.csv").read_text(encoding="utf-8").splitlines()))
    places = [(line["arm"], line["concurrency"]) for line in lines]
    assert sorted(places) == sorted(
        (arm, at) for arm in ("baseline", "ngram-k2", "ngram-k5", "dead") for at in ("1", "4", "16")
    )
    line = lines[places.index(("ngram-k5", "1"))]
    cell = next(row for row in servings[0].rows if row.draft == "ngram").best[1]
    assert (float(line["speedup"]), float(line["ci_low"]), float(line["ci_high"])) == (cell.speedup, *cell.ci)
    assert (line["rank_best"], line["rank_worst"], line["ranked"], line["k"]) == ("1", "1", "true", "5")
    assert (line["board"], line["engine"], line["method"]) == (servings[0].key.id, "vllm", "ngram")
    other = lines[places.index(("ngram-k2", "1"))]
    assert (other["ranked"], other["rank_best"]) == ("true", "")
    plain = lines[places.index(("baseline", "4"))]
    assert (plain["draft"], plain["speedup"], plain["session"]) == ("", "", servings[0].newest.record.id)
    assert float(plain["throughput"]) == servings[0].newest.plain[4].throughput
    dead = lines[places.index(("dead", "16"))]
    assert (dead["title"], dead["ranked"], dead["reason"]) == ("'=cmd()", "false", "failed: no")
    assert "serving.csv" in (out / "data.html").read_text(encoding="utf-8")


def test_the_feed_tells_of_every_session_of_servers(out):
    late = a_serving({"b": 1.2}, seed=1, id="2026-12-01-x", finished_at="2026-12-01T10:00:00Z")
    servings = served(a_serving({"ngram": CURVE}, noise=0.005), late)
    write_site(render_pages(own(), servings=servings, plots=False), out)
    atom = "{http://www.w3.org/2005/Atom}"
    feed = ElementTree.parse(out / "feed.xml").getroot()
    entries = {entry.find(f"{atom}title").text: entry for entry in feed.iter(f"{atom}entry")}
    title = "tiny-target in vLLM 0.32 bf16: 1 draft at concurrency 1, 4, 16"
    both = [entry for entry in feed.iter(f"{atom}entry") if entry.find(f"{atom}title").text == title]
    assert both[0].find(f"{atom}updated").text == "2026-12-01T10:00:00Z"
    assert len({entry.find(f"{atom}id").text for entry in both}) == 2
    assert all((out / entry.find(f"{atom}link").get("href")).is_file() for entry in both)
    ngram = next(row for row in servings[0].rows if row.draft == "ngram")
    told = " ".join(entry.find(f"{atom}summary").text for entry in both)
    assert f"The draft ngram: {ngram.best[1].speedup:.2f}× (" in told
    assert f"; switch-off: {ngram.switch_off.words}." in told
    assert len(entries) == 2  # and the result of this engine


def test_several_k_have_a_table_and_the_best_one_its_mark(out):
    arms = {"ngram-k2": an_arm("ngram-k2", 2), "ngram-k5": an_arm("ngram-k5", 5)}
    found = a_serving({"ngram-k5": {1: 1.5, 4: 1.0, 16: 0.7}, "ngram-k2": 1.2}, arms=arms)
    servings = served(found, a_serving({"other": 1.2}, concurrencies=(1, 2), seed=1, id="2026-11-29-x"))
    write_site(render_pages([], servings=servings, plots=False), out)
    text = text_of(out, serving_page(servings[0].key))
    table = text.split("k against concurrency")[1].split("All figures")[0]
    assert table.count("highest, faster") == 3
    assert "ngrambest k5–22" in table  # at two in flight it was not measured
    assert re.search(r"rank 1, k 5", text)
    assert re.search(r"rank 1, k 2", text)


def test_an_arm_that_failed_and_a_flagged_concurrency_give_their_reasons(out):
    def change(one):
        if one.arm == "dead":
            return None
        return one.model_copy(update={"client_cpu": 0.9}) if one.concurrency == 16 else one

    arms = {"dead": an_arm("dead", draft=None, failure="the server ended with code 1")}
    servings = served(a_serving({"ngram": 1.3, "dead": 1.0}, arms=arms, change=change))
    render_site([], out, servings=servings)
    text = " ".join(text_of(out, serving_page(servings[0].key)).split())
    assert "at 16: the client was the bottleneck" in text
    assert "16 requests in flightunknown: no draft is ranked" in text
    assert re.search(
        r"1 The draft ngram 1\.\d\d×\s*4 The draft ngram 1\.\d\d×\s*16 unknown", text_of(out, "index.html")
    )
    assert "failed: the server ended with code 1" in text
    assert text.split("All figures")[0].count("not ranked") == 4 + 1  # and the sentence on the order of rows


def test_nothing_measured_still_gives_a_page(out):
    servings = served(a_serving(change=lambda _: None, finished_at=None), a_serving({}, seed=1, dtype="fp32"))
    render_site([], out, servings=servings)
    check_links(out)
    assert not list(out.rglob("curve-*.svg"))
    texts = [text_of(out, serving_page(board.key)) for board in servings]
    assert any("no drafts" in text for text in texts)


def test_plots_tell_in_words_what_they_show():
    (board,) = served()
    curve, trade_off = serving_plots(board)
    assert "ngram: between 1 and 16; other: beyond 16" in curve.explanation or (
        "other: beyond 16; ngram: between 1 and 16" in curve.explanation
    )
    assert "Pareto frontier" in trade_off.explanation
    rows = serving_rows(board)
    assert {row["draft"] for row in rows} == {"plain server", "ngram", "other"}
    assert [row["concurrency"] for row in rows if row["off"]] == [4]
    places = [row["place"] for row in rows if row["concurrency"] == 4 and row["draft"] != "plain server"]
    assert len(set(places)) == 2  # intervals stand beside each other


def test_archived_boards_say_so(out):
    servings = served(a_serving(draftrank_version="0.1.0"))
    write_site(render_pages([], servings=servings, plots=False), out)
    assert "Archived. An earlier minor version" in text_of(out, serving_page(servings[0].key))
    assert "archived, draftrank 0.1" in text_of(out, "serving/index.html")


@pytest.mark.parametrize("evil", EVIL)
def test_hostile_text_in_records_stays_text(out, evil):
    recipe = build("d").recipe | {"title": evil, "description": evil, "id": evil}
    draft = build("d", recipe=recipe, techniques=(evil,))
    arms = {"d": an_arm("d", draft=draft, differs=(evil,)), "e": an_arm("e", failure=evil, log_tail=evil)}
    hostile = a_serving(
        {"d": 1.3, "e": 1.1},
        arms=arms,
        id=evil,
        target="tiny-target",
        engine=evil,
        engine_version=evil,
        suite=evil,
        dtype="bf16",
        warnings=(evil,),
        draftrank_version=evil,
        machine=MACHINE.model_copy(update={"machine_class": evil, "cpu": evil}),
    )
    servings = served(hostile)
    same = result({"d": 1.5}, arms=[arm_of("d", draft=draft)], target="tiny-target")
    render_site(build_boards([same]), out, servings=servings)
    pages = check_harmless(out)
    assert evil in pages[out / serving_page(servings[0].key)].text


def test_equal_results_give_equal_bytes_in_any_order():
    first, other = a_serving(), a_serving({"b": 1.2}, seed=1, id="2026-12-01-x")
    pages = render_pages([], servings=build_serving_boards([first, other]), plots=False)
    assert pages == render_pages([], servings=build_serving_boards([other, first]), plots=False)


def test_the_document_of_the_site_has_the_serving_boards_and_follows_its_schema(out):
    write_site(render_pages(own(), servings=served(), plots=False), out)
    document = json.loads((out / "index.json").read_text(encoding="utf-8"))
    schema = json.loads((out / "index.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(document, schema)
    assert len(document["servings"][0]["rows"]) == 2


def test_the_methodology_lists_every_serving_word_and_gate(out):
    write_site(render_pages([], plots=False), out)
    text = text_of(out, "methodology.html")
    assert all(meaning in text for meaning in meanings("Serving terms"))
    for gate in SERVING_GATES:
        assert gate.reason in text
