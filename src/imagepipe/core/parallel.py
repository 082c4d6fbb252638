"""Who does the work: chunks go to processes, results come in order, memory stays bounded.

`Engine` is what callers know, and core/engines.py opens one. `LocalEngine` uses the processes of this machine,
core/cluster.py those of a Ray cluster; which of them it is changes no result.
"""

import math
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence, Sized
from concurrent.futures import BrokenExecutor, Future
from concurrent.futures import TimeoutError as TookTooLong
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import islice
from multiprocessing import forkserver
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Protocol, TypeVar

from joblib.externals.loky import ProcessPoolExecutor
from joblib.externals.loky.process_executor import TerminatedWorkerError
from pebble import ProcessExpired, ProcessFuture, ProcessPool

import imagepipe
from imagepipe.core.errors import EnvironmentFault
from imagepipe.core.lifetime import follow_parent

Item = TypeVar("Item")
Chunk = TypeVar("Chunk", bound=Sized)
Result = TypeVar("Result")

FEW = 4000  # items below which starting worker processes costs more than it saves
STARTING = 0.6  # seconds until worker processes have started and imported what their work needs
PROBES = 3  # chunks of trusted work that show how long one takes: the fastest of them, since the first may import, too
IDLE = 60  # seconds that processes for trusted work wait for more of it, since starting them takes one or two
AHEAD = 3  # chunks in flight for each worker: enough to keep it busy, few enough to keep memory flat
TRIES = 3  # with pools that break although their work is still to be done
UNKNOWN_EXIT = 255  # what Python's forkserver says where another thread has asked first, too
NO_WORKERS = (
    "The worker processes ended before they had begun. Is memory short, or does the program that called this lack "
    '`if __name__ == "__main__":`? Mend that and run it again; with run.jobs at 1 it needs least memory.'
)
WORKER_DIED = (
    "A worker process was ended from outside, most likely because memory is short. Run it again with fewer run.jobs "
    "in params.yaml; 1 needs least memory."
)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a worker may use: seconds for a chunk, and again for a single item; bytes of address space."""

    seconds: float
    memory: int


@dataclass(frozen=True, slots=True)
class Lost:
    """In place of a result: why the process that computed it did not come back with one."""

    reason: str


class Engine(Protocol):
    """Computes a function of many chunks; the functions must be importable, or partials of such."""

    @property
    def jobs(self) -> int:
        """How many processes work at once."""
        ...

    def map_chunks(self, function: Callable[[Chunk], Result], chunks: Sequence[Chunk]) -> Iterator[Result]:
        """`function` of each chunk, in order; little work is done in this process.

        A chunk holds all that `function` needs. Raises EnvironmentFault where the processes die.
        """
        ...

    def map_contained(
        self,
        function: Callable[[Sequence[Item]], Result],
        chunks: Sequence[Sequence[Item]],
        limits: Limits,
        load: Callable[[Item], Item] | None = None,
    ) -> Iterator[tuple[Sequence[Item], Result | Lost]]:
        """Each chunk with its result, in order, computed by processes that may die.

        Where a worker crashes or takes too long, the items of its chunk are tried again one by one, and come one by one
        with their results; those that do it again are tried alone, and come with `Lost` where they do it then, too. A
        worker that asks for more memory than it may gets a MemoryError.

        `load` makes an item independent of this machine's disk. An engine whose processes may be elsewhere calls it
        just before it sends a chunk, so that few are loaded at a time; the chunks that come back are the given ones.

        Raises EnvironmentFault where the processes die without work.
        """
        ...


def start_fork_server() -> None:
    """Let the process from which contained workers are forked (on Linux) import meanwhile what this one has imported.

    Each worker imports the main script again, which takes as long as it took here unless that was done before.

    Raises EnvironmentFault where the folder for temporary files takes no socket, as one with a long path.
    """
    if sys.platform == "linux":
        forkserver.set_forkserver_preload([name for name in sys.modules if name.startswith(f"{imagepipe.__name__}.")])
        try:
            with hand_down_source():
                forkserver.ensure_running()
        except OSError as error:
            raise EnvironmentFault(
                f"{tempfile.gettempdir()}: takes no socket for the worker processes ({error}); set TMPDIR to a folder "
                "that can be written to and has a path of fewer than 70 characters."
            ) from error


@contextmanager
def hand_down_source() -> Generator[None]:
    """Let processes that start here import this very package first.

    The fork server of Python 3.11 is told this process's sys.path but does not use it; it would import the package that
    is installed, which may be another checkout's.
    """
    source, before = str(Path(imagepipe.__path__[0]).parent), os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = source if before is None else f"{source}{os.pathsep}{before}"
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def are_few(chunks: Sequence[Sized]) -> bool:
    """Whether the chunks hold at most FEW items; looks at no more of them than it must."""
    items = 0
    for chunk in chunks:
        items += len(chunk)
        if items > FEW:
            return False
    return True


@dataclass(frozen=True, slots=True)
class LocalEngine:
    """The work is done by `jobs` processes of this machine."""

    jobs: int

    def map_chunks(self, function: Callable[[Chunk], Result], chunks: Sequence[Chunk]) -> Iterator[Result]:
        """As `Engine.map_chunks`: in this process where its first chunks show that starting others would take longer
        than they would save."""
        left = iter(chunks)
        pace = math.inf
        for chunk in islice(left, PROBES):
            started = time.perf_counter()
            result = function(chunk)
            pace = min(pace, time.perf_counter() - started)
            yield result
        if pace * (len(chunks) - PROBES) * (1 - 1 / self.jobs) > STARTING:
            yield from self._share(function, left)
        else:
            yield from map(function, left)

    def _share(self, function: Callable[[Chunk], Result], chunks: Iterator[Chunk]) -> Iterator[Result]:
        """`function` of each chunk, in order, by other processes."""
        waiting: deque[Future[Result]] = deque()
        pool = keep_pool(self.jobs)
        try:
            for chunk in chunks:
                waiting.append(pool.submit(function, chunk))
                if len(waiting) > AHEAD * self.jobs:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except TerminatedWorkerError as error:
            keep_pool.cache_clear()
            raise EnvironmentFault(WORKER_DIED) from error
        finally:
            for left in waiting:
                left.cancel()

    def map_contained(
        self,
        function: Callable[[Sequence[Item]], Result],
        chunks: Iterable[Sequence[Item]],
        limits: Limits,
        load: Callable[[Item], Item] | None = None,
    ) -> Iterator[tuple[Sequence[Item], Result | Lost]]:
        """As `Engine.map_contained`; nothing is loaded, since the processes see this machine's disk.

        The chunks may come from anywhere and be any number: few of them are taken ahead of the results.
        """
        left = iter(chunks)
        taken: deque[Sequence[Item]] = deque()
        tries = 0
        while True:
            try:
                for results in run_chunks(function, taken, left, self.jobs, limits):
                    yield from results
                    taken.popleft()
                    tries = 0
                return
            except BrokenExecutor as error:
                tries += 1
                if tries == TRIES:
                    raise EnvironmentFault(NO_WORKERS) from error


@lru_cache(maxsize=1)
def keep_pool(jobs: int) -> ProcessPoolExecutor:
    """Processes for trusted work. They stay for the work that comes next, and end when none has come for IDLE seconds.

    Not the pool that joblib keeps: that one must be joblib's alone.
    """
    pool = ProcessPoolExecutor(jobs, timeout=IDLE, initializer=follow_caller, initargs=(os.getpid(),))
    # Where this process is itself one of multiprocessing's, it would wait for idle ones at its end.
    Finalize(None, pool.shutdown, exitpriority=100)
    return pool


def follow_caller(process: int) -> None:
    """Let this worker leave with the process that started it, which also answers what is typed (Ctrl-C)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if os.name == "posix":
        follow_parent(process, lambda: os._exit(1))


def run_chunks(
    function: Callable[[Sequence[Item]], Result],
    taken: deque[Sequence[Item]],
    left: Iterator[Sequence[Item]],
    jobs: int,
    limits: Limits,
) -> Iterator[list[tuple[Sequence[Item], Result | Lost]]]:
    """What becomes of the chunks in `taken`, and then of those `left`, in order.

    What is taken from `left` is put into `taken`; the caller removes the first when it has what became of it. So
    nothing is lost where the pool gives up, which raises BrokenExecutor.
    """
    taken.extend(islice(left, max(0, jobs - len(taken))))
    if not taken:
        return
    with open_pool(function, min(jobs, len(taken)), limits) as pool:
        start, alone = partial(start_chunk, pool, function, limits), partial(run_alone, function, limits)
        waiting = deque(map(start, taken))
        for chunk in left:
            taken.append(chunk)
            waiting.append(start(chunk))
            if len(waiting) > AHEAD * jobs:
                yield collect(start, taken[0], waiting.popleft(), alone)
        while waiting:
            yield collect(start, taken[0], waiting.popleft(), alone)


@contextmanager
def open_pool(function: Callable[..., object], jobs: int, limits: Limits) -> Generator[ProcessPool]:
    """Worker processes for `function`, ended when the block is left."""
    # Quick where it is safe; on macOS the system's libraries must not be forked once they are loaded.
    context = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
    with ProcessPool(jobs, initializer=start_worker, initargs=[limits.memory, function], context=context) as pool:
        try:
            yield pool
        finally:
            pool.stop()


def start_chunk(
    pool: ProcessPool, function: Callable[[Sequence[Item]], Result], limits: Limits, chunk: Sequence[Item]
) -> ProcessFuture[Result]:
    """Hand a chunk to the pool; raises BrokenExecutor where the pool has given up."""
    try:
        return pool.schedule(function, [chunk], timeout=limits.seconds)
    except RuntimeError as error:
        raise BrokenExecutor from error


def collect(
    start: Callable[[Sequence[Item]], ProcessFuture[Result]],
    chunk: Sequence[Item],
    future: ProcessFuture[Result],
    alone: Callable[[Item], Result | Lost],
) -> list[tuple[Sequence[Item], Result | Lost]]:
    """The chunk with its result; where its worker was lost, each item with its own."""
    try:
        return [(chunk, future.result())]
    except (TookTooLong, ProcessExpired):
        if len(chunk) == 1:
            return [([chunk[0]], alone(chunk[0]))]
        again = [([item], start([item])) for item in chunk]
        return [found for one, future in again for found in collect(start, one, future, alone)]


def run_alone(function: Callable[[Sequence[Item]], Result], limits: Limits, item: Item) -> Result | Lost:
    """The result of one item in a pool of its own.

    Where a worker dies just after it took its next chunk, the pool may still believe that it held the one before: only
    here is it certain which item it was. Where the pool has not even heard that the work began, it breaks, and is
    asked again; so it is where it did not learn how the process ended: the same image has to give the same reason.
    """
    for left in reversed(range(TRIES)):
        with open_pool(function, 1, limits) as pool:
            try:
                return start_chunk(pool, function, limits, [item]).result()
            except TookTooLong:
                return Lost(f"took longer than {limits.seconds:g} s and was ended")
            except ProcessExpired as error:
                if error.exitcode == UNKNOWN_EXIT and left:
                    continue
                return Lost(f"its process ended with {describe_exit(error.exitcode)}")
            except BrokenExecutor:
                continue
    raise EnvironmentFault(NO_WORKERS)


def describe_exit(code: int | None) -> str:
    """How a process ended: a signal by its name, else its exit code."""
    return signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"


def start_worker(most: int, _: Callable[..., object]) -> None:
    """Let this process leave with the one that started it, and ask for at most `most` bytes more than it has now.

    The second argument is the work to come: unpickling it has imported what it needs, which does not count.
    """
    threading.Thread(target=leave_with_parent, daemon=True).start()
    limit_memory(most)


def leave_with_parent() -> None:
    """End this process when the one that started it has ended, even where that was killed and this one hangs."""
    parent = multiprocessing.parent_process()
    if parent:
        parent.join()
        os._exit(1)


def limit_memory(most: int) -> None:
    """Let this process ask for at most `most` bytes more than it has now; only Linux counts and limits that."""
    if sys.platform == "linux":
        import resource

        pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
        ceiling = pages * resource.getpagesize() + most
        resource.setrlimit(resource.RLIMIT_AS, (ceiling, resource.getrlimit(resource.RLIMIT_AS)[1]))
