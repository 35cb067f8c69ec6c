"""Parity records in the store and as files."""

from __future__ import annotations

import json

import pytest
from jsonschema import Draft202012Validator

from draftrank.board.parity import parity_document
from draftrank.board.site.index_schema import index_schema
from draftrank.errors import InvalidInputError, StoreError
from draftrank.measure.parity import report_of
from draftrank.store.parity_bundle import PARITY_FILES
from draftrank.store.shared_bundles import import_file
from draftrank.store.store import Store
from parities import a_parity, a_turn, parted


def some_parity(**changes):
    return a_parity([a_turn(), parted(4, 0.0).model_copy(update={"prompt": "p1"})], **changes)


def test_a_record_comes_back_from_the_store_and_from_its_file_unchanged(tmp_path):
    parity = some_parity()
    with Store.open(tmp_path / "one.sqlite") as store:
        store.add_parity(parity)
        store.add_parity(parity)
        (stored,) = store.parities()
        with pytest.raises(StoreError, match="other content"):
            store.add_parity(parity.model_copy(update={"engine_version": "0.33.0"}))
    path = PARITY_FILES.publish(stored, tmp_path / "parity")
    assert path.relative_to(tmp_path / "parity").parts[:3] == ("small-target", "shallow", "vllm")
    assert path == PARITY_FILES.publish(parity, tmp_path / "parity")
    with Store.open(tmp_path / "two.sqlite") as store:
        import_file(path, store)
        assert store.parities() == (stored,)
    assert PARITY_FILES.read_all(tmp_path / "parity") == (stored,)
    assert stored == PARITY_FILES.read(path)
    assert len(path.read_text().splitlines()) > 30  # the header is spread over lines


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda parity: parity["turns"][0].update(prompt="p9"), "no task of the record has the prompt"),
        (lambda parity: parity["turns"][0]["draft_here"].update(steps=99), "99 steps for 11 tokens"),
        (lambda parity: parity["turns"].append(parity["turns"][0]), "stands twice"),
        (lambda parity: parity.update(created_at="../../2026"), "created_at"),
        (lambda parity: parity["tasks"][0].update(max_new_tokens=3), "more tokens than the task's"),
        (lambda parity: parity.update(extra=1), "parity.extra"),
    ],
)
def test_a_file_that_does_not_add_up_is_named_with_its_field(tmp_path, change, told):
    path = PARITY_FILES.publish(some_parity(), tmp_path)
    data = json.loads(path.read_text())
    change(data["parity"])
    forged = tmp_path / "forged.json"
    forged.write_text(json.dumps(data))
    with pytest.raises(InvalidInputError, match=told) as error:
        PARITY_FILES.read(forged)
    assert str(forged) in str(error.value)


def test_a_file_that_was_changed_after_it_was_published_shows(tmp_path):
    path = PARITY_FILES.publish(some_parity(), tmp_path)
    path.write_text(path.read_text().replace('"engine_version": "0.32.0"', '"engine_version": "0.33.0"'))
    with pytest.raises(InvalidInputError, match="was changed after it was published"):
        PARITY_FILES.read_all(tmp_path)


def test_the_document_fits_the_schema_of_the_index():
    parity = some_parity()
    schema = index_schema()
    of_parity = {"$ref": "#/$defs/Parity", "$defs": schema["$defs"]}
    Draft202012Validator(of_parity).validate(
        json.loads(json.dumps(parity_document(parity, report_of(parity))))
    )
