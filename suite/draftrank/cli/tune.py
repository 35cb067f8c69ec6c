"""`draftrank tune-k`: which number of proposed tokens suits a draft here."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from draftrank.cli import options
from draftrank.cli.output import ConsoleProgress, new_table, out, print_json, print_table

if TYPE_CHECKING:
    from draftrank.workflows.tune import Tuning


def tune_k(
    draft: Annotated[str, typer.Argument(help="The draft's id.", show_default=False)],
    target: options.TargetOfDraftOption = None,
    max_k: Annotated[
        int | None,
        typer.Option(
            "--max-k",
            help="Largest k to try. Default: 8, or the recipe's own where that is larger.",
            min=1,
            max=64,
            show_default=False,
        ),
    ] = None,
    confidence: Annotated[
        list[float] | None,
        typer.Option(
            "--confidence",
            help="Also measure the largest k with `stop_below_confidence` at this value; repeatable.",
            metavar="P",
            callback=options.finite,
        ),
    ] = None,
    suite: options.SuiteOption = "quick",
    backend: options.BackendOption = "auto",
    dtype: options.DtypeOrFileOption = "auto",
    device: options.DeviceOption = "auto",
    allow_mixed_backends: options.MixedOption = False,
    temperature: Annotated[float, typer.Option(help="0 is greedy.", min=0.0, max=10.0)] = 0.0,
    budget: options.BudgetOption = None,
    seed: options.SeedOption = 0,
    fresh: options.FreshOption = False,
    json: options.JsonOption = False,
    workspace: options.WorkspaceOption = None,
) -> None:
    """Predict the best k of a draft from forward times and acceptance, and confirm it by measurement.

    [bold]Example:[/bold] draftrank tune-k ngram --target smollm2-135m-instruct
    """
    from draftrank.catalog.workspace import Workspace
    from draftrank.jobs.session import RunRequest
    from draftrank.store.store import Store
    from draftrank.workflows.tune import tune_k as tune

    (mode,) = options.decoding_modes([temperature], seed)
    opened = Workspace.open(workspace)
    request = RunRequest(
        target=target or opened.find_recipe(draft).target,
        drafts=(draft,),
        suite=suite,
        backend=backend,
        dtype=dtype,
        device=device,
        allow_mixed_backends=allow_mixed_backends,
        mode=mode,
        budget_s=options.budget_seconds(budget),
        seed=seed,
        fresh=fresh,
    )
    with Store.open(opened.store_url) as store, ConsoleProgress() as progress:
        confidences = tuple(dict.fromkeys(confidence or ()))
        found = tune(opened, request, store, progress, max_k=max_k, confidences=confidences)
    _print(draft, found)
    if json:
        best = found.best
        print_json(
            {
                "draft": draft,
                "target": request.target,
                "declared_k": found.declared_k,
                "best": asdict(best) if best else None,
                "tied": [variant.arm for variant in found.tied],
                "by_k": [asdict(at) for at in found.by_k],
                "variants": [asdict(variant) | {"apart": variant.apart} for variant in found.variants],
                "sessions": [found.probe.session.id, found.session.session.id],
            }
        )
    if any(arm.failure is not None for arm in found.session.session.arms):
        raise typer.Exit(1)


def _print(draft: str, found: Tuning) -> None:
    from draftrank.board.formats import decimal, span, times

    predicted = ", ".join(f"{at.k}: {times(at.speedup)}" for at in found.by_k)
    out.print(Text.assemble(("\n" + draft, "bold"), f" · predicted speedup by k: {predicted}"))
    table = new_table(
        "k", "confidence", "predicted", "measured", "95 % interval", "accept", "best is faster by"
    )
    for variant in found.variants:
        behind, measured = variant.behind_best, variant.measured
        interval = measured.interval if measured else None
        gap = "–" if behind is None else times(behind.value)
        if behind is not None and behind.interval is not None:
            gap += f" ({span((behind.interval.low, behind.interval.high))})"
        table.add_row(
            str(variant.k),
            decimal(variant.stop_below_confidence),
            times(variant.predicted),
            times(measured.value if measured else None),
            span((interval.low, interval.high) if interval else None),
            decimal(variant.acceptance_length),
            gap,
        )
    print_table(table)
    best = found.best
    if best is None or best.measured is None:
        out.print("no variant could be measured")
        return
    tied = found.tied
    names = ", ".join(variant.arm for variant in tied)
    out.print(
        f"best: {best.arm}"
        + (f"; cannot be told apart from it: {names}" if tied else "; all others are slower")
    )
    top = best.measured.interval
    if top is not None and top.high < 1:
        out.print("no k makes this draft faster than plain decoding here")
    elif found.keeps:
        out.print(f"the recipe's k = {found.declared_k} is among the best: nothing needs to change")
    else:
        out.print("in the recipe:\n  speculate:\n    num_speculative_tokens: " + str(best.k))
        if best.stop_below_confidence is not None:
            out.print(f"    stop_below_confidence: {best.stop_below_confidence:g}")
