"""Where every `kind` that a YAML file may name is found.

One line per kind: adding a compression step, a proposer or a data source is one new file plus its
line here. Modules are named as text and imported when a declaration is first read, so this table
ties no room to a later one. The named modules must not import torch when they are imported.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

SOURCES = {
    "wheel": "draftrank.catalog.sources.wheel:WheelSource",
    "hub": "draftrank.catalog.sources.hub:HubSource",
    "url": "draftrank.catalog.sources.url:UrlSource",
    "local": "draftrank.catalog.sources.local:LocalSource",
    "inline": "draftrank.catalog.sources.inline:InlineSource",
}

STEPS = {
    "pretrained": "draftrank.drafting.steps.origin:Pretrained",
    "random": "draftrank.drafting.steps.origin:Random",
    "drop_layers": "draftrank.drafting.steps.drop_layers:DropLayers",
    "merge_layers": "draftrank.drafting.steps.merge_layers:MergeLayers",
    "prune_ffn": "draftrank.drafting.steps.width:PruneFfn",
    "prune_heads": "draftrank.drafting.steps.width:PruneHeads",
    "prune_hidden": "draftrank.drafting.steps.width:PruneHidden",
    "factorize": "draftrank.drafting.steps.factorize:Factorize",
    "tie_layers": "draftrank.drafting.steps.tie_layers:TieLayers",
    "trim_vocabulary": "draftrank.drafting.steps.trim_vocabulary:TrimVocabulary",
    "factorize_head": "draftrank.drafting.steps.factorize:FactorizeHead",
    "sparsify": "draftrank.drafting.steps.sparsify:Sparsify",
    "read_features": "draftrank.drafting.steps.read_features:ReadFeatures",
    "distill": "draftrank.drafting.steps.distill:Distill",
    "quantize": "draftrank.drafting.steps.quantize:Quantize",
    "write_gguf": "draftrank.drafting.steps.write_gguf:WriteGguf",
}

DRAFTS = {
    "model": "draftrank.decoding.proposers.model:ModelDraft",
    "ngram": "draftrank.decoding.proposers.ngram:NgramDraft",
    "suffix": "draftrank.decoding.proposers.suffix:SuffixDraft",
    "early_exit": "draftrank.decoding.proposers.early_exit:EarlyExitDraft",
    "mixed": "draftrank.decoding.proposers.mixed:MixedDraft",
}


def load_kind(path: str) -> type[Any]:
    """Imports the class that a table entry names as `module:Class`."""
    module, _, name = path.partition(":")
    loaded = getattr(import_module(module), name)
    assert isinstance(loaded, type)
    return loaded


def load_kinds(table: dict[str, str]) -> tuple[type[Any], ...]:
    """Imports every class of one table, in its order."""
    return tuple(load_kind(path) for path in table.values())
