"""draftrank: a benchmark suite and leaderboard for the draft models of speculative decoding.

The same from Python::

    import draftrank

    workspace = draftrank.Workspace.open()
    with draftrank.Store.open(workspace.store_url) as store:
        result = draftrank.run(workspace, draftrank.RunRequest("smollm2-135m-instruct"), store)
    for board in draftrank.build_boards([result]):
        for row in board.rows:
            print(row.rank, row.draft, row.speedup, row.ci)

Names are imported when they are first used, so `import draftrank` is fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from draftrank.version import __version__

if TYPE_CHECKING:
    from draftrank.board.ranking import build_boards
    from draftrank.board.site import render_site
    from draftrank.catalog.decoding_mode import DecodingMode
    from draftrank.catalog.workspace import Workspace
    from draftrank.jobs.session import RunRequest, build, run
    from draftrank.measure.cost.what_if import predict_elsewhere
    from draftrank.measure.statistics.comparing import compare
    from draftrank.measure.summaries.summary import summarise
    from draftrank.store.bundle import load_results
    from draftrank.store.store import Store
    from draftrank.workflows.tune import tune_k
    from draftrank.workflows.verify import verify

_HOMES = {
    "DecodingMode": "draftrank.catalog.decoding_mode",
    "RunRequest": "draftrank.jobs.session",
    "Store": "draftrank.store.store",
    "Workspace": "draftrank.catalog.workspace",
    "build": "draftrank.jobs.session",
    "build_boards": "draftrank.board.ranking",
    "compare": "draftrank.measure.statistics.comparing",
    "load_results": "draftrank.store.bundle",
    "predict_elsewhere": "draftrank.measure.cost.what_if",
    "render_site": "draftrank.board.site",
    "run": "draftrank.jobs.session",
    "summarise": "draftrank.measure.summaries.summary",
    "tune_k": "draftrank.workflows.tune",
    "verify": "draftrank.workflows.verify",
}

__all__ = [
    "DecodingMode",
    "RunRequest",
    "Store",
    "Workspace",
    "__version__",
    "build",
    "build_boards",
    "compare",
    "load_results",
    "predict_elsewhere",
    "render_site",
    "run",
    "summarise",
    "tune_k",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'draftrank' has no attribute {name!r}")
