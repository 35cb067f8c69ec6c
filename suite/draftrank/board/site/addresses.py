"""Where each page lies: relative paths that hold no character of a record but those of safe names."""

from __future__ import annotations

import hashlib
import re

from draftrank.board.rows import BoardKey
from draftrank.board.serving import ServingKey

_SAFE = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,62}[a-z0-9])?")


def safe_name(text: str) -> str:
    """A file name for any text: identifiers stay as they are, the rest is spelled plainly and hashed."""
    if _SAFE.fullmatch(text):
        return text
    plain = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40].strip("-")
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return f"{plain or 'unnamed'}-{digest}"


def board_page(key: BoardKey) -> str:
    """A board's page; its name says what the board is of, its id keeps it apart from others."""
    name = safe_name(f"{key.suite}-{key.backend}-{key.dtype}-{key.mode}-{key.id}".lower())
    return f"boards/{safe_name(key.target)}/{safe_name(key.machine_class)}/{name}/index.html"


def serving_page(key: ServingKey) -> str:
    """The page of a serving board; its id keeps it apart from others of the server and machine class."""
    name = safe_name(f"{key.server}-{key.machine_class}-{key.id}".lower())
    return f"serving/{safe_name(key.target)}/{name}/index.html"


def draft_page(target: str, draft: str) -> str:
    """A draft's page."""
    return f"drafts/{safe_name(target)}/{safe_name(draft)}/index.html"


def badge(target: str, draft: str) -> str:
    """A draft's badge, beside its page."""
    return f"drafts/{safe_name(target)}/{safe_name(draft)}/badge.svg"


def target_page(target: str) -> str:
    """A target's page."""
    return f"targets/{safe_name(target)}/index.html"


def task_page(task: str) -> str:
    """A task's page."""
    return f"tasks/{safe_name(task)}/index.html"


def machine_page(machine_class: str) -> str:
    """The page of a machine class."""
    return f"machines/{safe_name(machine_class)}/index.html"


def plot_file(page: str, plot: str, theme: str) -> str:
    """A board's plot in one theme, beside the board's page."""
    return f"{page.removesuffix('index.html')}{plot}-{theme}.svg"
