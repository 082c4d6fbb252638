import os
from collections.abc import Sequence

import pytest

from imagepipe.core.parallel import CHUNK, FEW, map_chunks


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
