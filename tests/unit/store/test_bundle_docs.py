"""`docs/bundles.md` says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from draftrank.measure.records import BASELINE, CONTROL, Session, Trial
from draftrank.store.bundle import publish
from draftrank.store.bundle_format import SCHEMA_FILE, Bundle
from draftrank.store.bundle_reading import MAX_BYTES
from records import a_result
from workspaces import REPOSITORY

TEXT = (REPOSITORY / "docs" / "bundles.md").read_text()


def test_the_tables_name_every_field_and_no_other():
    cells = re.findall(r"^\| (`.+?) \|", TEXT, re.MULTILINE)
    named = {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}
    assert named == {*Bundle.model_fields, *Session.model_fields, *Trial.model_fields}


def test_the_numbers_and_paths_are_the_codes():
    assert f"at most {MAX_BYTES // 10**6} MB" in TEXT
    assert (REPOSITORY / re.search(r"`(\S+bundle\.schema\.json)`", TEXT)[1]) == SCHEMA_FILE


@pytest.mark.parametrize(
    ("number", "printed"),
    [
        (0, "small-target 24\n"),
        (1, f"{dict.fromkeys((BASELINE, CONTROL, 'ngram-2'), 1 / 18)}\n"),
    ],
)
def test_the_examples_run(number, printed, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (path,) = publish(a_result(), Path("leaderboard/results"))
    Path("bundle.json").write_bytes(path.read_bytes())
    example = re.findall(r"```python\n(.+?)```", TEXT, re.DOTALL)[number]
    exec(example, {})
    assert capsys.readouterr().out == printed
