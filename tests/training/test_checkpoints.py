import io
import math
import os
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from imagepipe.core.hashes import hash_bytes
from imagepipe.training.checkpoints import MONTH, Checkpoints

KEY = {"params": "{lr: 0.1}", "data": "abc", "classes": "[cat, dog]"}
STATE: dict[str, Any] = {
    "seen": 3,
    "rows": [{"loss": 0.1, "lr": 1e-3}],
    "model": {"weight": torch.arange(6).view(2, 3) / 3},
    "none": None,
}


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def open_checkpoints(root: Path, seconds: float = math.inf, **changes: str) -> Checkpoints:
    return Checkpoints(root, KEY | changes, seconds, clock=Clock())


def list_names(checkpoints: Checkpoints) -> list[str]:
    return [path.name for path in checkpoints.list_files()]


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    open_checkpoints(tmp_path).save(7, STATE)
    found = open_checkpoints(tmp_path).load()
    assert found is not None
    assert torch.equal(found.pop("model")["weight"], STATE["model"]["weight"])
    assert found == {name: value for name, value in STATE.items() if name != "model"}


def test_there_is_none_at_first_and_none_after_the_end(tmp_path: Path) -> None:
    checkpoints = open_checkpoints(tmp_path)
    assert checkpoints.load() is None
    checkpoints.save(1, STATE)
    checkpoints.remove()
    assert checkpoints.load() is None
    assert list(tmp_path.iterdir()) == []


def test_the_two_newest_are_kept_and_the_newest_is_taken(tmp_path: Path) -> None:
    checkpoints = open_checkpoints(tmp_path)
    for update in (9, 99, 100, 1000):
        checkpoints.save(update, STATE | {"seen": update})
    assert list_names(checkpoints) == ["000000001000.ckpt", "000000000100.ckpt"]
    found = checkpoints.load()
    assert found is not None
    assert found["seen"] == 1000


def damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    changed = {"cut": data[:-1], "emptied": b"", "flipped": data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]}
    path.write_bytes(changed[how])


@pytest.mark.parametrize("how", ["cut", "emptied", "flipped"])
def test_a_damaged_one_is_named_and_the_one_before_is_taken(tmp_path: Path, how: str) -> None:
    checkpoints = open_checkpoints(tmp_path)
    for update in (1, 2):
        checkpoints.save(update, STATE | {"seen": update})
    newest = checkpoints.list_files()[0]
    damage(newest, how)
    message = rf"^{re.escape(str(newest))}: damaged or cut off \(its hash is another\); it is not used, and the one bef"
    with pytest.warns(UserWarning, match=message):
        found = checkpoints.load()
    assert found is not None
    assert found["seen"] == 1


def test_one_that_cannot_be_read_is_named_and_the_one_before_is_taken(tmp_path: Path) -> None:
    checkpoints = open_checkpoints(tmp_path)
    checkpoints.save(1, STATE | {"seen": 1})
    newest = checkpoints.folder / "000000000002.ckpt"
    newest.mkdir()
    message = (
        rf"^{re.escape(str(newest))}: cannot be read: Is a directory; it is not used, and the one before is tried$"
    )
    with pytest.warns(UserWarning, match=message):
        found = checkpoints.load()
    assert found is not None
    assert found["seen"] == 1


def test_where_both_are_damaged_there_is_none(tmp_path: Path) -> None:
    checkpoints = open_checkpoints(tmp_path)
    for update in (1, 2):
        checkpoints.save(update, STATE)
    for path in checkpoints.list_files():
        damage(path, "cut")
    with pytest.warns(UserWarning, match="damaged") as warned:
        assert checkpoints.load() is None
    assert len(warned) == 2


@pytest.mark.parametrize("name", ["params", "data", "classes"])
def test_another_run_does_not_see_them(tmp_path: Path, name: str) -> None:
    open_checkpoints(tmp_path).save(1, STATE)
    assert open_checkpoints(tmp_path, **{name: "another"}).load() is None
    assert open_checkpoints(tmp_path).load() is not None


def test_one_that_was_put_into_the_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    mine, others = open_checkpoints(tmp_path), open_checkpoints(tmp_path, params="{lr: 0.2}", classes="[cat]")
    others.save(1, STATE)
    mine.save(1, STATE)
    mine.list_files()[0].write_bytes(others.list_files()[0].read_bytes())
    with pytest.warns(UserWarning, match=r"a checkpoint of another run \(other classes, params\); it is not used"):
        assert mine.load() is None


def test_code_in_one_is_not_run(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.mkdir, (str(tmp_path / "ran"),)

    checkpoints = open_checkpoints(tmp_path)
    checkpoints.save(1, STATE)
    buffer = io.BytesIO()
    torch.save({"key": KEY, "state": Hostile()}, buffer)
    data = buffer.getvalue()
    checkpoints.list_files()[0].write_bytes(f"{hash_bytes(data)}\n".encode() + data)
    with pytest.warns(UserWarning, match="it holds code, which reading it would run; it is not used"):
        assert checkpoints.load() is None
    assert not (tmp_path / "ran").exists()


def test_a_run_of_the_same_key_that_ends_meanwhile_harms_nobody(tmp_path: Path) -> None:
    """Its folder goes again and again while this run saves; without another try, one of the writes would fail."""
    mine, others = open_checkpoints(tmp_path), open_checkpoints(tmp_path)
    ended = threading.Event()
    saved = [0]

    def end_again_and_again() -> None:
        """At any moment of a save, but not of the next one, which may be the same one's next try."""
        before = 0
        while not ended.wait(0.001):
            if saved[0] >= before + 2:
                others.remove()
                before = saved[0]

    with ThreadPoolExecutor() as threads:
        ending = threads.submit(end_again_and_again)
        try:
            for update in range(500):
                mine.save(update, STATE)
                saved[0] += 1
        finally:
            ended.set()
    ending.result()
    mine.save(500, STATE)
    assert mine.load() is not None


def test_one_that_goes_while_it_is_looked_for_is_passed_over(tmp_path: Path) -> None:
    checkpoints = open_checkpoints(tmp_path)
    checkpoints.save(1, STATE)
    (checkpoints.folder / "000000000002.ckpt").symlink_to("gone")
    assert checkpoints.load() is not None


def test_one_is_due_when_the_interval_has_passed_since_the_last(tmp_path: Path) -> None:
    clock = Clock()
    checkpoints = Checkpoints(tmp_path, KEY, 60, clock=clock)
    due: list[bool] = []
    for clock.now in (0, 59, 60, 61):
        due.append(checkpoints.is_due())
    assert due == [False, False, True, True]
    checkpoints.save(1, STATE)
    assert not checkpoints.is_due()
    clock.now += 60
    assert checkpoints.is_due()


def test_what_other_runs_left_a_month_ago_is_removed(tmp_path: Path) -> None:
    old, new = (open_checkpoints(tmp_path, data=data) for data in ("old", "new"))
    for checkpoints in (old, new):
        checkpoints.save(1, STATE)
    then = time.time() - MONTH - 10
    os.utime(old.folder, (then, then))
    open_checkpoints(tmp_path).load()
    assert not old.folder.exists()
    assert new.folder.exists()
