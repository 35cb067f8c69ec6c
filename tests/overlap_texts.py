"""Prompts and training text that may hold them."""

from __future__ import annotations

import json

import torch

from draftrank.building.text.corpus import Corpus
from draftrank.catalog.prompts import Prompt, TaskPrompts
from draftrank.catalog.task import Task

LONG = "Seven small boats left the harbour at noon, and three of them came back before the storm."


def tasks(*turns):
    source = {"kind": "inline", "prompts": [{"turns": ["x"]}]}
    fields = {"schema_version": 1, "id": "t", "title": "T", "licence": "MIT", "source": source}
    task = Task.model_validate_json(json.dumps(fields))
    prompts = tuple(Prompt(f"{place:03d}", (turn,)) for place, turn in enumerate(turns))
    return [TaskPrompts(task, prompts, 16)]


def corpus_of(tokenizer, *parts):
    """One row of (role, text) parts, filled up with template tokens."""
    tokens, roles = [], []
    for role, text in parts:
        ids = tokenizer(text, add_special_tokens=False).input_ids
        tokens += ids
        roles += [role] * len(ids)
    return Corpus(torch.tensor([tokens], dtype=torch.int32), torch.tensor([roles], dtype=torch.uint8))
