"""The table of what runs on which family is the one that its script makes."""

from __future__ import annotations

import importlib
import json

import pytest
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from draftrank.catalog.architectures import FILE, ran_on_families
from draftrank.kinds import STEPS
from models import TABLE_FAMILIES, model_type

FAMILIES = ran_on_families()


@pytest.fixture(scope="module")
def script():
    return importlib.import_module("architectures")  # it imports all that a draft is built by


def test_the_page_shows_the_table_and_what_failed_is_known(script):
    assert script.PAGE.read_text() == script.page(FAMILIES), "run: python ci/architectures.py"
    assert set(FAMILIES) == set(TABLE_FAMILIES)
    assert len(FAMILIES) >= 40
    columns = json.loads(FILE.read_text())["columns"]
    assert columns == list(script.COLUMNS)
    assert set(STEPS) - set(columns) == set(script.NOT_RUN)
    assert all(list(cells) == columns for cells in FAMILIES.values())
    failed = {
        name
        for name, cells in FAMILIES.items()
        if any(reason and reason.startswith(script.FAILED) for reason in cells.values())
    }
    assert not failed


def test_every_causal_language_model_of_transformers_has_a_row_or_a_reason(script):
    absent = [name for names in script.WITHOUT_ROW.values() for name in names]
    with_row = {model_type(name) for name in FAMILIES}
    assert sorted(absent) == sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - with_row)


@pytest.mark.nightly
@pytest.mark.parametrize("name", FAMILIES)
def test_every_cell_is_what_running_it_gives(script, name, tmp_path):
    family = script.Family(name, tmp_path)
    found = {column: script.outcome(lambda column=column: family.run(column)) for column in script.COLUMNS}
    ran = {column for column, reason in found.items() if reason is None}
    assert ran == {column for column, reason in FAMILIES[name].items() if reason is None}


def test_what_is_not_refused_in_words_is_shown_as_failed(script):
    def fall():
        raise KeyError("layer")

    assert script.outcome(fall) == "FAILED: KeyError: 'layer'"
    assert script.outcome(lambda: None) is None
