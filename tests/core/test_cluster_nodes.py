"""Ray as an engine, with real nodes."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

import imagepipe
from imagepipe.core import cluster
from imagepipe.core.cluster import AHEAD, BUNDLE, RayEngine, open_cluster
from imagepipe.core.errors import EnvironmentFault, InputError
from imagepipe.core.parallel import FEW, Limits, LocalEngine, Lost
from tests.conftest import ROOT
from tests.core.made import make_run
from tests.core.nodes import ON_LOOPBACK, Nodes, start_nodes
from tests.core.test_parallel import (
    PLENTY,
    Contained,
    Counted,
    add_up,
    ask_for_memory,
    close,
    crash_at_multiples_of_5,
    cut,
    find_disk_full,
    find_process,
    hang_at_3,
    leave,
    leave_at_3,
    refuse_3,
    refuse_large,
    square,
)


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with start_nodes() as nodes:
        yield nodes


@pytest.fixture(scope="module")
def connected(nodes: Nodes) -> Iterator[RayEngine]:
    with open_cluster(make_run(engine="ray", ray_address=nodes.address)) as engine:
        yield engine


@pytest.fixture
def engine(nodes: Nodes, connected: RayEngine) -> RayEngine:
    nodes.complete()
    return connected


def find_package(_: Sequence[int]) -> str:
    return imagepipe.__file__


def square_or_fill(items: Sequence[int]) -> Any:
    """Slow; every other result is large enough for Ray to keep it on the node that made it."""
    time.sleep(0.05)
    return np.full(300_000, items[0] % 251, np.uint8) if items[0] % 2 else square(items)


pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="Ray's clusters are for POSIX")]


@pytest.mark.parametrize(
    ("function", "chunks", "limits"),
    [
        (square, [], PLENTY),
        (square, cut(50, 3), PLENTY),
        (crash_at_multiples_of_5, cut(12, 6), PLENTY),
        (leave_at_3, cut(6, 3), PLENTY),
        (hang_at_3, cut(6, 3), Limits(1.5, 2**30)),
        (ask_for_memory, [[2**20, 2**29, 2**20]], Limits(60.0, 2**28)),
    ],
)
def test_contained_work_has_the_results_that_it_has_here(
    engine: RayEngine, function: Contained, chunks: list[Sequence[int]], limits: Limits
) -> None:
    expected = list(LocalEngine(2).map_contained(function, chunks, limits))
    assert list(engine.map_contained(function, chunks, limits)) == expected


def test_trusted_work_has_the_results_that_it_has_here(engine: RayEngine) -> None:
    chunks = cut(FEW + 500, 300)
    assert list(engine.map_chunks(add_up, chunks)) == [sum(chunk) for chunk in chunks]


def test_work_is_done_by_other_processes_unless_it_is_little(engine: RayEngine) -> None:
    assert set(engine.map_chunks(find_process, cut(FEW, 100))) == {os.getpid()}
    assert os.getpid() not in set(engine.map_chunks(find_process, cut(FEW + 1, 100)))
    assert os.getpid() not in {process for _, process in engine.map_contained(find_process, cut(4, 1), PLENTY)}


def test_every_cpu_of_the_cluster_counts(engine: RayEngine) -> None:
    assert engine.jobs == 2


def test_the_code_of_this_checkout_travels(engine: RayEngine) -> None:
    """To Ray's processes, and from there to those that may die."""
    trusted = next(engine.map_chunks(find_package, cut(FEW + 1, 100)))
    ((_, contained),) = engine.map_contained(find_package, cut(1, 1), PLENTY)
    assert contained == trusted
    assert not Path(trusted).is_relative_to(ROOT)
    assert "py_modules_files" in Path(trusted).parts


def test_arrays_come_back_as_one_may_write_to(engine: RayEngine) -> None:
    ((_, pixels),) = engine.map_contained(square_or_fill, [[7]], PLENTY)
    assert isinstance(pixels, np.ndarray)
    pixels += 1
    assert pixels.min() == pixels.max() == 8


def test_few_chunks_are_in_flight(engine: RayEngine) -> None:
    """So that memory stays bounded however slowly the results are taken; what is left lying is given up."""
    chunks = Counted(10_000)
    results = engine.map_contained(square, chunks, PLENTY)
    assert list(islice(results, 3)) == [(range(i, i + 10), square(range(i, i + 10))) for i in (0, 10, 20)]
    assert chunks.made == BUNDLE * (AHEAD * 2 + 1)
    close(results)


def test_items_are_loaded_here_when_their_turn_comes(engine: RayEngine) -> None:
    loaded: list[int] = []

    def load(item: int) -> int:
        loaded.append(item)
        return -item

    chunks = Counted(10_000)
    results = engine.map_contained(crash_at_multiples_of_5, chunks, PLENTY, load)
    crashed = Lost("its process ended with SIGSEGV")
    assert list(islice(results, 3)) == [([0], crashed), ([1], [1]), ([2], [4])]
    assert loaded == list(range(chunks.made * 10))
    close(results)


@pytest.mark.parametrize(
    ("function", "kind", "message"),
    [
        (refuse_3, InputError, r"^params\.yaml: 3 is too much$"),
        (find_disk_full, EnvironmentFault, r"^data/images: cannot be written: No space left on device\.$"),
    ],
)
def test_our_own_errors_arrive_as_they_are(
    engine: RayEngine, function: Contained, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        list(engine.map_contained(function, cut(50, 2), PLENTY))


def test_an_error_of_trusted_work_arrives_as_it_is(engine: RayEngine) -> None:
    results = engine.map_chunks(refuse_large, cut(FEW + 1, 300))
    assert list(islice(results, 3)) == [300, 300, 300]
    with pytest.raises(ValueError, match=r"^900 to 1199$"):
        next(results)


@pytest.mark.proof
def test_a_node_that_is_killed_changes_no_result_of_contained_work(
    engine: RayEngine, nodes: Nodes, capfd: pytest.CaptureFixture[str]
) -> None:
    chunks = cut(750, 5)
    results = engine.map_contained(square_or_fill, chunks, PLENTY)
    found = list(islice(results, 40))
    nodes.kill()
    found += list(results)
    assert [chunk for chunk, _ in found] == chunks
    assert all(np.array_equal(cast("Any", result), square_or_fill(chunk)) for chunk, result in found)
    assert capfd.readouterr().out == ""


@pytest.mark.proof
def test_a_node_that_is_killed_changes_no_result_of_trusted_work(
    engine: RayEngine, nodes: Nodes, capfd: pytest.CaptureFixture[str]
) -> None:
    chunks = cut(FEW + 1, 41)
    results = engine.map_chunks(square_or_fill, chunks)
    found = list(islice(results, 20))
    nodes.kill()
    found += list(results)
    assert all(np.array_equal(*pair) for pair in zip(found, map(square_or_fill, chunks), strict=True))
    assert capfd.readouterr().out == ""


@pytest.mark.proof
def test_work_that_kills_each_process_of_ray_is_a_fault(engine: RayEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "RETRIES", 1)
    message = (
        r"^The Ray cluster at 127\.0\.0\.1:\d+ failed \(WorkerCrashedError: The worker died .*\), although what a lost "
        r"node or process has begun is done again up to 1 times\. Is memory short on its nodes\? Mend that and run it "
        r"again, or set run\.engine to local\.$"
    )
    with pytest.raises(EnvironmentFault, match=message):
        list(engine.map_chunks(leave, cut(FEW + 1, 2000)))


@pytest.mark.proof
def test_a_cluster_without_any_node_left_is_a_fault(
    engine: RayEngine, nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "PATIENCE", 0.5)
    results = engine.map_contained(square_or_fill, cut(1000, 5), PLENTY)
    assert next(results) == (range(5), [0, 1, 4, 9, 16])
    nodes.kill()
    nodes.kill()
    message = (
        r"^The Ray cluster at 127\.0\.0\.1:\d+ has had no CPU for 0\.5 s\. Start nodes that have some, or set "
        r"run\.engine to local\.$"
    )
    with pytest.raises(EnvironmentFault, match=message):
        list(results)


@pytest.mark.proof
def test_a_node_that_lacks_a_package_is_told_so(
    engine: RayEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "only_here.py").write_text("def work(items):\n    return list(items)\n", "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    import only_here  # pyright: ignore[reportMissingImports]

    message = (
        r"^The Ray node \S+ cannot import what the work needs \(No module named 'only_here'\)\. Install the packages "
        r"of constraints\.txt there, or set run\.engine to local\.$"
    )
    with pytest.raises(EnvironmentFault, match=message):
        list(engine.map_contained(only_here.work, cut(1, 1), PLENTY))


@pytest.mark.proof
def test_a_node_that_lacks_what_the_engine_itself_needs_is_told_so(
    engine: RayEngine, nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pebble.py").write_text("raise ModuleNotFoundError(\"No module named 'pebble'\")\n", "utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    nodes.kill()
    nodes.kill()
    nodes.complete()
    message = (
        r"^A node of the Ray cluster at 127\.0\.0\.1:\d+ cannot import what the work needs \(ModuleNotFoundError: No "
        r"module named 'pebble'\)\. Install the packages of constraints\.txt there, or set run\.engine to local\.$"
    )
    with pytest.raises(EnvironmentFault, match=message):
        list(engine.map_contained(square, cut(1, 1), PLENTY))
    nodes.kill()
    nodes.kill()


# What opening a cluster does and says: in processes of their own, since one process has one connection.

OPEN = """\
import os, signal, sys
from imagepipe.core.cluster import open_cluster
from imagepipe.core.errors import EnvironmentFault
from tests.core.made import make_run
from tests.core.test_cluster_nodes import *

if __name__ == "__main__":
"""


def run_python(script: str, *arguments: str, **environment: str) -> tuple[str, str]:
    """What a script of OPEN and some more lines prints on stdout and stderr."""
    body = "".join(f"    {line}\n" for line in script.splitlines())
    done = subprocess.run(
        [sys.executable, "-c", OPEN + body, *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")} | environment,
        capture_output=True,
        text=True,
        timeout=600.0,
        check=False,
    )
    return done.stdout, done.stderr


ALONE = """\
before, handler = dict(os.environ), signal.getsignal(signal.SIGTERM)
with open_cluster(make_run(jobs=2)) as engine:
    results = list(engine.map_contained(leave_at_3, cut(6, 3), PLENTY))
    listening = list_listening()
    import ray
    session = ray._private.worker._global_node.get_session_dir_path()
    left = engine.map_contained(square, Counted(1000), PLENTY)
    next(left)
del left
changed = {name for name in before.keys() | os.environ if before.get(name) != os.environ.get(name)}
print(json.dumps([
    engine.name, results == list(LocalEngine(2).map_contained(leave_at_3, cut(6, 3), PLENTY)), listening,
    os.path.exists(session), sorted(changed), signal.getsignal(signal.SIGTERM) == handler,
]))
"""


@pytest.mark.proof
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_without_an_address_ray_starts_here_alone_and_leaves_nothing(tmp_path: Path) -> None:
    out, err = run_python(ALONE, HOME=str(tmp_path))
    assert err == ""
    name, same, listening, session, changed, handler = json.loads(out)
    assert name == "of this machine"
    assert same
    assert len(listening) >= 4  # of the driver, the raylet, Ray's control store and its processes
    assert set(listening) <= {"0100007F", "0000000000000000FFFF00000100007F"}  # 127.0.0.1, as IPv4 and in IPv6
    assert not session
    assert changed == ["RAY_AUTH_TOKEN"]
    assert handler
    assert list(tmp_path.iterdir()) == []  # nothing in the user's home


def list_listening() -> list[str]:
    """The addresses, as the kernel writes them, at which this process and all that it started listen."""
    inodes = {inode for process in list_descendants(os.getpid()) for inode in list_sockets(process)}
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path("/proc/net", name).read_text().splitlines()[1:]]
    return [fields[1].split(":")[0] for fields in lines if fields[3] == "0A" and fields[9] in inodes]


def list_descendants(process: int) -> list[int]:
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    pairs = [tuple(map(int, line.split())) for line in listed.splitlines()]
    found = [process]
    for parent in found:  # which grows meanwhile
        found += [child for child, its_parent in pairs if its_parent == parent]
    return found


def list_sockets(process: int) -> list[str]:
    found: list[str] = []
    with suppress(FileNotFoundError):  # a process may end, or close a file, meanwhile
        for link in Path(f"/proc/{process}/fd").iterdir():
            with suppress(FileNotFoundError):
                found += re.findall(r"^socket:\[(\d+)\]$", str(link.readlink()))
    return found


TRY = """\
try:
    with open_cluster(make_run(engine="ray", ray_address=sys.argv[1])):
        print("connected")
except EnvironmentFault as error:
    print(error)
"""


def test_a_cluster_of_other_versions_is_a_fault(nodes: Nodes) -> None:
    with foreign_versions(nodes):
        out, err = run_python(TRY, nodes.address, **ON_LOOPBACK)
    assert err == ""
    assert re.match(
        rf"run\.ray_address is {nodes.address}, but the cluster there cannot be used \(Version mismatch: The "
        r"cluster was started with: Ray: 1\.0\.0 Python: 3\.6\.1 This process on node 127\.0\.0\.1 was started with: "
        r"Ray: \S+ Python: \S+\)\. Expected is a running cluster that this machine is a node of \(`ray start`\), with "
        r"the same Python and the packages of constraints\.txt\. Mend that, set run\.ray_address to '' to use this "
        r"machine alone, or run\.engine to local\.$",
        out,
    )


@contextmanager
def foreign_versions(nodes: Nodes) -> Generator[None]:
    """As if others had started the cluster."""
    assert nodes.cluster.head_node
    client = nodes.cluster.head_node.get_gcs_client()
    before = client.internal_kv_get(b"CLUSTER_METADATA", b"cluster")
    foreign = json.loads(before) | {"ray_version": "1.0.0", "python_version": "3.6.1"}
    client.internal_kv_put(b"CLUSTER_METADATA", json.dumps(foreign).encode(), True, b"cluster")
    yield
    client.internal_kv_put(b"CLUSTER_METADATA", before, True, b"cluster")


def test_auto_is_the_cluster_of_this_machine(nodes: Nodes) -> None:
    assert run_python(TRY, "auto", RAY_ADDRESS=nodes.address, **ON_LOOPBACK) == ("connected\n", "")


def test_ray_that_does_not_start_here_is_a_fault(tmp_path: Path) -> None:
    """Its sockets have no room where the path is long."""
    out, _ = run_python(TRY, "", RAY_TMPDIR=str(tmp_path / ("x" * 100)))
    assert re.match(r"^Ray did not start on this machine \(.+\)\. Mend that, or set run\.engine to local\.$", out)
