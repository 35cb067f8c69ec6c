"""`draftrank site`: render the static pages, and show them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from draftrank.cli.options import JsonOption, WorkspaceOption
from draftrank.cli.output import out, print_json


def site(
    out_dir: Annotated[
        Path,
        typer.Option("--out", "-o", help="Folder to write; an older site in it is replaced.", metavar="DIR"),
    ] = Path("site"),
    published: Annotated[
        bool, typer.Option("--published", help="Only the published bundles, not the local store.")
    ] = False,
    local: Annotated[
        bool, typer.Option("--local", help="Only the local store, not the published bundles.")
    ] = False,
    url: Annotated[
        str, typer.Option("--url", help="Address of the served site, for links in the feed.")
    ] = "",
    database: Annotated[
        bool, typer.Option(help="Add the SQLite file with every raw trial to the downloads.")
    ] = True,
    serve: Annotated[bool, typer.Option("--serve", help="Serve it on this machine until Ctrl-C.")] = False,
    port: Annotated[int, typer.Option(help="Port to serve it on; 0: any.", min=0, max=65_535)] = 8000,
    json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Render the leaderboard as static HTML that opens from the disk.

    [bold]Example:[/bold] draftrank site --out site
    """
    from draftrank.board.archived import archived_boards, archived_servings
    from draftrank.board.site import Declarations, render_site
    from draftrank.catalog.workspace import Workspace
    from draftrank.cli.results import open_archive
    from draftrank.store.snapshot import archived_database

    if local and published:
        raise typer.BadParameter("--published leaves out all that --local shows", param_hint="--local")
    opened = Workspace.open(workspace)
    declared = opened.check()
    with open_archive(opened, local=not published, published=not local) as archive:
        sessions = len(archive.sessions)
        render_site(
            archived_boards(archive),
            out_dir,
            declared=Declarations.of(declared.targets, declared.tasks),
            url=_with_slash(url),
            downloads={"results.sqlite": archived_database(archive)} if database and sessions else {},
            derived=archive.derived,
            parities=archive.parities,
            servings=archived_servings(archive),
        )
    index = (out_dir / "index.html").resolve()
    out.print(f"the site is rendered: {index.as_uri()}")
    if json:
        print_json({"index": str(index), "sessions": sessions})
    if serve:
        _serve(out_dir.resolve(), port)


def _with_slash(url: str) -> str:
    if url and not url.startswith(("https://", "http://")):
        raise typer.BadParameter("begin it with https://", param_hint="--url")
    return f"{url.rstrip('/')}/" if url else ""


def _serve(folder: Path, port: int) -> None:
    """Serves a folder to this machine alone.

    Raises:
        BadParameter: the port is taken.
    """
    from functools import partial
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (the library's name)
            """Prints no requests."""

    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), partial(Quiet, directory=str(folder)))
    except OSError as error:
        raise typer.BadParameter(f"cannot serve on port {port}: {error}", param_hint="--port") from error
    with server:
        out.print(f"serving http://127.0.0.1:{server.server_address[1]}/ until Ctrl-C")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            out.print("stopped")
