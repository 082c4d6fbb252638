"""The processes of a Ray cluster as an engine: what they lose, Ray has done again elsewhere, so that no result changes.

This checkout's package travels with the job. The nodes need what it imports, in the versions that decide bytes.
"""

import multiprocessing
import os
import pickle
import secrets
import shutil
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence, Sized
from contextlib import closing, contextmanager
from functools import cache, partial
from importlib import import_module, metadata
from logging import CRITICAL
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import ray
from ray.exceptions import RayError, RayTaskError

from imagepipe.core.errors import EnvironmentFault, InputError
from imagepipe.core.parallel import Limits, LocalEngine, Lost, are_few
from imagepipe.core.run import RunParams, count_jobs

Item = TypeVar("Item")
Chunk = TypeVar("Chunk", bound=Sized)
Result = TypeVar("Result")

AHEAD = 2  # tasks in flight for each CPU: one that runs, one that waits beside it
RETRIES = 5  # of a task whose process or node was lost
BUNDLE = 16  # chunks that one task takes at most: processes that may die take a moment to start, once for a task
BUNDLE_BYTES = 16 * 2**20  # of pickled chunks, above which a task takes no further one
PATIENCE = 600.0  # seconds that a cluster may have no CPU: one that grows on demand takes minutes to start its first
REACH = 5.0  # seconds for a first connection to the cluster
LONG = 400  # characters of Ray's own messages that are worth repeating
SETTINGS = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])  # an empty frame of HTTP/2: its length in 3 bytes, type 4, no flags
UNIMPORTABLE = "The remote function failed to import on the worker"  # so says Ray where this very module cannot be
DECIDING = ("numpy", "pillow")  # packages whose version may decide a byte of an image


class Job(NamedTuple):
    """What travels with each task: the function, and the versions of the packages that decide bytes."""

    function: Callable[[Any], Any]
    versions: dict[str, str]


class RayEngine:
    """The work is done by the CPUs of the Ray cluster that this process is connected to; `name` is for messages."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.versions = {package: metadata.version(package) for package in DECIDING}

    @property
    def jobs(self) -> int:
        """CPUs of the cluster now; nodes may come and go."""
        return max(1, count_cpus())

    def map_chunks(self, function: Callable[[Chunk], Result], chunks: Sequence[Chunk]) -> Iterator[Result]:
        """As `Engine.map_chunks`."""
        if are_few(chunks):
            yield from map(function, chunks)
            return
        job = Job(function, self.versions)
        with closing(self._compute(do_chunk, (pickle.dumps((job, chunk)) for chunk in chunks))) as results:
            yield from results

    def map_contained(
        self,
        function: Callable[[Sequence[Item]], Result],
        chunks: Sequence[Sequence[Item]],
        limits: Limits,
        load: Callable[[Item], Item] | None = None,
    ) -> Iterator[tuple[Sequence[Item], Result | Lost]]:
        """As `Engine.map_contained`; what a node or a process of Ray's takes with it is done again elsewhere."""
        job = Job(function, self.versions)
        most = min(BUNDLE, max(1, len(chunks) // (AHEAD * self.jobs)))
        sent: deque[list[Sequence[Item]]] = deque()

        def send() -> Iterator[bytes]:
            for bundle, pickled in bundle_chunks(chunks, load, most):
                sent.append(bundle)
                yield pickle.dumps((job, limits, pickled))

        with closing(self._compute(do_bundle, send())) as results:
            for found in results:
                yield from match_results(sent.popleft(), found)

    def _compute(self, work: Callable[[bytes], bytes], payloads: Iterable[bytes]) -> Generator[Any]:
        """What `work` makes of each payload, unpickled, in order; raises what it raised."""
        task = ray.remote(num_cpus=1, max_retries=RETRIES)(work)
        waiting: deque[ray.ObjectRef[bytes]] = deque()
        try:
            with self._report_faults():
                for payload in payloads:
                    waiting.append(task.remote(payload))
                    if len(waiting) > AHEAD * self.jobs:
                        yield self._collect(waiting.popleft())
                while waiting:
                    yield self._collect(waiting.popleft())
        finally:
            if ray.is_initialized():  # where an error is on its way out, the cluster may be closed before this
                for left in waiting:
                    ray.cancel(left, force=True)

    @contextmanager
    def _report_faults(self) -> Generator[None]:
        """Turn what Ray raises into what the work raised there, or into EnvironmentFault where the cluster failed."""
        try:
            yield
        except RayTaskError as error:
            cause = cast("Exception", error.cause)
            if isinstance(cause, RuntimeError) and UNIMPORTABLE in str(cause):
                reason = str(cause).strip().splitlines()[-1]
                raise EnvironmentFault(describe_lack(f"A node of the Ray cluster {self.name}", reason)) from error
            raise cause from error
        except RayError as error:
            raise EnvironmentFault(
                f"The Ray cluster {self.name} failed ({type(error).__name__}: {flatten(error)}), although what a lost "
                f"node or process has begun is done again up to {RETRIES} times. Is memory short on its nodes? Mend "
                "that and run it again, or set run.engine to local."
            ) from error

    def _collect(self, reference: "ray.ObjectRef[bytes]") -> Any:
        """The result of a task; raises EnvironmentFault where the cluster has had no CPU for long."""
        hopeful = time.monotonic()
        while not ray.wait([reference], timeout=min(1.0, PATIENCE))[0]:
            if count_cpus():
                hopeful = time.monotonic()
            elif time.monotonic() - hopeful >= PATIENCE:
                raise EnvironmentFault(
                    f"The Ray cluster {self.name} has had no CPU for {PATIENCE:g} s. Start nodes that have some, or "
                    "set run.engine to local."
                )
        return pickle.loads(ray.get(reference))  # noqa: S301 what our own task has pickled


@contextmanager
def open_cluster(run: RunParams) -> Generator[RayEngine]:
    """The cluster at `run.ray_address`, or one of this machine alone, which ends with the block.

    Raises EnvironmentFault where it cannot be had, InputError for an address of another kind.
    """
    name = f"at {run.ray_address}" if run.ray_address else "of this machine"
    with keep_process(), quieten_ray():
        with keep_answer():
            context = connect_ray(run.ray_address) if run.ray_address else start_ray(count_jobs(run))
        try:
            yield RayEngine(name)
        finally:
            ray.shutdown()
            if not run.ray_address:
                shutil.rmtree(context.address_info["session_dir"], ignore_errors=True)


def start_ray(jobs: int) -> Any:
    """Start Ray on this machine alone, out of reach of all others; raises EnvironmentFault where it does not start."""
    # In place of the token that Ray would leave in the user's home.
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    with switch("ray._private.ray_constants", "ENABLE_RAY_CLUSTER", False):  # else it listens on every address
        try:
            return ray.init("local", num_cpus=jobs, include_dashboard=False, **describe_job())
        except (OSError, RuntimeError, ValueError, RayError) as error:
            raise EnvironmentFault(
                f"Ray did not start on this machine ({flatten(error)}). Mend that, or set run.engine to local."
            ) from error


def connect_ray(address: str) -> Any:
    """Connect to a cluster that runs; raises EnvironmentFault, naming the key, where that does not succeed."""
    try:
        if address != "auto":
            reach_address(address)
        return ray.init(address, **describe_job())
    except (OSError, RuntimeError, ValueError, RayError) as error:
        raise EnvironmentFault(
            f"run.ray_address is {address}, but the cluster there cannot be used ({flatten(error)}). Expected is a "
            "running cluster that this machine is a node of (`ray start`), with the same Python and the packages of "
            "constraints.txt. Mend that, set run.ray_address to '' to use this machine alone, or run.engine to local."
        ) from error


def reach_address(address: str) -> None:
    """Raise InputError where `address` is not host:port, and OSError where no Ray cluster answers there.

    Ray itself would wait for minutes, and say less.
    """
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal():
        raise InputError(
            f"params.yaml: run.ray_address is {address!r}; expected host:port, such as 10.0.0.1:6379, or auto for the "
            "cluster that this machine belongs to, or '' to start one here."
        )
    with socket.create_connection((host.strip("[]"), int(port)), timeout=REACH) as connection:
        if os.environ.get("RAY_USE_TLS", "0") == "0" and not greet(connection):
            raise ConnectionError("what answers there is something else")


def greet(connection: socket.socket) -> bool:
    """Whether the other side speaks HTTP/2, as gRPC does: each side then begins with a SETTINGS frame (RFC 9113, 3.4).

    Raises TimeoutError where it says nothing.
    """
    connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SETTINGS)
    return connection.recv(len(SETTINGS))[3:4] == SETTINGS[3:4]


def describe_job() -> dict[str, Any]:
    """What every connection to Ray is told: nothing is printed, and this checkout's package goes to every node."""
    package = Path(__file__).resolve().parents[1]
    return {
        "log_to_driver": False,
        "logging_level": CRITICAL,
        "runtime_env": {"py_modules": [str(package)], "excludes": ["__pycache__"]},
    }


def flatten(error: Exception) -> str:
    """What an error of Ray's says, in one line that is not too long."""
    words = " ".join(str(error).split())
    return words if len(words) <= LONG else f"{words[:LONG]} …"


def count_cpus() -> int:
    """CPUs of the cluster's nodes that are alive."""
    return int(ray.cluster_resources().get("CPU", 0))


@contextmanager
def keep_process() -> Generator[None]:
    """Undo at the end what Ray does to the environment variables of this process."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in set(os.environ) - set(before) - {"RAY_AUTH_TOKEN"}:  # which Ray remembers as long as we live
            del os.environ[name]
        os.environ.update(before)


@contextmanager
def keep_answer() -> Generator[None]:
    """Undo what Ray does to this process as it connects: it takes it on itself to answer SIGTERM."""
    answer = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, answer)


@contextmanager
def quieten_ray() -> Generator[None]:
    """Keep Ray from printing, on stdout, what became of its processes."""
    with switch("ray._private.worker", "_worker_logs_enabled", False):
        yield


@contextmanager
def switch(module: str, name: str, value: object) -> Generator[None]:
    """Set a name of a module for a while."""
    owner = import_module(module)
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def bundle_chunks(
    chunks: Sequence[Sequence[Item]], load: Callable[[Item], Item] | None, most: int
) -> Iterator[tuple[list[Sequence[Item]], list[bytes]]]:
    """The chunks, `most` at a time or fewer where they are large: as they are, and loaded and pickled."""
    bundle: list[Sequence[Item]] = []
    pickled: list[bytes] = []
    for position in range(len(chunks)):
        chunk = chunks[position]
        bundle.append(chunk)
        pickled.append(pickle.dumps([load(item) for item in chunk] if load else chunk))
        if len(bundle) == most or sum(map(len, pickled)) >= BUNDLE_BYTES or position == len(chunks) - 1:
            yield bundle, pickled
            bundle, pickled = [], []


def match_results(
    bundle: Sequence[Sequence[Item]], found: Iterable[tuple[int, Any]]
) -> Iterator[tuple[Sequence[Item], Any]]:
    """Results, each with the number of items that it is of, to the chunks or items of the bundle that they are of."""
    results = iter(found)
    for chunk in bundle:
        items, result = next(results)
        if items == len(chunk):
            yield chunk, result
            continue
        yield [chunk[0]], result
        for item in chunk[1:]:
            yield [item], next(results)[1]


# What follows runs in the cluster.


def do_chunk(payload: bytes) -> bytes:
    """The function of one chunk."""
    job, chunk = unpickle(payload)
    check_versions(job)
    return pickle.dumps(job.function(chunk))


def do_bundle(payload: bytes) -> bytes:
    """The function of each of some chunks, in a process of this node that may die; each result comes with the number
    of items that it is of."""
    job, limits, pickled = unpickle(payload)
    check_versions(job)
    prepare_containment(job.function)
    chunks = [unpickle(chunk) for chunk in pickled]
    found = LocalEngine(1).map_contained(job.function, chunks, limits)
    return pickle.dumps([(len(chunk), result) for chunk, result in found])


def unpickle(payload: bytes) -> Any:
    """What the parent sent; raises EnvironmentFault where this node lacks a package that it needs."""
    try:
        return pickle.loads(payload)  # noqa: S301 it comes from the process that sent this very code
    except ImportError as error:
        raise EnvironmentFault(describe_lack(f"The Ray node {socket.gethostname()}", str(error))) from error


def describe_lack(node: str, reason: str) -> str:
    """What to do where a node lacks a package."""
    return (
        f"{node} cannot import what the work needs ({reason}). Install the packages of constraints.txt there, or set "
        "run.engine to local."
    )


def check_versions(job: Job) -> None:
    """Raise EnvironmentFault where this node could make other bytes than the machine that asks."""
    for package, expected in job.versions.items():
        found = find_version(package)
        if found != expected:
            raise EnvironmentFault(
                f"The Ray node {socket.gethostname()} has {package} {found}, but {expected} is used here, and images "
                "could get other bytes. Install the packages of constraints.txt there, or set run.engine to local."
            )


@cache
def find_version(package: str) -> str:
    """The version of an installed package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "missing"


def prepare_containment(function: Callable[..., object]) -> None:
    """Let the processes that may die start quickly: with the work's module imported, and without Ray's own script,
    which is the main module here."""
    vars(sys.modules["__main__"]).pop("__file__", None)
    while isinstance(function, partial):
        function = function.func
    multiprocessing.set_forkserver_preload(["imagepipe.core.parallel", function.__module__])
