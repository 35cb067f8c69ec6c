"""Jobs on a real Ray cluster of several nodes, with workers and nodes that die in mid-run."""

from __future__ import annotations

import contextlib
import threading
import time

import psutil
import pytest

from draftrank.catalog.workspace import Workspace
from draftrank.jobs.execute import execute
from draftrank.jobs.ledger import Ledger
from draftrank.jobs.planning import plan_jobs
from draftrank.progress import SilentProgress
from draftrank.store.store import Store
from workspaces import plain_request

ray = pytest.importorskip("ray", reason="needs Ray")


@pytest.fixture
def cluster(request, workspace_root, tmp_path):
    """A head and as many more nodes as asked for, each with its own folder, as if it were another machine."""
    from ray.cluster_utils import Cluster

    def machine(number: int) -> dict[str, str]:
        return {
            "DRAFTRANK_STATE": str(tmp_path / f"node-{number}"),
            "DRAFTRANK_DATA": str(workspace_root),
            "DRAFTRANK_WATCH": "off",
            "OMP_NUM_THREADS": "1",
        }

    head = {"num_cpus": 1, "include_dashboard": False, "env_vars": machine(0)}
    made = Cluster(initialize_head=True, head_node_args=head)
    for number in range(1, request.param + 1):
        made.add_node(num_cpus=1, env_vars=machine(number))
    made.wait_for_nodes()
    yield made
    ray.shutdown()
    made.shutdown()


def requests(seeds):
    """Sessions that share one fetch and one build."""
    return [
        plain_request("tiny", ("ngram", "shallow"), "quick", dtype=dtype, seed=seed)
        for dtype in ("fp32", "bf16")
        for seed in seeds
    ]


class Killer(threading.Thread):
    """Kills a worker in the midst of a session, then, if asked to, a node in the midst of another."""

    def __init__(self, cluster, executor, node_too: bool) -> None:
        super().__init__(daemon=True)
        self.cluster, self.executor, self.node_too = cluster, executor, node_too
        self.lost: list[str] = []

    def run(self):
        _, process = self._fresh_job()
        process.kill()
        if self.node_too:
            node, _ = self._fresh_job()
            self.cluster.remove_node(node, allow_graceful=False)

    def _fresh_job(self):
        """A session that has just begun on a node that is not the head, and the process it runs in."""
        before = self._places()
        while True:
            time.sleep(0.1)
            others = {node.node_id: node for node in self.cluster.list_all_nodes() if not node.head}
            for job, slot in self._places().items():
                if job.startswith("session") and (job, slot) not in before.items() and slot.node in others:
                    process = worker_of(others[slot.node])
                    if process is not None:
                        time.sleep(1.0)
                        self.lost.append(job)
                        return others[slot.node], process

    def _places(self):
        return {job.id: slot for job, slot in list(self.executor._running.values())}


def worker_of(node):
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    for process in raylet.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "_work_there" in " ".join(process.cmdline()):
                return process
    return None


@pytest.mark.parametrize(
    ("cluster", "seeds", "node_too"),
    [(1, [0], False), pytest.param(2, range(5), True, marks=pytest.mark.nightly)],
    indirect=["cluster"],
    ids=["worker", "worker and node"],
)
def test_killing_a_worker_and_a_node_loses_nothing_and_doubles_nothing(
    workspace_root, cluster, seeds, node_too, tmp_path
):
    from draftrank.jobs.executors.ray_cluster import RayExecutor

    workspace = Workspace.open(workspace_root)
    shared = {"DRAFTRANK_SHARED": f"file://{tmp_path}/shared"}
    executor = RayExecutor(workspace, cluster.address, shared)
    plan = plan_jobs(workspace, requests(seeds))
    assert len(plan.jobs) == 2 + 2 * len(seeds)
    ledger = Ledger.begin(tmp_path / "sweep", plan)
    killer = Killer(cluster, executor, node_too)
    killer.start()
    with Store.open(tmp_path / "store.sqlite") as store:
        execute(ledger, executor, store, SilentProgress())
        executor.close()
        results = store.results()
    assert [(job, facts.reason) for job, facts in ledger.facts.items() if facts.state != "done"] == []
    assert len(killer.lost) == 1 + node_too
    assert all(ledger.facts[job].attempts > 1 for job in killer.lost)
    assert len(list((tmp_path / "shared").iterdir())) == 1  # built once, and copied by the other machines
    sessions = [facts.session for facts in ledger.facts.values() if facts.session]
    assert len(sessions) == len(set(sessions)) == 2 * len(seeds)
    assert {result.session.id for result in results} == set(sessions)
    for result in results:
        assert result.session.finished_at is not None
        assert len({trial.key for trial in result.trials}) == len(result.trials)
        assert {arm.id for arm in result.session.arms} >= {trial.arm for trial in result.trials}
