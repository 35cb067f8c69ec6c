"""The process that a job has to itself: `python -m draftrank.cli.worker ORDER`.

The order is a JSON file; what became of it goes to the file it names, so that anything the job prints is
only its log.
"""

from __future__ import annotations

import sys
from pathlib import Path

from draftrank.catalog.workspace import Workspace
from draftrank.cli.output import ConsoleProgress
from draftrank.errors import DraftrankError
from draftrank.jobs.executors.isolated import ENDED, STOPPED, Order
from draftrank.jobs.job import Ended
from draftrank.jobs.work import work
from draftrank.store.store import Store


def main(order_file: str) -> int:
    """Does what the order says; returns the exit code."""
    order = Order.model_validate_json(Path(order_file).read_bytes())
    workspace = Workspace(order.workspace, order.state)
    try:
        with Store.open(order.store) as store, ConsoleProgress() as progress:
            ended = work(order.job, workspace, store, progress, order.attempt)
    except DraftrankError as error:
        ended = Ended(order.job.id, "failed", str(error))
    except KeyboardInterrupt:
        return STOPPED
    unfinished = order.answer.with_suffix(".part")
    unfinished.write_bytes(ENDED.dump_json(ended))
    unfinished.replace(order.answer)
    return 0 if ended.end == "done" else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
