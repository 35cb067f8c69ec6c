"""Options that several commands share."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from draftrank.errors import InvalidInputError

if TYPE_CHECKING:
    from draftrank.jobs.executors.isolated import Limits
    from draftrank.measure.sessions.references import ReferenceMethod


class BackendName(StrEnum):
    """Which code runs forwards; see `catalog.backend.Backend`."""

    auto = "auto"
    transformers = "transformers"
    cpp = "cpp"
    cuda_graphs = "cuda-graphs"
    llama_cpp = "llama.cpp"


class DtypeName(StrEnum):
    """What weights are loaded in."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class DeviceName(StrEnum):
    """Where to run."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


BackendOption = Annotated[
    BackendName,
    typer.Option(
        "--backend",
        help="Which code runs forwards. auto: the fastest that the target and every named draft fit; "
        "llama.cpp: the target's own GGUF file.",
    ),
]
DtypeOption = Annotated[
    DtypeName,
    typer.Option("--dtype", help="What weights are loaded in. auto: bf16 where the backend is fast in it."),
]
DeviceOption = Annotated[
    DeviceName, typer.Option("--device", help="Where to run. auto: a GPU where there is one.")
]
MixedOption = Annotated[
    bool,
    typer.Option(
        "--allow-mixed-backends",
        help="Measure drafts that the backend cannot run in another one; they are shown and not ranked.",
    ),
]


class ReferenceName(StrEnum):
    """What is measured beside the engine's own arms."""

    generate = "generate"
    assisted = "assisted"
    prompt_lookup = "prompt-lookup"

    @property
    def method(self) -> ReferenceMethod:
        """Its name in records."""
        methods: dict[str, ReferenceMethod] = {
            "generate": "generate",
            "assisted": "assisted",
            "prompt-lookup": "prompt_lookup",
        }
        return methods[self.value]


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


MemoryOption = Annotated[
    float | None,
    typer.Option("--memory", help="Memory limit of one isolated job, in GiB.", min=0.1, show_default=False),
]
LimitOption = Annotated[
    str | None,
    typer.Option(
        "--limit", help="Time limit of one isolated job, e.g. 90m.", metavar="TIME", show_default=False
    ),
]


def job_limits(memory_gib: float | None, limit: str | None) -> Limits:
    """What `--memory` and `--limit` say.

    Raises:
        InvalidInputError: the time is none.
    """
    from draftrank.jobs.executors.isolated import Limits

    return Limits(
        int(memory_gib * 2**30) if memory_gib else None, parse_duration(limit, "--limit") if limit else None
    )
