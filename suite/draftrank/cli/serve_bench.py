"""`draftrank serve-bench`: drafts in a real server, at several numbers of requests in flight."""

from __future__ import annotations

from json import dumps
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated

import typer

from draftrank.cli.options import JsonOption, WorkspaceOption
from draftrank.cli.output import ConsoleProgress, out, print_json

if TYPE_CHECKING:
    from draftrank.measure.serving_records import Round, ServingResult


def serve_bench(
    target: Annotated[str, typer.Argument(help="The target's id.", show_default=False)],
    server: Annotated[
        str, typer.Option(help="The server's id: `draftrank list servers`.", metavar="ID", show_default=False)
    ],
    draft: Annotated[
        list[str] | None,
        typer.Option("--draft", "-d", help="A draft to serve; repeatable. Default: none.", metavar="ID"),
    ] = None,
    concurrency: Annotated[
        list[int] | None,
        typer.Option(
            "--concurrency", "-c", help="Requests in flight at once; repeatable. Default: 1.", min=1
        ),
    ] = None,
    suite: Annotated[str, typer.Option(help="The suite whose prompts are sent.", metavar="ID")] = "quick",
    task: Annotated[
        list[str] | None, typer.Option(help="Only this task of the suite; repeatable.", metavar="ID")
    ] = None,
    prompts: Annotated[
        int | None, typer.Option(help="At most so many prompts of each task.", min=1, show_default=False)
    ] = None,
    rounds: Annotated[int, typer.Option(help="Rounds of every arm at every concurrency.", min=1)] = 6,
    rate: Annotated[
        float | None,
        typer.Option(
            help="Send at random moments, so many requests per second on average; --concurrency is then the most at once.",
            show_default=False,
        ),
    ] = None,
    k: Annotated[
        list[int] | None,
        typer.Option(help="Tokens proposed per step; repeatable, each an arm. Default: the recipe's.", min=1),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the order of prompts and of arrivals.", min=0)] = 0,
    idle: Annotated[
        float, typer.Option(help="Seconds without a byte after which a request counts as hung.", min=0.1)
    ] = 120.0,
    pause: Annotated[
        bool, typer.Option("--pause/--no-pause", help="Stop servers (SIGSTOP) while they have no load.")
    ] = True,
    vllm_bench: Annotated[
        Path | None,
        typer.Option(
            "--vllm-bench",
            help="Write a file as `vllm bench serve` does for each arm and concurrency into this folder.",
            metavar="DIR",
            show_default=False,
        ),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure again even if it is measured.")] = False,
    json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Measure drafts in a real server, beside the same server without a draft, at several numbers of requests in flight.

    Every arm is a server process of its own. Rounds of the same prompts alternate between them, and each round is stored as
    it ends: the same command resumes an interrupted session.

    [bold]Example:[/bold] draftrank serve-bench smollm2-135m-instruct --server vllm-cpu --draft ngram -c 1 -c 4 -c 16
    """
    from draftrank.board.serving_ranking import build_serving_boards
    from draftrank.catalog.workspace import Workspace
    from draftrank.cli.serving_tables import print_serving_board
    from draftrank.store.store import Store
    from draftrank.workflows.serve_bench import ServeRequest
    from draftrank.workflows.serve_bench import serve_bench as measure

    opened = Workspace.open(workspace)
    asked = ServeRequest(
        target=target,
        server=server,
        drafts=tuple(draft or ()),
        concurrencies=tuple(concurrency or (1,)),
        suite=suite,
        tasks=tuple(task or ()),
        prompts=prompts,
        rounds=rounds,
        rate=rate,
        k=tuple(k or ()),
        seed=seed,
        idle_s=idle,
        pause=pause,
        fresh=fresh,
    )
    with Store.open(opened.store_url) as store, ConsoleProgress() as progress:
        result = measure(opened, asked, store, progress)
    for board in build_serving_boards([result]):
        print_serving_board(board)
    session = result.session
    for arm in session.arms:
        if arm.failure:
            out.print(f"{arm.id} failed: {arm.failure.splitlines()[0]}")
    out.print(f"serving session {session.id} kept in {opened.display(opened.state)}")
    if vllm_bench is not None:
        _write_vllm_bench(result, vllm_bench)
    if json:
        print_json(
            {
                "session": session.id,
                "finished": session.finished_at is not None,
                "rounds": len(result.rounds),
                "tokens_per_s": {arm.id: _throughputs(result, arm.id) for arm in session.arms},
                "failures": {arm.id: arm.failure for arm in session.arms if arm.failure},
                "warnings": session.warnings,
            }
        )
    if any(arm.failure for arm in session.arms):
        raise typer.Exit(1)


def _write_vllm_bench(result: ServingResult, folder: Path) -> None:
    from draftrank.measure.summaries.vllm_bench import vllm_bench_documents

    folder.mkdir(parents=True, exist_ok=True)
    for name, document in vllm_bench_documents(result):
        path = folder / f"{name}.json"
        path.write_text(dumps(document, indent=1) + "\n", "utf-8")
        out.print(f"written: {path}")


def _throughputs(result: ServingResult, arm: str) -> dict[str, float]:
    """By concurrency, the median of the arm's rounds; of a block that was measured again the last attempt counts."""
    found: dict[int, dict[int, Round]] = {}
    for one in sorted(result.rounds, key=lambda one: one.attempt):
        if one.arm == arm:
            found.setdefault(one.concurrency, {})[one.index] = one
    return {
        str(concurrency): round(median(one.tokens / one.wall_s for one in rounds.values()), 3)
        for concurrency, rounds in found.items()
    }
