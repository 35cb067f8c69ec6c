"""Times what reads results: commands on 110 and 2,000 published bundles, how long 1,000 drafts take to render, what a
board of 200 weighs, how fast its table answers.

`PYTHONPATH=tests python ci/bench_site.py` (`make bench`); the last part needs Chromium and playwright, and is left out where they are missing. Each
command runs twice: the first run reads every bundle, the second one only what it shows. On a busy machine look at
processor seconds, not at wall seconds.
"""

from __future__ import annotations

import gzip
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import date, timedelta
from pathlib import Path

from builders import MACHINE, arm_of, build, result
from draftrank.board.ranking import build_boards
from draftrank.board.rows import Board
from draftrank.board.site import render_site
from draftrank.board.site.addresses import board_page
from draftrank.board.site.drawing import VEGA
from draftrank.measure.records import SessionResult
from draftrank.store.bundle import load_results, publish

ROOT = Path(__file__).parents[1]
TARGET = "smollm2-135m-instruct"
COMMANDS = {
    "board": ["board", "--target", TARGET],
    "show": ["show", "ngram", "--target", TARGET],
    "compare": ["compare", "ngram", "suffix", "--target", TARGET],
}
TASKS = {f"task-{number}": 8 for number in range(10)}
CLICKS = 15


def workspace_of(bundles: int, folder: Path) -> Path:
    """A workspace with the published results and, up to so many bundles, later copies of their small sessions."""
    root = folder / "workspace"
    for name in ("drafts", "tasks", "leaderboard/results", "leaderboard/serving", "leaderboard/parity"):
        shutil.copytree(ROOT / name, root / name)
    results = root / "leaderboard" / "results"
    small = [found for found in load_results(None, results) if found.session.suite == "quick"]
    for number in range(bundles - len(list(results.rglob("*.json")))):
        copied = small[number % len(small)]
        day = f"{date(2027, 1, 1) + timedelta(days=number // len(small))}"
        changes = {"id": f"{day}-{number:012x}", "created_at": f"{day}T00:00:00.000Z", "finished_at": None}
        publish(copied.model_copy(update={"session": copied.session.model_copy(update=changes)}), results)
    return root


def reading(bundles: int, *, site: bool) -> dict[str, dict[str, float]]:
    """Seconds of each command, the first time and the second: on the wall, and of the processor."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        root = workspace_of(bundles, Path(folder))
        commands = COMMANDS | ({"site": ["site", "--out", f"{folder}/site"]} if site else {})
        for name, command in commands.items():
            for turn in ("first", "again"):
                before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
                subprocess.run(
                    [sys.executable, "-m", "draftrank", *command, "--workspace", str(root)],
                    check=True,
                    stdout=subprocess.DEVNULL,
                )
                wall, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
                used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
                found[f"{name} {turn}"] = {"wall_s": round(wall, 2), "cpu_s": round(used, 2)}
    return found


def session(drafts: int, machine: str) -> SessionResult:
    """One session of many drafts."""
    speeds = {f"draft-{number:04d}": 0.6 + 1.8 * number / drafts for number in range(drafts)}
    steps = [
        {"kind": "drop_layers", "keep": 4, "select": "ends"},
        {"kind": "trim_vocabulary", "keep_tokens": 8192},
        {"kind": "quantize", "scheme": "dynamic_int8"},
    ]
    arms = [
        arm_of(
            name,
            draft=build(
                name,
                recipe=build(name).recipe | {"draft": {"kind": "draft_model", "steps": steps}},
                techniques=("layer dropping", "vocabulary trimming", "quantization"),
                parameters=1_000_000 * (1 + place % 90),
                bytes_on_disk=4_000_000 * (1 + place % 90),
            ),
        )
        for place, name in enumerate(speeds)
    ]
    where = MACHINE.model_copy(update={"machine_class": machine})
    return result(speeds, arms=arms, tasks=TASKS, repeats=1, id=f"20261101-{machine}", machine=where)


def rendering(drafts: int, machines: int) -> dict[str, float]:
    """Seconds from records to files."""
    results = [session(drafts, f"machine-{number}") for number in range(machines)]
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        boards = build_boards(results)
        ranked = time.perf_counter()
        files = render_site(boards, Path(folder) / "site")
        end = time.perf_counter()
    loaded = {"torch", "transformers"} & sys.modules.keys()
    assert not loaded, f"{loaded} was imported"
    return {"rank_s": ranked - begin, "render_s": end - ranked, "total_s": end - begin, "files": len(files)}


def weight(site: Path, board: Board) -> dict[str, int]:
    """Bytes of a board's page with its scripts and style, as a server sends them, apart from the charts."""
    parts = [site / board_page(board.key)]
    parts += [
        path for path in (site / "static").iterdir() if path.name != Path(VEGA).name and path.suffix != ".txt"
    ]
    sizes = {path.name: len(gzip.compress(path.read_bytes())) for path in parts}
    return {"page_gzip_bytes": sizes["index.html"], "with_scripts_gzip_bytes": sum(sizes.values())}


def answering(site: Path, board: Board) -> dict[str, float] | None:
    """Milliseconds from an action to the next painted frame, median and worst."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return None
    if chromium is None:
        return None
    script = """async actions => {
        const painted = () => new Promise(done => requestAnimationFrame(() => setTimeout(done)));
        const times = { sort: [], filter: [] };
        for (let round = 0; round < actions; round++) {
            for (const kind of ["sort", "filter"]) {
                await painted();
                const begin = performance.now();
                if (kind === "sort") {
                    const buttons = document.querySelectorAll("#ranking thead button");
                    buttons[2 + round % 4].click();
                } else {
                    const search = document.getElementById("search");
                    search.value = round % 2 ? "" : "draft-00" + (round % 10);
                    search.dispatchEvent(new Event("input"));
                }
                document.body.offsetHeight;
                await painted();
                times[kind].push(performance.now() - begin);
            }
        }
        return times;
    }"""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.goto((site / board_page(board.key)).as_uri())
        times = page.evaluate(script, CLICKS)
        browser.close()
    return {
        f"{kind}_{name}_ms": round(of(found), 1)
        for kind, found in times.items()
        for name, of in (("median", statistics.median), ("worst", max))
    }


def main(arguments: Sequence[str]) -> None:
    """Prints a line per part, then all of it as JSON."""
    small = "--small" in arguments
    found: dict[str, object] = {}
    for bundles in (110,) if small else (110, 2_000):
        found[f"reading {bundles}"] = told = reading(bundles, site=bundles == 110)
        print(f"reading {bundles}", told, flush=True)
    if "--reading" in arguments:
        return
    found["rendering"] = rendering(50 if small else 1_000, 3)
    print("rendering", found["rendering"], flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for drafts, part in ((200, weight), (1_000, answering)):
            boards = build_boards([session(20 if small else drafts, "machine")])
            site = Path(folder) / str(drafts)
            render_site(boards, site)
            found[part.__name__] = part(site, boards[0])
            print(part.__name__, found[part.__name__], flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
