"""`draftrank serve-bench`: drafts in a real server, at several numbers of requests in flight."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from json import dumps
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated

import typer

from draftrank.cli.options import MAX_SEED, FreshOption, JsonOption, TasksOption, WorkspaceOption, finite
from draftrank.cli.output import ConsoleProgress, out, print_json

if TYPE_CHECKING:
    from draftrank.measure.serving_records import ServingResult

TUNED_K = (1, 2, 4, 8)
"""What `--tune-k` measures."""


class ClientName(StrEnum):
    """Load generators whose files are written; see `measure.summaries.other_clients`."""

    vllm_bench = "vllm-bench"
    aiperf = "aiperf"
    guidellm = "guidellm"


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
    task: TasksOption = None,
    prompts: Annotated[
        int | None, typer.Option(help="At most so many prompts of each task.", min=1, show_default=False)
    ] = None,
    rounds: Annotated[
        int, typer.Option(help="Rounds of every arm at every concurrency.", min=1, max=1000)
    ] = 6,
    rate: Annotated[
        float | None,
        typer.Option(
            help="Send at random moments, so many requests per second on average; --concurrency is then the most at once.",
            show_default=False,
            callback=finite,
        ),
    ] = None,
    k: Annotated[
        list[int] | None,
        typer.Option(help="Tokens proposed per step; repeatable, each an arm. Default: the recipe's.", min=1),
    ] = None,
    tune_k: Annotated[
        bool,
        typer.Option(
            "--tune-k",
            help=f"Short for {' '.join(f'--k {k}' for k in TUNED_K)}: find the best k at each concurrency. --k goes before it.",
        ),
    ] = False,
    seed: Annotated[
        int,
        typer.Option(
            help="Seed of the order of prompts and of arrivals.", min=0, max=MAX_SEED, metavar="INTEGER"
        ),
    ] = 0,
    idle: Annotated[
        float,
        typer.Option(
            help="Seconds without a byte after which a request counts as hung.", min=0.1, callback=finite
        ),
    ] = 120.0,
    pause: Annotated[
        bool, typer.Option("--pause/--no-pause", help="Stop servers (SIGSTOP) while they have no load.")
    ] = True,
    formats: Annotated[
        list[ClientName] | None,
        typer.Option("--format", help="Also write what this load generator writes, into --to; repeatable."),
    ] = None,
    to: Annotated[
        Path | None, typer.Option(help="Folder for --format.", metavar="DIR", show_default=False)
    ] = None,
    fresh: FreshOption = False,
    json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Measure drafts in a real server, beside the same server without a draft, at several numbers of requests in flight.

    Every arm is a server process of its own. Rounds of the same prompts alternate between them, and each round is stored as
    it ends: the same command resumes an interrupted session, and tries servers that failed again.

    [bold]Example:[/bold] draftrank serve-bench smollm2-135m-instruct --server vllm-cpu --draft ngram -c 1 -c 4 -c 16
    """
    from draftrank.board.serving_ranking import build_serving_boards
    from draftrank.catalog.workspace import Workspace
    from draftrank.cli.serving_tables import print_serving_board
    from draftrank.errors import InvalidInputError
    from draftrank.store.store import Store
    from draftrank.workflows.serve_bench import ServeRequest
    from draftrank.workflows.serve_bench import serve_bench as measure

    if (to is None) == bool(formats):
        raise InvalidInputError.single(
            "go together",
            field="--format and --to",
            fix="name the load generator, and a folder for its files",
        )
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
        k=tuple(k or (TUNED_K if tune_k else ())),
        seed=seed,
        idle_s=idle,
        pause=pause,
        fresh=fresh,
    )
    with Store.open(opened.store_url) as store, ConsoleProgress() as progress:
        result = measure(opened, asked, store, progress)
    (board,) = build_serving_boards([result])
    print_serving_board(board)
    session = result.session
    for arm in session.arms:
        if arm.failure:
            # Of a draft that could not be had no server was started: once it can be, that is another session.
            started = arm.kind != "draft" or arm.speculation
            then = "tries it again" if started else "measures all anew once that is mended"
            out.print(f"{arm.id} failed: {arm.failure.splitlines()[0]}; the same command {then}")
    out.print(f"serving session {session.id} kept in {opened.display(opened.state)}")
    if to is not None:
        _write(result, formats or (), to)
    if json:
        print_json(
            {
                "session": session.id,
                "finished": session.finished_at is not None,
                "rounds": len(result.rounds),
                "tokens_per_s": {arm.id: _throughputs(result, arm.id) for arm in session.arms},
                "best_k": {row.draft: dict(row.best_k) for row in board.several_k},
                "failures": {arm.id: arm.failure for arm in session.arms if arm.failure},
                "warnings": session.warnings,
            }
        )
    if any(arm.failure for arm in session.arms):
        raise typer.Exit(1)


def _write(result: ServingResult, formats: Sequence[ClientName], folder: Path) -> None:
    from draftrank.measure.summaries.other_clients import CLIENTS

    for name in formats:
        for file, document in CLIENTS[name](result):
            path = folder / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(dumps(document, indent=1) + "\n", "utf-8")
            out.print(f"written: {path}")


def _throughputs(result: ServingResult, arm: str) -> dict[str, float]:
    """By concurrency, the median of the arm's rounds that count."""
    from draftrank.measure.statistics.serving import standing_rounds

    found: dict[int, list[float]] = {}
    for (concurrency, _), block in standing_rounds(result.rounds).items():
        if arm in block:
            found.setdefault(concurrency, []).append(block[arm].tokens / block[arm].wall_s)
    return {str(concurrency): round(median(values), 3) for concurrency, values in found.items()}
