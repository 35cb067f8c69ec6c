"""`draftrank comment`: results as the table of a pull request."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from draftrank.cli.options import JsonOption
from draftrank.cli.output import out, print_json


def comment(
    bundles: Annotated[list[Path], typer.Argument(help="Bundle files, or folders with bundles.")],
    draft: Annotated[
        list[str] | None,
        typer.Option(
            "--draft", "-d", help="Compare only this draft with the others; repeatable.", metavar="ID"
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Print the comparison of result bundles as Markdown: faster, slower or can't tell, within one session.

    It reads only the bundles and escapes all their texts.

    [bold]Example:[/bold] draftrank comment bundles --draft depth8-distilled
    """
    from draftrank.board.pull_request import markdown, standings
    from draftrank.store.bundle import bundle_files, read_bundle
    from draftrank.store.merging import merge

    told = standings(merge([read_bundle(path) for path in bundle_files(bundles)]), draft or ())
    text = markdown(told)
    out.print(text, markup=False, highlight=False, soft_wrap=True, end="")
    if json:
        print_json(
            {
                "markdown": text,
                "drafts": [
                    {
                        "session": board.newest.id,
                        "draft": one.row.draft,
                        "ranked": one.row.ranked,
                        "record": one.is_record,
                        "speedup": one.row.speedup,
                    }
                    for board, found in told
                    for one in found
                ],
            }
        )
