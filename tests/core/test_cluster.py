import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import pytest

from imagepipe.core import cluster
from imagepipe.core.cluster import (
    Job,
    bundle_chunks,
    check_versions,
    find_version,
    flatten,
    match_results,
    open_cluster,
    reach_address,
)
from imagepipe.core.errors import EnvironmentFault, InputError
from tests.core.made import make_run
from tests.core.test_parallel import cut, square


def test_an_address_where_nothing_listens_is_a_fault_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    message = (
        rf"^run\.ray_address is {address}, but the cluster there cannot be used \(.*Connection refused\)\. Expected"
    )
    with pytest.raises(EnvironmentFault, match=message), open_cluster(make_run(ray_address=address)):
        pass


@pytest.mark.parametrize(
    ("answer", "reason"),
    [(b"HTTP/1.1 400 Bad Request\r\n\r\n", "what answers there is something else"), (b"", "timed out")],
)
def test_an_address_where_something_else_listens_is_a_fault(
    answer: bytes, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "REACH", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as pool:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        answering = pool.submit(answer_once, server, answer)
        message = rf"^run\.ray_address is {address}, but the cluster there cannot be used \({reason}\)\. Expected is"
        with pytest.raises(EnvironmentFault, match=message), open_cluster(make_run(ray_address=address)):
            pass
        answering.result()


def answer_once(server: socket.socket, answer: bytes) -> None:
    """Say `answer` to the first who comes, and wait until they leave."""
    connection, _ = server.accept()
    with connection:
        connection.sendall(answer)
        with suppress(ConnectionResetError):
            while connection.recv(100):
                pass


def test_a_cluster_that_speaks_tls_is_not_greeted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_USE_TLS", "1")
    with socket.create_server(("127.0.0.1", 0)) as server:
        reach_address(f"127.0.0.1:{server.getsockname()[1]}")


@pytest.mark.parametrize("address", ["ray://127.0.0.1:10001", "127.0.0.1", "head:", ":6379", "http://head:6379/"])
def test_an_address_of_another_kind_is_refused(address: str) -> None:
    message = (
        rf"^params\.yaml: run\.ray_address is '{address}'; expected host:port, such as 10\.0\.0\.1:6379, or auto for "
        r"the cluster that this machine belongs to, or '' to start one here\.$"
    )
    with pytest.raises(InputError, match=message), open_cluster(make_run(ray_address=address)):
        pass


def test_nodes_that_could_make_other_bytes_are_refused() -> None:
    check_versions(Job(square, {"numpy": np.__version__}))
    message = (
        rf"^The Ray node \S+ has numpy {np.__version__}, but 1\.0 is used here, and images could get other bytes\. "
        r"Install the packages of constraints\.txt there, or set run\.engine to local\.$"
    )
    with pytest.raises(EnvironmentFault, match=message):
        check_versions(Job(square, {"numpy": "1.0"}))
    assert find_version("no-such-package") == "missing"


def test_bundles_hold_some_chunks_or_some_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [bundle for bundle, _ in bundle_chunks(cut(5, 1), None, 2)] == [
        [range(1), range(1, 2)],
        [range(2, 3), range(3, 4)],
        [range(4, 5)],
    ]
    monkeypatch.setattr(cluster, "BUNDLE_BYTES", 1000)
    large = [[b"x" * 600]] * 3
    assert [len(bundle) for bundle, _ in bundle_chunks(large, None, 16)] == [2, 1]
    assert [len(bundle) for bundle, _ in bundle_chunks(large, lambda item: item * 2, 16)] == [1, 1, 1]


def test_results_find_their_chunks_and_items() -> None:
    bundle = [[1, 2], [3, 4, 5], [6]]
    found = [(2, "a"), (1, "b"), (1, "c"), (1, "d"), (1, "e")]
    assert list(match_results(bundle, found)) == [([1, 2], "a"), ([3], "b"), ([4], "c"), ([5], "d"), ([6], "e")]


def test_long_messages_are_cut() -> None:
    assert flatten(ValueError("two\n  words")) == "two words"
    assert flatten(ValueError("x" * 500)) == "x" * 400 + " …"
