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
    "wheel_texts": "draftrank.catalog.sources.wheel_texts:WheelTextsSource",
    "hub": "draftrank.catalog.sources.hub:HubSource",
    "url": "draftrank.catalog.sources.url:UrlSource",
    "local": "draftrank.catalog.sources.local:LocalSource",
    "inline": "draftrank.catalog.sources.inline:InlineSource",
}

STEPS = {
    "pretrained": "draftrank.building.steps.origin:Pretrained",
    "random": "draftrank.building.steps.origin:Random",
    "eagle_head": "draftrank.building.steps.eagle_head:EagleHead",
    "norm_before_residual": "draftrank.building.steps.eagle_head:NormBeforeResidual",
    "drop_layers": "draftrank.building.steps.drop_layers:DropLayers",
    "merge_layers": "draftrank.building.steps.merge_layers:MergeLayers",
    "prune_ffn": "draftrank.building.steps.width:PruneFfn",
    "prune_heads": "draftrank.building.steps.width:PruneHeads",
    "prune_hidden": "draftrank.building.steps.width:PruneHidden",
    "factorize": "draftrank.building.steps.factorize:Factorize",
    "tie_layers": "draftrank.building.steps.tie_layers:TieLayers",
    "trim_vocabulary": "draftrank.building.steps.trim_vocabulary:TrimVocabulary",
    "factorize_head": "draftrank.building.steps.factorize:FactorizeHead",
    "sparsify": "draftrank.building.steps.sparsify:Sparsify",
    "distill": "draftrank.building.steps.distill:Distill",
    "quantize": "draftrank.building.steps.quantize:Quantize",
    "write_gguf": "draftrank.building.steps.write_gguf:WriteGguf",
}

DRAFTS = {
    "draft_model": "draftrank.engine.proposers.draft_model:ModelDraft",
    "eagle": "draftrank.engine.proposers.draft_model:EagleDraft",
    "ngram": "draftrank.engine.proposers.ngram:NgramDraft",
    "suffix": "draftrank.engine.proposers.suffix:SuffixDraft",
    "early_exit": "draftrank.engine.proposers.early_exit:EarlyExitDraft",
    "cascade": "draftrank.engine.proposers.cascade:CascadeDraft",
    "engine_method": "draftrank.engine.proposers.engine_method:EngineMethod",
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
