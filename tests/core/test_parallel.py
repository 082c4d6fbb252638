import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from imagepipe.core.errors import EnvironmentFault, InputError
from imagepipe.core.parallel import CHUNK, FEW, Limits, Lost, describe_exit, map_chunks, map_contained

PLENTY = Limits(seconds=60.0, memory=2**30)
Contained = Callable[[Sequence[int]], list[int]]


def find_process(_: Sequence[int]) -> int:
    return os.getpid()


def refuse_large(items: Sequence[int]) -> int:
    if items[-1] >= CHUNK:
        raise ValueError(f"{items[0]} to {items[-1]}")
    return len(items)


def test_no_items_give_no_results() -> None:
    assert list(map_chunks(sum, [], 2)) == []


def test_chunks_come_in_order_and_the_last_is_what_is_left() -> None:
    assert list(map_chunks(list, range(2 * CHUNK + 1), 1)) == [
        list(range(CHUNK)),
        list(range(CHUNK, 2 * CHUNK)),
        [2 * CHUNK],
    ]


def test_few_items_stay_in_this_process() -> None:
    assert set(map_chunks(find_process, range(FEW), 2)) == {os.getpid()}


def test_many_items_go_to_other_processes() -> None:
    assert os.getpid() not in set(map_chunks(find_process, range(FEW + 1), 2))


def test_one_job_stays_in_this_process() -> None:
    assert set(map_chunks(find_process, range(FEW + 1), 1)) == {os.getpid()}


def test_processes_change_no_result() -> None:
    items = range(FEW + 500)
    assert list(map_chunks(sum, items, 2)) == list(map_chunks(sum, items, 1))


def test_an_error_reaches_the_caller() -> None:
    results = map_chunks(refuse_large, range(CHUNK + 2), 1)
    with pytest.raises(ValueError, match="1000 to 1001"):
        list(results)


# Work that may crash or hang. The functions stand at the top, so that the workers can import them.


def square(items: Sequence[int]) -> list[int]:
    return [item * item for item in items]


def name_process(items: Sequence[int]) -> list[int]:
    return [os.getpid() for _ in items]


def crash_at_multiples_of_5(items: Sequence[int]) -> list[int]:
    if any(item % 5 == 0 for item in items):
        os.kill(os.getpid(), signal.SIGSEGV)
    return square(items)


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


def cut(count: int, size: int) -> list[range]:
    return [range(first, min(first + size, count)) for first in range(0, count, size)]


def test_no_chunks_start_no_process() -> None:
    assert list(map_contained(square, [], 2, PLENTY)) == []


@pytest.mark.parametrize("jobs", [1, 2])
def test_contained_results_come_in_order(jobs: int) -> None:
    assert list(map_contained(square, cut(50, 3), jobs, PLENTY)) == [number * number for number in range(50)]


def test_contained_work_is_done_by_other_processes() -> None:
    found = set(map_contained(name_process, cut(40, 1), 2, PLENTY))
    assert os.getpid() not in found
    assert len(found) <= 2


def test_no_more_processes_than_chunks() -> None:
    """A hundred would take long to start, and leave no trace but that."""
    assert len(set(map_contained(name_process, cut(8, 4), 100, PLENTY))) <= 2


@pytest.mark.skipif(os.name == "nt", reason="Windows knows no SIGSEGV to send")
def test_only_what_crashes_is_lost() -> None:
    results = list(map_contained(crash_at_multiples_of_5, cut(12, 6), 2, PLENTY))
    lost = Lost("its process ended with SIGSEGV")
    assert results == [lost, 1, 4, 9, 16, lost, 36, 49, 64, 81, lost, 121]


@pytest.mark.skipif(os.name == "nt", reason="Windows knows no SIGSEGV to send")
def test_several_crashes_in_one_chunk() -> None:
    results = list(map_contained(crash_at_multiples_of_5, [range(11)], 1, PLENTY))
    lost = Lost("its process ended with SIGSEGV")
    assert results == [lost if number % 5 == 0 else number * number for number in range(11)]


def test_a_process_that_leaves_is_lost() -> None:
    results = list(map_contained(leave_at_3, cut(6, 3), 1, PLENTY))
    assert results == [0, 1, 4, Lost("its process ended with exit code 7"), 16, 25]


def test_only_what_hangs_is_lost() -> None:
    results = list(map_contained(hang_at_3, cut(6, 3), 2, Limits(1.0, 2**30)))
    assert results == [0, 1, 4, Lost("took longer than 1 s and was ended"), 16, 25]


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows knows no SIGSEGV to send")
def test_one_hangs_and_one_crashes_in_one_chunk() -> None:
    results = list(map_contained(hang_at_2_and_crash_at_3, [range(5)], 2, Limits(1.5, 2**30)))
    hung, crashed = Lost("took longer than 1.5 s and was ended"), Lost("its process ended with SIGSEGV")
    assert results == [4, 9, hung, crashed, 36]


def test_a_chunk_that_is_only_slow_loses_nothing() -> None:
    assert list(map_contained(hang_in_company, [range(6)], 2, Limits(2.0, 2**30))) == [0, 1, 4, 9, 16, 25]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits a process's memory")
def test_memory_above_the_limit_is_refused() -> None:
    asked = [2**20, 2**29, 2**20]
    assert list(map_contained(ask_for_memory, [asked], 1, Limits(60.0, 2**28))) == [2**20, -1, 2**20]
    assert list(map_contained(ask_for_memory, [asked], 1, Limits(60.0, 2**31))) == asked


@pytest.mark.parametrize(
    ("function", "kind", "message"),
    [
        (refuse_3, InputError, r"^params\.yaml: 3 is too much$"),
        (find_disk_full, EnvironmentFault, r"^data/images: cannot be written: No space left on device\.$"),
    ],
)
def test_our_own_errors_arrive_as_they_are(function: Contained, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        list(map_contained(function, cut(50, 2), 2, PLENTY))


def test_results_can_be_left_lying() -> None:
    results = map_contained(square, cut(1000, 1), 1, PLENTY)
    assert next(results) == 0
    results.close()  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("code", "expected"), [(1, "exit code 1"), (-11, "SIGSEGV"), (-9, "SIGKILL"), (None, "exit code None")]
)
def test_how_a_process_ended(code: int | None, expected: str) -> None:
    assert describe_exit(code) == expected


UNGUARDED = """\
from imagepipe.core.parallel import Limits, map_contained
from tests.core.test_parallel import square

print(list(map_contained(square, [[1], [2]], 2, Limits(60.0, 2**30))))
"""


def test_a_program_that_workers_cannot_import_is_told_so(tmp_path: Path, root: Path) -> None:
    (tmp_path / "unguarded.py").write_text(UNGUARDED, "utf-8")
    done = subprocess.run(
        [sys.executable, "unguarded.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(root), str(root / "src")])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "EnvironmentFault: The worker processes ended before they had begun. Is memory short, or" in done.stderr
    assert 'lack `if __name__ == "__main__":`?' in done.stderr


def leave_at_odd(items: Sequence[int]) -> list[int]:
    if items[0] % 2:
        os._exit(3)
    return list(items)


@pytest.mark.slow
def test_many_quick_crashes_take_no_innocent_with_them() -> None:
    results = list(map_contained(leave_at_odd, cut(40, 1), 2, Limits(5.0, 2**30)))
    assert results == [Lost("its process ended with exit code 3") if item % 2 else item for item in range(40)]
