"""A rendered site, read back: links, ids, scripts and text of its pages."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

EVIL = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'; alert(1); '",
    "{{7331*7331}}{% raise %}",
    "javascript:alert(1)",
    "../../../etc/passwd",
    "x" * 5_000,
]
VOID = {"meta", "link", "br", "img", "hr", "input", "line", "rect", "circle"}
OWN_SCRIPTS = {"theme.js", "site.js", "evidence.js", "board.js", "compare.js", "plots.js"}
METHODOLOGY = Path(__file__).parents[1] / "docs" / "methodology.md"


def meanings(section):
    """What the methodology says that the words of one of its sections mean."""
    text = METHODOLOGY.read_text("utf-8").partition(f"## {section}\n")[2].partition("\n#")[0]
    _, _, *found = re.findall(r"^\| .+? \| (.+) \|$", text, re.MULTILINE)
    assert found
    return found


class Page(HTMLParser):
    """Collects links, ids, tags and text, and checks that tags nest."""

    def __init__(self, text):
        super().__init__()
        self.links, self.ids, self.tags, self.attributes, self.text = [], [], [], [], ""
        self.scripts, self.data = [], []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag == "script":
            self.scripts.append(dict(attrs))
        for name, value in attrs:
            if name in ("href", "src"):
                self.links.append(value)
            if name == "id":
                self.ids.append(value)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.data.append(data)
        else:
            self.text += data

    def check_scripts(self):
        """Only files of the site and blocks of data, which nothing executes."""
        for script in self.scripts:
            if "src" in script:
                assert script["src"].rpartition("/")[2] in OWN_SCRIPTS
            else:
                assert script["type"] == "application/json"
        for text in self.data:
            if text.strip():
                json.loads(text)


def pages_of(folder):
    return {path: Page(path.read_text(encoding="utf-8")) for path in folder.rglob("*.html")}


def check_links(folder):
    pages = pages_of(folder)
    assert pages
    for path, page in pages.items():
        assert len(set(page.ids)) == len(page.ids)
        for link in page.links:
            parts = urlsplit(link)
            if link == "data:,":
                continue
            assert (parts.scheme, parts.netloc) == ("", ""), link
            aim = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert aim.is_relative_to(folder.resolve())
            assert aim.is_file(), link
            if parts.fragment:
                assert parts.fragment in pages[aim.resolve()].ids
    return pages


def text_of(folder, address):
    return " ".join(Page((folder / address).read_text(encoding="utf-8")).text.split())


def check_harmless(folder):
    """Nothing that a record says is executed, opened or leads elsewhere."""
    pages = check_links(folder)  # only relative links to files of the site, so none of them is hostile
    forbidden = {"iframe", "object", "embed", "base", "style"}
    for page in pages.values():
        page.check_scripts()
        assert not forbidden & set(page.tags)
        assert not [name for name, _ in page.attributes if name.startswith("on") or name == "style"]
    for name in ("feed.xml", *(str(path.relative_to(folder)) for path in folder.rglob("*.svg"))):
        drawing = ElementTree.fromstring((folder / name).read_text(encoding="utf-8"))
        assert not [part for part in drawing.iter() if part.tag.endswith("script")]
        attributes = [attribute for part in drawing.iter() for attribute in part.attrib.items()]
        assert not [name for name, _ in attributes if name.startswith("on")]
        assert not [value for _, value in attributes if value.strip().lower().startswith("javascript:")]
    assert not any(str(7331 * 7331) in page.text for page in pages.values())
    longest = max(len(part) for path in pages for part in path.relative_to(folder).parts)
    assert longest < 80
    return pages
