"""What the documents say is so: their examples run, and nothing there is goes unnamed."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from contextlib import redirect_stdout
from importlib import import_module as script
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from draftrank import RunRequest, kinds
from draftrank.board.formats import span
from draftrank.catalog.loading import load_declaration
from draftrank.catalog.schemas import MODELS
from draftrank.cli.main import COMMANDS

ROOT = Path(__file__).parents[2]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text("utf-8")
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "drafts").glob("*.md")]
}
DECLARATIONS = PAGES["docs/declarations.md"]
COMMANDS_PAGE = PAGES["docs/commands.md"]
KINDS = {**kinds.SOURCES, **kinds.STEPS, **kinds.DRAFTS}


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.+?)^```$", page, re.DOTALL | re.MULTILINE)


def test_the_python_examples_run_in_their_order(measured_root, monkeypatch):
    monkeypatch.chdir(measured_root)
    page = PAGES["docs/python-api.md"].replace("smollm2-135m-instruct", "tiny")
    names: dict[str, object] = {}
    printed = io.StringIO()
    with redirect_stdout(printed):
        for block in blocks(page.replace("depth6-unhealed", "shallow"), "python"):
            exec(compile(block, "docs/python-api.md", "exec"), names)
    told = printed.getvalue()
    assert "tiny shallow from a copy of the target: keep 2 layers" in told
    assert "has measured this already" in told
    assert '2 ["known: tiny"]'.replace('"', "'") in told
    assert {row["draft"] for row in names["document"]["rows"]} == {"early-exit", "int8", "ngram", "shallow"}
    assert (measured_root / "site" / "index.html").is_file()


def test_the_python_page_names_every_field_of_a_request():
    table = PAGES["docs/python-api.md"].split("The fields of `RunRequest`:")[1].split("\n\n")[1]
    cells = [line.split("|")[1] for line in table.splitlines()[2:]]
    assert re.findall(r"`(\w+)`", " ".join(cells)) == [field.name for field in dataclasses.fields(RunRequest)]


@pytest.mark.parametrize("page", ["README.md", "docs/declarations.md", "CONTRIBUTING.md", "drafts/README.md"])
def test_every_yaml_example_is_valid(page, tmp_path):
    for number, block in enumerate(blocks(PAGES[page], "yaml")):
        header = re.match(r"# yaml-language-server: \$schema=\S*/(\w+)\.json\n", block)
        if header:
            model = MODELS[header[1]]
            name = re.search(r"^id: (\S+)$", block, re.MULTILINE)[1]
            folder = tmp_path / str(number) / name
            folder.mkdir(parents=True)
            path = folder / ("target.yaml" if header[1] == "target" else f"{name}.yaml")
            path.write_text(block, "utf-8")
            load_declaration(path, model)
        else:
            path = tmp_path / f"{number}.yaml"
            path.write_text(block, "utf-8")
            kind = TypeAdapter(kinds.load_kind(KINDS[re.match(r"kind: (\w+)\n", block)[1]]))
            kind.validate_json(json.dumps(read(path)))


def read(path: Path) -> object:
    from draftrank.catalog.yaml_file import read_yaml

    return read_yaml(path).data


def test_the_reference_has_an_example_and_a_table_of_every_kind_and_declaration():
    examples = blocks(DECLARATIONS, "yaml")
    for kind in KINDS:
        assert f"### `{kind}`\n" in DECLARATIONS
        assert any(block.startswith(f"kind: {kind}\n") for block in examples)
    for name in MODELS:
        assert any(f"/{name}.json\n" in block.splitlines(keepends=True)[0] for block in examples)
    tables = re.findall(r"<!-- fields: (\w+) -->", DECLARATIONS)
    assert sorted(tables) == sorted(script("generate").definitions())


def test_the_generated_tables_are_current():
    assert script("generate").with_tables(DECLARATIONS) == DECLARATIONS, "run: python ci/generate.py"
    page = PAGES["docs/methodology.md"]
    assert script("generate").with_sections(page) == page, "run: python ci/generate.py"


@pytest.mark.parametrize("name", ["README.md", "docs/results.md"])
def test_the_tables_of_results_are_those_of_the_published_bundles(name):
    assert script("results").with_results(PAGES[name]) == PAGES[name], "run: python ci/results.py"


def test_the_results_page_has_a_section_for_every_published_machine():
    folders = {
        (path.parts[-4], path.parts[-2]) for path in (ROOT / "leaderboard" / "results").glob("*/*/*/*.json")
    }
    sections = re.findall(r"^<!-- boards: (\S+) (\S+) -->$", PAGES["docs/results.md"], re.MULTILINE)
    assert sorted(sections) == sorted(folders)


def test_the_results_page_has_every_published_serving_board():
    section = PAGES["docs/results.md"].split("<!-- servings -->")[1].split("<!-- /servings -->")[0]
    published = script("results").published_servings()
    for board in published:
        assert f"### `{board.key.target}` on `{board.key.machine_class}`\n" in section
        assert all(f"| `{row.draft}`" in section for row in board.rows)
    assert section.count("| plain server, A/A ") == len(published)


def test_a_serving_board_is_a_table_with_a_column_for_each_concurrency():
    from draftrank.board.serving_ranking import build_serving_boards
    from servings import a_serving, an_arm

    arms = {
        "ngram-k2": an_arm("ngram-k2", 2),
        "ngram-k5": an_arm("ngram-k5", 5),
        "dead": an_arm("dead", failure="the server ended with code 1"),
    }
    found = a_serving({"ngram-k2": 0.9, "ngram-k5": {1: 1.5, 4: 1.2, 16: 0.6}, "dead": 1.0}, arms=arms)
    (board,) = build_serving_boards([found])
    text = script("results").server(board)
    assert text.startswith(
        "**vLLM 0.32 bf16, server `vllm-cpu`, suite `quick`.** Version 0.3, 2026-11-30. 16 prompt turns"
    )
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line[:1] == "|"
    ]
    assert lines[0] == ["draft", "1", "4", "16", "switch-off", "accept"]
    cells = dict(zip(lines[0], next(line for line in lines if line[0] == "`ngram`"), strict=True))
    (row,) = (row for row in board.rows if row.draft == "ngram")
    best = row.best[1]
    assert cells["1"] == f"{best.speedup:.2f}× ({span(best.ci)}), k=5"
    assert cells["16"].endswith("k=2")
    assert cells["switch-off"] == row.switch_off.words == "between 4 and 16"
    assert cells["accept"] == f"{best.acceptance_length:.2f}"
    assert lines[2][1:4] == [f"{board.newest.plain[at].throughput:.1f}" for at in (1, 4, 16)]
    assert "- Not ranked: `dead`: failed: the server ended with code 1.\n" in text


def test_a_board_of_several_sessions_says_whose_baseline_it_names():
    from builders import result, slowed
    from draftrank.board.ranking import build_boards

    old, new = slowed(result({"a": 2.0}), lambda _: 2.0), result({"b": 1.5}, id="20261102-b")
    told = "Rows come from 2 sessions, each with a baseline of its own; that of the newest is named."
    (board,), (alone,) = build_boards([old, new]), build_boards([new])
    plain = f"Baseline {alone.newest.baseline_tokens_per_second:.1f} tokens/s"
    assert plain in (head := script("results").whole(board).split("\n\n")[0])
    assert head.endswith(told)
    assert told not in script("results").whole(alone)


def test_the_picture_shows_the_front_pages_board():
    picture = (ROOT / "docs" / "board.png").read_bytes()
    shown = script("board_picture").board_of(picture)
    assert shown == script("results").front_board().key.id, "run: python ci/board_picture.py"


def test_the_readme_is_a_front_page():
    lines = PAGES["README.md"].splitlines()
    tables = [line for line in lines if line.startswith("|")]
    board = PAGES["README.md"].split("<!-- board -->")[1].split("<!-- /board -->")[0]
    assert len(lines) <= 150
    assert max(map(len, tables)) <= 100
    assert board.count("\n|") - 2 <= 6
    assert any(line.startswith("make run") for line in lines[:40])


def test_the_repository_uses_its_terms(capsys):
    assert script("check_words").main() == 0, capsys.readouterr().out


def test_words_that_are_not_used_are_found_where_they_stand():
    hits = script("check_words").hits
    assert list(hits("a.py", "MAX_K = 1\nMOST_K = 2\n")) == [(2, "MOST_K", "MAX_, MIN_")]  # (old word)
    assert list(hits("a.py", 'OLD = "read_features"  # (old word)\n')) == []
    assert list(hits("a.py", "turned = 1\n")) == []
    assert [line for line, *_ in hits("docs/a.md", "one\nturned\n")] == [2]
    assert list(hits("docs/a.md", "<!-- boards: t m -->\nturned\n<!-- /boards -->\n")) == []


def test_the_methodology_names_every_gate_and_rule_and_the_constants_of_intervals():
    from draftrank.measure.gates.serving import SERVING_GATES
    from draftrank.measure.gates.verdict import GATES
    from draftrank.measure.machine.disturbance import RULES
    from draftrank.measure.statistics.log_ratio import CONFIDENCE, MIN_PROMPTS
    from draftrank.measure.summaries.summary import MIN_SHOWN_PROMPTS

    page = PAGES["docs/methodology.md"]
    assert re.findall(r"^\| `([a-z-]+)` \| the (?:draft|session) \|", page, re.MULTILINE) == [
        gate.id for gate in (*GATES, *SERVING_GATES)
    ]
    assert all(f"| `{rule.id}` | {rule.kind} |" in page for rule in RULES)
    assert f"| interval | {CONFIDENCE:.0%} t-interval" in page
    assert (
        f"with fewer than {MIN_PROMPTS} prompts has none, and one with fewer than {MIN_SHOWN_PROMPTS} is"
        in page
    )
    stopped_by = page.split("| fault | stopped by |")[1].split("\n\n")[0]
    assert set(re.findall(r"`([a-z-]+)`", stopped_by)) <= {gate.id for gate in GATES}


def test_every_command_and_variable_is_in_the_reference():
    table = re.findall(r"^\| `draftrank ([\w-]+)` \|", COMMANDS_PAGE, re.MULTILINE)
    assert table == list(COMMANDS)
    code = "".join(path.read_text("utf-8") for path in (ROOT / "suite").rglob("*.py"))
    assert set(re.findall(r"DRAFTRANK_[A-Z]+", code)) == set(re.findall(r"DRAFTRANK_[A-Z]+", COMMANDS_PAGE))


def test_documents_name_only_commands_options_and_files_that_there_are(measured_root):
    from commands import several

    pages = dict(zip(COMMANDS, several(measured_root, *([name, "--help"] for name in COMMANDS)), strict=True))
    for name, page in PAGES.items():
        for command, rest in re.findall(r"\bdraftrank (\w[\w-]*)((?: [^\n`#]*)?)", page):
            if command not in COMMANDS:
                continue
            for option in re.findall(r"--[a-z-]+", rest):
                assert option in pages[command].out, f"{name}: draftrank {command} {option}"
        for link in re.findall(r"\]\(([^)#]+)", page):
            if not link.startswith("http"):
                assert (ROOT / name).parent.joinpath(link).exists(), f"{name}: {link}"


def test_the_board_example_has_the_fields_of_a_real_board(measured):
    example = json.loads(blocks(COMMANDS_PAGE, "json")[0])
    real = measured[1].json
    assert example.keys() <= real.keys()
    assert example["rows"][0].keys() <= real["rows"][0].keys()
    assert example["boards"][0].keys() <= real["boards"][0].keys()
