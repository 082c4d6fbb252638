import math
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import TypeVar, overload

import numpy as np
import pytest

from imagepipe.core import parallel
from imagepipe.core.errors import EnvironmentFault, InputError
from imagepipe.core.parallel import AHEAD, FEW, Limits, LocalEngine, Lost, describe_exit

Result = TypeVar("Result")

PLENTY = Limits(seconds=60.0, memory=2**30)
Contained = Callable[[Sequence[int]], list[int]]


def cut(count: int, size: int) -> list[range]:
    return [range(first, min(first + size, count)) for first in range(0, count, size)]


class Counted(Sequence[range]):
    """Chunks of ten numbers that are made when they are asked for, and counted."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.made = 0

    def __len__(self) -> int:
        return self.length

    @overload
    def __getitem__(self, index: int) -> range: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[range]: ...
    def __getitem__(self, index: int | slice) -> range | Sequence[range]:
        if isinstance(index, slice) or index >= self.length:
            raise IndexError
        self.made = max(self.made, index + 1)
        return range(index * 10, index * 10 + 10)


def add_up(items: Sequence[int]) -> int:
    return sum(items)


def find_process(_: Sequence[int]) -> int:
    return os.getpid()


def refuse_large(items: Sequence[int]) -> int:
    if items[-1] >= 1000:
        raise ValueError(f"{items[0]} to {items[-1]}")
    return len(items)


def leave(_: Sequence[int]) -> int:
    os._exit(9)


def test_no_chunks_give_no_results() -> None:
    assert list(LocalEngine(2).map_chunks(add_up, [])) == []


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """All chunks go to other processes where there are several."""
    monkeypatch.setattr(parallel, "PROBES", 0)


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("starting", [0.0, math.inf])
def test_results_come_in_order(monkeypatch: pytest.MonkeyPatch, jobs: int, starting: float) -> None:
    monkeypatch.setattr(parallel, "STARTING", starting)
    chunks = cut(4500, 300)
    assert list(LocalEngine(jobs).map_chunks(add_up, chunks)) == [sum(chunk) for chunk in chunks]


@pytest.mark.parametrize(
    ("seconds", "count", "jobs", "others"),
    [
        ([9.0, 2.0, 3.0], 4, 2, True),
        ([9.0, 1.0, 3.0], 4, 2, False),
        ([9.0, 1.0, 3.0], 6, 2, True),
        ([9.0, 1.0, 3.0], 4, 20, True),
        ([9.0, 9.0, 9.0], 4, 1, False),
        ([9.0, 9.0, 9.0], 3, 2, False),
    ],
    ids=["slow", "quick", "quick but many", "many to share", "nobody to share with", "done"],
)
def test_others_help_where_that_saves_more_than_starting_them_takes(
    monkeypatch: pytest.MonkeyPatch, seconds: list[float], count: int, jobs: int, others: bool
) -> None:
    """With two jobs sharing saves half of what is left: the chunks that are left, each as long as the quickest."""
    clock = iter([time for duration in seconds for time in (0.0, duration)])
    monkeypatch.setattr(parallel.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(parallel, "STARTING", 0.9)
    asked: list[int] = []
    monkeypatch.setattr(parallel, "keep_pool", lambda jobs: asked.append(jobs) or ThreadPoolExecutor(jobs))
    assert list(LocalEngine(jobs).map_chunks(add_up, cut(count, 1))) == list(range(count))
    assert asked == ([jobs] if others else [])


def test_little_work_stays_in_this_process() -> None:
    assert set(LocalEngine(2).map_chunks(find_process, cut(4000, 100))) == {os.getpid()}


@pytest.mark.usefixtures("shared")
def test_others_are_other_processes() -> None:
    assert os.getpid() not in set(LocalEngine(2).map_chunks(find_process, cut(4000, 100)))


@pytest.mark.usefixtures("shared")
@pytest.mark.parametrize("jobs", [1, 2])
def test_an_error_reaches_the_caller(jobs: int) -> None:
    results = LocalEngine(jobs).map_chunks(refuse_large, cut(4000, 300))
    assert list(islice(results, 3)) == [300, 300, 300]
    with pytest.raises(ValueError, match=r"^900 to 1199$"):
        next(results)


@pytest.mark.usefixtures("shared")
def test_a_trusted_worker_that_dies_is_a_fault_of_the_machine() -> None:
    with pytest.raises(EnvironmentFault, match=r"^A worker process was ended from outside, .* fewer run\.jobs"):
        list(LocalEngine(2).map_chunks(leave, cut(4000, 300)))


@pytest.mark.usefixtures("shared")
def test_few_chunks_are_in_flight() -> None:
    """So that memory stays bounded however slowly the results are taken."""
    chunks = Counted(1000)
    results = LocalEngine(2).map_chunks(add_up, chunks)
    assert list(islice(results, 3)) == [45, 145, 245]
    assert chunks.made == AHEAD * 2 + 3
    close(results)


def work_with_others() -> None:
    parallel.PROBES = 0
    if os.getpid() in set(LocalEngine(2).map_chunks(find_process, cut(4000, 100))):
        sys.exit(1)


def test_a_child_process_does_not_wait_for_its_idle_workers() -> None:
    child = multiprocessing.get_context("spawn").Process(target=work_with_others)
    child.start()
    child.join(parallel.IDLE / 2)
    assert child.exitcode == 0


def test_counting_the_items_looks_at_no_more_chunks_than_it_must() -> None:
    chunks = Counted(1_000_000)
    assert not parallel.are_few(chunks)
    assert chunks.made == FEW // 10 + 1


def close(results: Iterator[object]) -> None:
    assert isinstance(results, Generator)
    results.close()


# Work that may crash or hang. The functions stand at the top, so that the workers can import them.


def square(items: Sequence[int]) -> list[int]:
    return [item * item for item in items]


def crash_at_multiples_of_5(items: Sequence[int]) -> list[int]:
    if any(item % 5 == 0 for item in items):
        os.kill(os.getpid(), signal.SIGSEGV)
    return square(items)


def leave_with_255(_: Sequence[int]) -> list[int]:
    os._exit(parallel.UNKNOWN_EXIT)


def leave_at_3(items: Sequence[int]) -> list[int]:
    if 3 in items:
        os._exit(7)
    return square(items)


def hang_at_3(items: Sequence[int]) -> list[int]:
    if 3 in items:
        time.sleep(1000)
    return square(items)


def hang_at_2_and_crash_at_3(items: Sequence[int]) -> list[int]:
    if 2 in items:
        time.sleep(1000)
    return crash_at_multiples_of_5([item + 2 for item in items])


def hang_in_company(items: Sequence[int]) -> list[int]:
    """Slow for several items, as honest work is, and quick for one."""
    if len(items) > 1:
        time.sleep(1000)
    return square(items)


def ask_for_memory(items: Sequence[int]) -> list[int]:
    """Each item is a number of bytes; -1 where they were not granted."""
    granted: list[int] = []
    for item in items:
        try:
            granted.append(np.empty(item, np.uint8).nbytes)
        except MemoryError:
            granted.append(-1)
    return granted


def refuse_3(items: Sequence[int]) -> list[int]:
    if 3 in items:
        raise InputError("params.yaml: 3 is too much")
    return square(items)


def find_disk_full(_: Sequence[int]) -> list[int]:
    raise EnvironmentFault("data/images: cannot be written: No space left on device.")


def leave_at_odd(items: Sequence[int]) -> list[int]:
    if items[0] % 2:
        os._exit(3)
    return list(items)


def tell_and_hang(_: Sequence[int]) -> None:
    print("hanging", flush=True)
    time.sleep(1000)


def contain(
    function: Callable[[Sequence[int]], Result], chunks: Sequence[Sequence[int]], jobs: int, limits: Limits = PLENTY
) -> list[tuple[list[int], Result | Lost]]:
    return [(list(chunk), result) for chunk, result in LocalEngine(jobs).map_contained(function, chunks, limits)]


def test_no_chunks_start_no_process() -> None:
    assert contain(square, [], 2) == []


@pytest.mark.parametrize("jobs", [1, 2])
def test_contained_results_come_in_order(jobs: int) -> None:
    assert contain(square, cut(50, 3), jobs) == [(list(chunk), square(chunk)) for chunk in cut(50, 3)]


def test_chunks_are_asked_for_one_by_one_and_few_are_in_flight() -> None:
    chunks = Counted(1000)
    results = LocalEngine(2).map_contained(square, chunks, PLENTY)
    assert list(islice(results, 3)) == [(range(i, i + 10), square(range(i, i + 10))) for i in (0, 10, 20)]
    assert chunks.made == AHEAD * 2 + 3
    close(results)


def test_chunks_without_number_or_end_are_taken_as_they_are_needed() -> None:
    taken = count()
    results = LocalEngine(2).map_contained(square, (range(number, number + 1) for number in taken), PLENTY)
    assert [result for _, result in islice(results, 20)] == [[number**2] for number in range(20)]
    assert next(taken) <= 20 + AHEAD * 2 + 2
    close(results)


def test_nothing_is_loaded_here() -> None:
    """Since the processes see the same disk."""

    def load(_: int) -> int:
        raise AssertionError("nobody should ask")

    assert list(LocalEngine(1).map_contained(square, [[1, 2]], PLENTY, load)) == [([1, 2], [1, 4])]


def test_contained_work_is_done_by_other_processes() -> None:
    found = {process for _, process in contain(find_process, cut(40, 1), 2)}
    assert os.getpid() not in found
    assert len(found) <= 2


def test_no_more_processes_than_chunks() -> None:
    """A hundred would take long to start, and leave no trace but that."""
    assert len({process for _, process in contain(find_process, cut(8, 4), 100)}) <= 2


@pytest.mark.skipif(os.name == "nt", reason="Windows knows no SIGSEGV to send")
def test_only_what_crashes_is_lost() -> None:
    """A chunk without a crash stays whole."""
    lost = Lost("its process ended with SIGSEGV")
    assert contain(crash_at_multiples_of_5, [range(1, 5), range(5, 9)], 2) == [
        ([1, 2, 3, 4], [1, 4, 9, 16]),
        ([5], lost),
        ([6], [36]),
        ([7], [49]),
        ([8], [64]),
    ]


@pytest.mark.skipif(os.name == "nt", reason="Windows knows no SIGSEGV to send")
def test_several_crashes_in_one_chunk() -> None:
    lost = Lost("its process ended with SIGSEGV")
    assert contain(crash_at_multiples_of_5, [range(11)], 1) == [
        ([number], [number * number] if number % 5 else lost) for number in range(11)
    ]


def test_a_process_that_leaves_is_lost() -> None:
    assert contain(leave_at_3, cut(6, 3), 1) == [
        ([0, 1, 2], [0, 1, 4]),
        ([3], Lost("its process ended with exit code 7")),
        ([4], [16]),
        ([5], [25]),
    ]


def leave_unclearly_at_first(items: Sequence[int], trace: Path) -> list[int]:
    """Ends with 255, which may stand for anything, the first times, and then with 7."""
    if 3 in items:
        with trace.open("a") as file:
            file.write("x")
        os._exit(7 if trace.stat().st_size >= parallel.TRIES else parallel.UNKNOWN_EXIT)
    return square(items)


def test_a_process_that_ended_nobody_knows_how_is_asked_again(tmp_path: Path) -> None:
    work = partial(leave_unclearly_at_first, trace=tmp_path / "trace")
    assert contain(work, [range(3, 4)], 1) == [([3], Lost("its process ended with exit code 7"))]


def test_a_process_that_always_ends_so_is_lost() -> None:
    assert contain(leave_with_255, [range(3, 4)], 1) == [([3], Lost("its process ended with exit code 255"))]


def test_only_what_hangs_is_lost() -> None:
    assert contain(hang_at_3, cut(6, 3), 2, Limits(1.0, 2**30)) == [
        ([0, 1, 2], [0, 1, 4]),
        ([3], Lost("took longer than 1 s and was ended")),
        ([4], [16]),
        ([5], [25]),
    ]


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows knows no SIGSEGV to send")
def test_one_hangs_and_one_crashes_in_one_chunk() -> None:
    assert contain(hang_at_2_and_crash_at_3, [range(5)], 2, Limits(1.5, 2**30)) == [
        ([0], [4]),
        ([1], [9]),
        ([2], Lost("took longer than 1.5 s and was ended")),
        ([3], Lost("its process ended with SIGSEGV")),
        ([4], [36]),
    ]


def test_a_chunk_that_is_only_slow_loses_nothing() -> None:
    assert contain(hang_in_company, [range(4)], 2, Limits(2.0, 2**30)) == [
        ([number], [number * number]) for number in range(4)
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits a process's memory")
def test_memory_above_the_limit_is_refused() -> None:
    asked = [2**20, 2**29, 2**20]
    assert contain(ask_for_memory, [asked], 1, Limits(60.0, 2**28)) == [(asked, [2**20, -1, 2**20])]
    assert contain(ask_for_memory, [asked], 1, Limits(60.0, 2**31)) == [(asked, asked)]


@pytest.mark.parametrize(
    ("function", "kind", "message"),
    [
        (refuse_3, InputError, r"^params\.yaml: 3 is too much$"),
        (find_disk_full, EnvironmentFault, r"^data/images: cannot be written: No space left on device\.$"),
    ],
)
def test_our_own_errors_arrive_as_they_are(function: Contained, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        contain(function, cut(50, 2), 2)


def test_results_can_be_left_lying() -> None:
    results = LocalEngine(1).map_contained(square, cut(1000, 1), PLENTY)
    assert next(results) == (range(1), [0])
    close(results)


@pytest.mark.parametrize(
    ("code", "expected"), [(1, "exit code 1"), (-11, "SIGSEGV"), (-9, "SIGKILL"), (None, "exit code None")]
)
def test_how_a_process_ended(code: int | None, expected: str) -> None:
    assert describe_exit(code) == expected


UNGUARDED = """\
from imagepipe.core.parallel import Limits, LocalEngine
from tests.core.test_parallel import square

print(list(LocalEngine(2).map_contained(square, [[1], [2]], Limits(60.0, 2**30))))
"""


def run_script(folder: Path, root: Path, script: str) -> subprocess.Popen[str]:
    (folder / "script.py").write_text(script, "utf-8")
    return subprocess.Popen(
        [sys.executable, "script.py"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(root), str(root / "src")])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_program_that_workers_cannot_import_is_told_so(tmp_path: Path, root: Path) -> None:
    with run_script(tmp_path, root, UNGUARDED) as program:
        _, stderr = program.communicate()
    assert program.returncode == 1
    assert "EnvironmentFault: The worker processes ended before they had begun. Is memory short, or" in stderr
    assert 'lack `if __name__ == "__main__":`?' in stderr


HANGING = """\
from imagepipe.core.parallel import Limits, LocalEngine
from tests.core.test_parallel import tell_and_hang

if __name__ == "__main__":
    list(LocalEngine(1).map_contained(tell_and_hang, [[1]], Limits(1000.0, 2**30)))
"""


@pytest.mark.slow
def test_a_process_that_hangs_leaves_with_a_parent_that_is_killed(tmp_path: Path, root: Path) -> None:
    with run_script(tmp_path, root, HANGING) as program:
        assert program.stdout
        assert program.stdout.readline() == "hanging\n"
        program.kill()
        program.communicate(timeout=60.0)  # which waits for all that could still write


@pytest.mark.slow
def test_many_quick_crashes_take_no_innocent_with_them() -> None:
    lost = Lost("its process ended with exit code 3")
    assert contain(leave_at_odd, cut(40, 1), 2, Limits(5.0, 2**30)) == [
        ([item], lost if item % 2 else [item]) for item in range(40)
    ]


OTHER_CHECKOUT = """\
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "src"))

from imagepipe.core.parallel import Limits, LocalEngine, start_fork_server
from imagepipe.core import hashes


if __name__ == "__main__":
    start_fork_server()
    ((_, told),) = LocalEngine(1).map_contained(hashes.tell_place, [[1]], Limits(60.0, 2**30))
    print(told)
"""


def test_workers_run_the_code_of_the_checkout_that_starts_them(tmp_path: Path, root: Path) -> None:
    """Not the installed one's, which a queued experiment would get otherwise."""
    shutil.copytree(root / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "src/imagepipe/core/hashes.py").open("a", encoding="utf-8") as file:
        file.write("\n\ndef tell_place(_):\n    return __file__\n")
    (tmp_path / "script.py").write_text(OTHER_CHECKOUT, "utf-8")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "script.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "src/imagepipe/core/hashes.py")


@pytest.mark.skipif(sys.platform != "linux", reason="the fork server is used on Linux")
def test_a_temporary_folder_whose_path_is_too_long_for_sockets_is_named(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    code = "from imagepipe.core.parallel import start_fork_server\nstart_fork_server()"
    command, environment = [sys.executable, "-c", code], os.environ | {"TMPDIR": str(folder)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == (
        f"imagepipe.core.errors.EnvironmentFault: {folder}: takes no socket for the worker processes (AF_UNIX path too "
        "long); set TMPDIR to a folder that can be written to and has a path of fewer than 70 characters."
    )


@pytest.mark.parametrize("before", [None, "elsewhere"])
def test_handing_down_the_source_leaves_the_environment_as_it_was(
    before: str | None, monkeypatch: pytest.MonkeyPatch, root: Path
) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    if before:
        monkeypatch.setenv("PYTHONPATH", before)
    with parallel.hand_down_source():
        assert os.environ["PYTHONPATH"].split(os.pathsep) == [str(root / "src"), *([before] if before else [])]
    assert os.environ.get("PYTHONPATH") == before
