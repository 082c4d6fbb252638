"""A Ray cluster of real nodes: processes of this machine that hear loopback alone."""

import os
import shutil
import signal
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from imagepipe.core.cluster import switch
from tests.conftest import ROOT

STORE = 100 * 2**20  # bytes for each node's objects
ON_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # for other processes that connect to the nodes


class Nodes:
    """A head without any CPU, and two nodes with one each."""

    def __init__(self) -> None:
        head = {"num_cpus": 0, "object_store_memory": STORE, "include_dashboard": False}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.address = str(self.cluster.address)
        self.workers: list[Any] = []
        self.complete()

    def complete(self) -> None:
        """Bring the nodes to two."""
        while len(self.workers) < 2:
            self.workers.append(self.cluster.add_node(num_cpus=1, object_store_memory=STORE))

    def kill(self) -> None:
        """Kill a node that works, without a word to anybody."""
        node = self.workers.pop()
        os.kill(node.all_processes["raylet"][0].process.pid, signal.SIGKILL)
        self.cluster.remove_node(node, allow_graceful=False)

    def end(self) -> None:
        """End all nodes, and remove what Ray leaves behind."""
        assert self.cluster.head_node
        session = self.cluster.head_node.get_session_dir_path()
        self.cluster.shutdown()
        shutil.rmtree(session, ignore_errors=True)


@contextmanager
def start_nodes() -> Generator[Nodes]:
    """Nodes for a while; they find the modules of the tests."""
    with pytest.MonkeyPatch.context() as patch, switch("ray._private.ray_constants", "ENABLE_RAY_CLUSTER", False):
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.chdir(ROOT)
        nodes = Nodes()
        try:
            yield nodes
        finally:
            nodes.end()
