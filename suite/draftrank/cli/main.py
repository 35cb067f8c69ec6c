"""The `draftrank` command.

Exit codes: 0 success, 1 failure, 2 wrong use. With `--json` the last line of standard
output is one compact JSON object; progress and errors go to standard error.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any

import typer

from draftrank.cli import (
    board,
    build,
    challenge,
    changed,
    check,
    comment,
    compare,
    doctor,
    export,
    importing,
    keep,
    listing,
    new,
    parity,
    predict,
    publish,
    remeasure,
    run,
    search,
    serve_bench,
    show,
    site,
    status,
    submit,
    sweep,
    tune,
    verify,
)
from draftrank.cli.output import report_error
from draftrank.errors import DraftrankError
from draftrank.version import __version__

app = typer.Typer(
    name="draftrank",
    help="Rank the draft models of speculative decoding: declare, build, measure, show.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

COMMANDS: dict[str, Callable[..., None]] = {
    "run": run.run,
    "sweep": sweep.sweep,
    "status": status.status,
    "build": build.build,
    "list": listing.list_,
    "check": check.check,
    "new": new.new,
    "board": board.board,
    "show": show.show,
    "tune-k": tune.tune_k,
    "search": search.search,
    "predict": predict.predict,
    "compare": compare.compare,
    "export": export.export,
    "parity": parity.parity,
    "serve-bench": serve_bench.serve_bench,
    "keep": keep.keep,
    "site": site.site,
    "publish": publish.publish,
    "submit": submit.submit,
    "changed": changed.changed,
    "challenge": challenge.challenge,
    "comment": comment.comment,
    "remeasure": remeasure.remeasure,
    "import": importing.import_,
    "verify": verify.verify,
    "doctor": doctor.doctor,
}


def _stoppable(command: Callable[..., None]) -> Callable[..., None]:
    """The command; Ctrl-C prints a sentence and exits with code 130."""

    @wraps(command)
    def call(*arguments: Any, **options: Any) -> None:
        try:
            command(*arguments, **options)
        except KeyboardInterrupt:
            sys.stderr.write("\nstopped; run the same command to resume\n")
            raise typer.Exit(130) from None

    return call


for _name, _command in COMMANDS.items():
    app.command(_name)(_stoppable(_command))


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"draftrank {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Runs the command; expected failures become text and an exit code, never a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal without UTF-8 shows `?` and no more
            stream.reconfigure(errors="replace")
    try:
        app()
    except DraftrankError as error:
        report_error(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.stderr.write("\nstopped; run the same command to resume\n")
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        reason = error.strerror or str(error)
        report_error(DraftrankError(f"{place}{reason} (check the path, its permissions and the room left)"))
        sys.exit(1)
