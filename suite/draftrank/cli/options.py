"""Options that several commands share."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from draftrank.catalog.backend import AskedDtype, Auto, Backend, Device, Dtype
from draftrank.errors import InvalidInputError

if TYPE_CHECKING:
    from draftrank.catalog.decoding_mode import DecodingMode
    from draftrank.jobs.executors.isolated import Limits


def finite(value: Any) -> Any:
    """Refuses `nan` and infinity where an option's range has no upper end."""
    for one in value if isinstance(value, list | tuple) else (value,):
        if one is not None and not math.isfinite(one):
            raise typer.BadParameter(f"{one} is no finite number.")
    return value


AnyBackend = Literal[Auto, Backend]
AnyDtype = Literal[Auto, Dtype]
AnyDevice = Literal[Auto, Device]

BackendOption = Annotated[
    AnyBackend,
    typer.Option(
        "--backend",
        help="Which code runs forwards. auto: the fastest that the target and every named draft fit; "
        "llama.cpp: the target's own GGUF file.",
    ),
]
DtypeOption = Annotated[
    AnyDtype,
    typer.Option("--dtype", help="What weights are loaded in. auto: bf16 where the backend is fast in it."),
]
DtypeOrFileOption = Annotated[
    AskedDtype,
    typer.Option(
        "--dtype",
        help="What weights are loaded in. auto: bf16 where the backend is fast in it; file: the target's GGUF file as it "
        "is, in cpp.",
    ),
]
DeviceOption = Annotated[
    AnyDevice, typer.Option("--device", help="Where to run. auto: a GPU where there is one.")
]
BackendFilter = Annotated[
    AnyBackend, typer.Option("--backend", help="Only results of this backend. auto: of any.")
]
DtypeFilter = Annotated[AnyDtype, typer.Option("--dtype", help="Only results of this dtype. auto: of any.")]
MixedOption = Annotated[
    bool,
    typer.Option(
        "--allow-mixed-backends",
        help="Measure drafts that the backend cannot run in another one; they are shown and not ranked.",
    ),
]
DraftsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--draft",
        "-d",
        help="Only this draft; repeatable. Default: all recipes with `effort: minutes`.",
        metavar="ID",
    ),
]
SuiteOption = Annotated[
    str,
    typer.Option("--suite", "-s", help="Suite to measure on: quick, core, full or your own.", metavar="ID"),
]
SuiteFilter = Annotated[
    str | None, typer.Option("--suite", "-s", help="Only boards of this suite.", metavar="ID")
]
TasksOption = Annotated[
    list[str] | None, typer.Option("--task", help="Only this task; repeatable.", metavar="ID")
]
BudgetOption = Annotated[
    str | None,
    typer.Option(
        "--budget",
        help="Time that all trials may take while prompts are repeated until the intervals are narrow enough, "
        "e.g. 90s, 30m, 2h. Default: only the suite's own repeats.",
        metavar="TIME",
    ),
]
MAX_SEED = 2**53 - 1
"""The largest whole number that bundles hold."""
SeedOption = Annotated[
    int,
    typer.Option("--seed", help="Seed of arm order and sampling.", min=0, max=MAX_SEED, metavar="INTEGER"),
]
FreshOption = Annotated[bool, typer.Option("--fresh", help="Measure again even if the session is finished.")]
SinceOption = Annotated[
    str, typer.Option("--since", help="Branch or commit that this branch is based on.", metavar="REVISION")
]
BundlesOption = Annotated[
    Path | None, typer.Option("--out", help="Write the result bundles here.", metavar="DIR")
]
WorkspaceOption = Annotated[
    Path | None,
    typer.Option(
        "--workspace",
        "-w",
        help="Folder with drafts/ and tasks/. Default: the nearest one, here or above.",
        metavar="DIR",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one compact JSON object as the last line.")]
TargetOption = Annotated[str | None, typer.Option("--target", "-t", help="Only this target.", metavar="ID")]
TargetOfDraftOption = Annotated[
    str | None,
    typer.Option(
        "--target", "-t", help="The draft's target; needed where several have such a draft.", metavar="ID"
    ),
]
NamedTargetOption = Annotated[
    str | None,
    typer.Option("--target", "-t", help="The target; needed where several have recipes.", metavar="ID"),
]
MemoryOption = Annotated[
    float | None,
    typer.Option(
        "--memory",
        help="Memory limit of one isolated job, in GiB.",
        min=0.1,
        show_default=False,
        callback=finite,
    ),
]
LimitOption = Annotated[
    str | None,
    typer.Option(
        "--limit", help="Time limit of one isolated job, e.g. 90m.", metavar="TIME", show_default=False
    ),
]

_UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0}


def parse_duration(text: str, option: str) -> float:
    """Seconds of a duration such as `90s`, `30m` or `1.5h`.

    Raises:
        InvalidInputError: it is none; names the option.
    """
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smh])", text.strip())
    if found is None or float(found[1]) == 0.0:
        raise InvalidInputError.single(
            f"{text!r} is no duration", field=option, fix="write a number and s, m or h, e.g. 30m"
        )
    return float(found[1]) * _UNITS_S[found[2]]


def budget_seconds(budget: str | None) -> float | None:
    """What `--budget` says; raises as `parse_duration`."""
    return parse_duration(budget, "--budget") if budget else None


def decoding_modes(
    temperatures: Sequence[float], seed: int, top_p: float | None = None, top_k: int | None = None
) -> list[DecodingMode]:
    """A mode for each temperature; `top_p` and `top_k` are those of sampling.

    Raises:
        InvalidInputError: a temperature is too small to divide by, or nothing samples by what they say.
    """
    from draftrank.catalog.decoding_mode import MIN_TEMPERATURE, DecodingMode

    for one in temperatures:
        if one != 0 and not one >= MIN_TEMPERATURE:
            raise InvalidInputError.single(
                f"{one:g} is too small to divide by",
                field="--temperature",
                fix=f"use 0 or at least {MIN_TEMPERATURE:g}",
            )
    if not any(temperatures) and (top_p, top_k) != (None, None):
        raise InvalidInputError.single(
            "change nothing in greedy decoding",
            field="--top-p and --top-k",
            fix="add --temperature, e.g. 0.7, or leave them out",
        )
    return [
        DecodingMode(temperature=one, top_p=top_p, top_k=top_k, seed=seed) if one else DecodingMode(seed=seed)
        for one in dict.fromkeys(temperatures)
    ]


def job_limits(memory_gib: float | None, limit: str | None) -> Limits:
    """What `--memory` and `--limit` say; raises as `parse_duration`."""
    from draftrank.jobs.executors.isolated import Limits

    return Limits(
        int(memory_gib * 2**30) if memory_gib else None, parse_duration(limit, "--limit") if limit else None
    )
