"""Takes `docs/board.png`: the page of the front page's board, as a headless Chromium shows it. The picture names its
board in a text chunk, and a test compares that with the board that `README.md` shows.

`python ci/board_picture.py`, or with `--browser PATH` where Chromium has another name.
"""

from __future__ import annotations

import argparse
import shutil
import struct
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

from draftrank.board.site import Declarations, render_site
from draftrank.board.site.addresses import board_page
from draftrank.catalog.workspace import Workspace
from results import front_board, published

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "board.png"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDTH, HEIGHT = 1280, 960
SIGNATURE = b"\x89PNG\r\n\x1a\n"
KEYWORD = b"draftrank-board\x00"


def board_of(picture: bytes) -> str | None:
    """The id of the board that a picture shows; None where it does not say.

    Raises:
        ValueError: it is no PNG file.
    """
    if not picture.startswith(SIGNATURE):
        raise ValueError("not a PNG file")
    offset = len(SIGNATURE)
    while offset < len(picture):
        (length,) = struct.unpack_from(">I", picture, offset)
        kind, content = picture[offset + 4 : offset + 8], picture[offset + 8 : offset + 8 + length]
        if kind == b"tEXt" and content.startswith(KEYWORD):
            return content[len(KEYWORD) :].decode("latin-1")
        offset += length + 12
    return None


def with_board(picture: bytes, board: str) -> bytes:
    """The picture with a text chunk that names its board, behind the header chunk."""
    content = KEYWORD + board.encode("latin-1")
    chunk = struct.pack(">I", len(content)) + b"tEXt" + content
    chunk += struct.pack(">I", zlib.crc32(b"tEXt" + content))
    header_end = len(SIGNATURE) + 25
    return picture[:header_end] + chunk + picture[header_end:]


def main() -> int:
    """Renders the site into a temporary folder and takes the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    parser.add_argument("--browser", default=found, help="path of Chromium")
    browser = parser.parse_args().browser
    if browser is None:
        parser.error(f"no {' or '.join(BROWSERS)} found: install Chromium, or name it with --browser")
    checked, board = Workspace.open(ROOT).check(), front_board()
    with tempfile.TemporaryDirectory() as folder:
        site, taken = Path(folder) / "site", Path(folder) / "board.png"
        render_site(published(), site, declared=Declarations.of(checked.targets, checked.tasks))
        subprocess.run(
            [
                browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--force-color-profile=srgb",
                f"--user-data-dir={folder}/profile", f"--window-size={WIDTH},{HEIGHT}", f"--screenshot={taken}",
                (site / board_page(board.key)).as_uri(),
            ],
            check=True, timeout=120, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        PICTURE.write_bytes(with_board(taken.read_bytes(), board.key.id))
    print(f"written: {PICTURE} of board {board.key.id}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
