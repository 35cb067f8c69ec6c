"""Texts cut out of wheels become rows of prompts: real wheels, fetched by pip from a folder."""

from __future__ import annotations

import hashlib
import json
import zipfile

import pytest
from pydantic import ValidationError

from draftrank.catalog.prompt_rows import ReadRows
from draftrank.catalog.prompts import prompts_of
from draftrank.catalog.sources.base import FetchContext
from draftrank.catalog.sources.wheel_texts import WheelTextsSource
from draftrank.errors import InvalidInputError, MissingDataError

STORY = "Title\n\nFirst.\nZweitens, schön.\n\nThird.\n"


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that pip takes wheels from, and nothing else."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    wheel(
        folder, "tiny-texts", {"docs/story.rst": STORY.encode(), "docs/tale.txt": b"A tale.\r\nIts end.\r\n"}
    )
    wheel(folder, "tiny-code", {"code/mod.py": b"def f():\n    return 1\n", "code/odd.bin": b"\xff\xfe\x00"})
    return folder


def wheel(folder, name, files):
    stem = f"{name.replace('-', '_')}-1.0"
    about = {
        "METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        "WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "RECORD": "",
    }
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as archive:
        for path, content in files.items():
            archive.writestr(path, content)
        for path, content in about.items():
            archive.writestr(f"{stem}.dist-info/{path}", content)


def source(*texts, sha256=None, rows=None):
    if rows is not None:
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        sha256 = hashlib.sha256(lines.encode()).hexdigest()
    document = {"kind": "wheel_texts", "texts": texts, "sha256": sha256 or "0" * 64}
    return WheelTextsSource.model_validate_json(json.dumps(document))


def text(name, *files, package="tiny-texts==1.0", **others):
    return {"id": name, "package": package, "files": list(files), **others}


def test_texts_of_several_packages_become_prompts_in_their_order(index, tmp_path):
    declared = source(
        text("part", "docs/story.rst", first_line=3, last_line=5, request="Who?"),
        text("code", "code/mod.py", package="tiny-code==1.0", request="Test `f`."),
        text("both", "docs/story.rst", "docs/tale.txt", request="What?"),
        rows=[
            {"id": "part", "text": "First.\nZweitens, schön.", "request": "Who?"},
            {"id": "code", "text": "def f():\n    return 1", "request": "Test `f`."},
            {
                "id": "both",
                "text": f"[1] story\n\n{STORY.strip()}\n\n[2] tale\n\nA tale.\nIts end.",
                "request": "What?",
            },
        ],
    )
    read = ReadRows(turns=("{text}\n\n{request}",))
    context = FetchContext(tmp_path / "cache")
    prompts = prompts_of(declared, read, context, "tasks/t.yaml")
    assert [prompt.id for prompt in prompts] == ["part", "code", "both"]
    assert prompts[0].turns == ("First.\nZweitens, schön.\n\nWho?",)
    assert prompts[2].turns[0].startswith("[1] story\n\nTitle")

    for path in index.iterdir():
        path.unlink()
    assert (
        prompts_of(declared, read, FetchContext(tmp_path / "cache", offline=True), "tasks/t.yaml") == prompts
    )
    with pytest.raises(MissingDataError, match="offline"):
        prompts_of(declared, read, FetchContext(tmp_path / "other", offline=True), "tasks/t.yaml")
    with pytest.raises(MissingDataError, match=r"tiny-texts==1\.0 could not be fetched"):
        prompts_of(declared, read, FetchContext(tmp_path / "other"), "tasks/t.yaml")


@pytest.mark.usefixtures("index")
def test_another_text_than_was_declared_is_refused_and_its_hash_is_told(tmp_path):
    expected = hashlib.sha256(b'{"id": "a", "text": "A tale.\\nIts end."}\n').hexdigest()
    with pytest.raises(InvalidInputError, match=f"declared {'0' * 64}, found {expected}"):
        source(text("a", "docs/tale.txt")).fetch(FetchContext(tmp_path / "cache"))


@pytest.mark.usefixtures("index")
@pytest.mark.parametrize(
    ("file", "package", "lines", "told"),
    [
        ("docs/none.rst", "tiny-texts==1.0", {}, "holds no file docs/none.rst"),
        ("docs/tale.txt", "tiny-texts==1.0", {"first_line": 9}, "with such lines"),
        ("code/odd.bin", "tiny-code==1.0", {}, "no UTF-8 text"),
    ],
)
def test_what_a_package_does_not_hold_is_named(file, package, lines, told, tmp_path):
    with pytest.raises(InvalidInputError, match=told):
        source(text("a", file, package=package, **lines)).fetch(FetchContext(tmp_path / "cache"))
    assert not list((tmp_path / "cache").rglob("texts.jsonl"))


@pytest.mark.parametrize(
    "bad",
    [
        {"first_line": 5, "last_line": 4},
        {"package": "tiny-texts>=1.0"},
        {"files": ["../secret"]},
        {"files": []},
    ],
)
def test_texts_that_cannot_be_are_refused_where_they_are_declared(bad):
    with pytest.raises(ValidationError):
        source(text("a", "docs/tale.txt") | bad)
