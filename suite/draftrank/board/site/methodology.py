"""The methodology as a page of the site, from the document that the repository keeps."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup

_COMMENT = re.compile(r"^<!--.*?-->\n", re.MULTILINE)
_NOT_IN_ANCHORS = re.compile(r"[^\w\- ]")


@cache
def methodology(source: Path) -> Markup:
    """The document as HTML, without markup of its own in the text and without links that lead out of it. An installed
    package has it in the site's source (`site_source`), a repository in `docs/`."""
    packaged = source / "methodology.md"
    path = packaged if packaged.is_file() else source.parent / "docs" / "methodology.md"
    reader = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = reader.parse(_COMMENT.sub("", path.read_text(encoding="utf-8")))
    tables = 0
    for index, token in enumerate(tokens):
        token.attrs.pop("style", None)
        if token.type == "heading_open":
            token.attrSet("id", _anchor(tokens[index + 1].content))
        elif token.type == "th_open":
            token.attrSet("scope", "col")
        elif token.type == "table_open":
            tables += 1
            token.meta["label"] = f"Table {tables}"
        elif token.type == "inline" and token.children:
            token.children = _without_links_out(token.children)
    reader.add_render_rule("table_open", _open_table)
    reader.add_render_rule("table_close", lambda *_: "</table>\n</div>\n")
    reader.add_render_rule("fence", _code)
    rendered: str = reader.renderer.render(tokens, reader.options, {})
    return Markup(rendered)


def _anchor(title: str) -> str:
    """As GitHub names it."""
    return _NOT_IN_ANCHORS.sub("", title.lower()).replace(" ", "-")


def _without_links_out(tokens: Sequence[Token]) -> list[Token]:
    """Links to other files of the repository are left as their words: the site does not have these files."""
    kept, inside = [], False
    for token in tokens:
        if token.type == "link_open" and not str(token.attrGet("href")).startswith("#"):
            inside = True
        elif token.type == "link_close" and inside:
            inside = False
        else:
            kept.append(token)
    return kept


def _open_table(_: object, tokens: Sequence[Token], index: int, *_rest: object) -> str:
    label = tokens[index].meta["label"]
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{label}">\n<table class="words">\n'


def _code(_: object, tokens: Sequence[Token], index: int, *_rest: object) -> str:
    return str(Markup('<pre tabindex="0"><code>{}</code></pre>\n').format(tokens[index].content))
