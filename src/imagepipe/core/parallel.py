"""Work in chunks over processes, in order, with bounded memory: trusted work, and work that may crash or hang."""

import multiprocessing
import signal
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import BrokenExecutor
from concurrent.futures import TimeoutError as TookTooLong
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar, cast

import joblib
from pebble import ProcessExpired, ProcessFuture, ProcessPool

from imagepipe.core.errors import EnvironmentFault

Item = TypeVar("Item")
Result = TypeVar("Result")

CHUNK = 1000  # items that a worker takes at once
FEW = 4000  # below this, starting worker processes costs more than it saves
AHEAD = 3  # chunks in flight for each worker: enough to keep it busy, few enough to keep memory flat
TRIES = 3  # with pools that break although their work is still to be done
NO_WORKERS = (
    "The worker processes ended before they had begun. Is memory short, or does the program that called this lack "
    '`if __name__ == "__main__":`? Mend that and run it again; with run.jobs at 1 it needs least memory.'
)


def map_chunks(function: Callable[[Sequence[Item]], Result], items: Sequence[Item], jobs: int) -> Iterator[Result]:
    """`function` of each chunk of `items`, in order, computed by `jobs` processes (one for few items)."""
    chunks = [items[first : first + CHUNK] for first in range(0, len(items), CHUNK)]
    parallel = joblib.Parallel(n_jobs=jobs if len(items) > FEW else 1, return_as="generator")
    return cast("Iterator[Result]", parallel(joblib.delayed(function)(chunk) for chunk in chunks))


@dataclass(frozen=True, slots=True)
class Limits:
    """What a worker may use: seconds for a chunk, and again for a single item; bytes of address space."""

    seconds: float
    memory: int


@dataclass(frozen=True, slots=True)
class Lost:
    """In place of an item's result: why the process that computed it did not come back with one."""

    reason: str


def map_contained(
    function: Callable[[Sequence[Item]], list[Result]], chunks: Sequence[Sequence[Item]], jobs: int, limits: Limits
) -> Iterator[Result | Lost]:
    """The results of `function` (one for each item of a chunk) in order, computed by processes that may die, `jobs` at
    most.

    Where a worker crashes or takes too long, the items of its chunk are tried again one by one; those that do it again
    are tried alone, and give `Lost` where they do it then, too. A worker that asks for more memory than it may gets a
    MemoryError.

    Raises EnvironmentFault where the processes die without work.
    """
    done = tries = 0
    while done < len(chunks):
        try:
            for results in run_chunks(function, chunks[done:], jobs, limits):
                yield from results
                done, tries = done + 1, 0
        except BrokenExecutor as error:
            tries += 1
            if tries == TRIES:
                raise EnvironmentFault(NO_WORKERS) from error


def run_chunks(
    function: Callable[[Sequence[Item]], list[Result]], chunks: Sequence[Sequence[Item]], jobs: int, limits: Limits
) -> Iterator[list[Result | Lost]]:
    """The results of each chunk, in order; raises BrokenExecutor where the pool of processes gives up."""
    with open_pool(function, min(jobs, len(chunks)), limits) as pool:
        start = partial(start_chunk, pool, function, limits)
        waiting: deque[tuple[Sequence[Item], ProcessFuture[list[Result]]]] = deque()
        for chunk in chunks:
            waiting.append((chunk, start(chunk)))
            if len(waiting) > AHEAD * jobs:
                yield collect(start, *waiting.popleft(), partial(run_alone, function, limits))
        while waiting:
            yield collect(start, *waiting.popleft(), partial(run_alone, function, limits))


@contextmanager
def open_pool(function: Callable[..., object], jobs: int, limits: Limits) -> Generator[ProcessPool]:
    """Worker processes for `function`, ended when the block is left."""
    # Quick where it is safe; on macOS the system's libraries must not be forked once they are loaded.
    context = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
    with ProcessPool(jobs, initializer=limit_memory, initargs=[limits.memory, function], context=context) as pool:
        try:
            yield pool
        finally:
            pool.stop()


def start_chunk(
    pool: ProcessPool, function: Callable[[Sequence[Item]], list[Result]], limits: Limits, chunk: Sequence[Item]
) -> ProcessFuture[list[Result]]:
    """Hand a chunk to the pool; raises BrokenExecutor where the pool has given up."""
    try:
        return pool.schedule(function, [chunk], timeout=limits.seconds)
    except RuntimeError as error:
        raise BrokenExecutor from error


def collect(
    start: Callable[[Sequence[Item]], ProcessFuture[list[Result]]],
    chunk: Sequence[Item],
    future: ProcessFuture[list[Result]],
    alone: Callable[[Item], Result | Lost],
) -> list[Result | Lost]:
    """The results of a chunk; where its worker was lost, those of each item on its own."""
    try:
        return [*future.result()]
    except (TookTooLong, ProcessExpired):
        if len(chunk) == 1:
            return [alone(chunk[0])]
        again = [([item], start([item])) for item in chunk]
        return [result for one, future in again for result in collect(start, one, future, alone)]


def run_alone(function: Callable[[Sequence[Item]], list[Result]], limits: Limits, item: Item) -> Result | Lost:
    """The result of one item in a pool of its own.

    Where a worker dies just after it took its next chunk, the pool may still believe that it held the one before: only
    here is it certain which item it was. Where the pool has not even heard that the work began, it breaks, and is
    asked again.
    """
    for _ in range(TRIES):
        with open_pool(function, 1, limits) as pool:
            try:
                return start_chunk(pool, function, limits, [item]).result()[0]
            except TookTooLong:
                return Lost(f"took longer than {limits.seconds:g} s and was ended")
            except ProcessExpired as error:
                return Lost(f"its process ended with {describe_exit(error.exitcode)}")
            except BrokenExecutor:
                continue
    raise EnvironmentFault(NO_WORKERS)


def describe_exit(code: int | None) -> str:
    """How a process ended: a signal by its name, else its exit code."""
    return signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"


def limit_memory(most: int, _: Callable[..., object]) -> None:
    """Let this process ask for at most `most` bytes more than it has now; only Linux counts and limits that.

    The second argument is the work to come: unpickling it has imported what it needs, which does not count.
    """
    if sys.platform == "linux":
        import resource

        pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
        ceiling = pages * resource.getpagesize() + most
        resource.setrlimit(resource.RLIMIT_AS, (ceiling, resource.getrlimit(resource.RLIMIT_AS)[1]))
