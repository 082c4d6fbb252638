import os
import subprocess
import time
from pathlib import Path

import pytest

from imagepipe.core.unfinished import DAY, make_unfinished, name_place, name_unfinished, remove_abandoned
from tests.core.made import name_abandoned


def list_names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_ended_processes_began_is_removed(tmp_path: Path, kind: str) -> None:
    """Name → age in seconds, and whether it stays. Who lives keeps what it has begun, whatever the clock says."""
    here = name_place()
    begun = {
        name_abandoned(): (0, False),
        f".{os.getpid()}@{here}.0123456789abcdef.part": (0, True),
        f".{os.getpid()}@{here}.fedcba9876543210.part": (DAY + 60, True),
        ".1@elsewhere.example.0123456789abcdef.part": (DAY - 60, True),
        ".1@elsewhere.example.fedcba9876543210.part": (DAY + 60, False),
        ".notes.part": (10 * DAY, True),
        "1@elsewhere.example.fedcba9876543210.part": (10 * DAY, True),
    }
    for name, (age, _) in begun.items():
        path = tmp_path / name
        if kind == "folder":
            path.mkdir()
        inside = path / "half" if kind == "folder" else path
        inside.write_bytes(b"1")
        for each in (inside, path):
            os.utime(each, (time.time() - age, time.time() - age))
    remove_abandoned(tmp_path)
    assert list_names(tmp_path) == {name for name, (_, stays) in begun.items() if stays}


def test_a_folder_in_which_somebody_writes_stays(tmp_path: Path) -> None:
    folder = tmp_path / ".1@elsewhere.example.0123456789abcdef.part"
    folder.mkdir()
    (folder / "new").write_bytes(b"1")
    os.utime(folder, (0, 0))
    remove_abandoned(tmp_path)
    assert list_names(tmp_path) == {folder.name}


def test_names_differ_say_who_writes_and_are_short(tmp_path: Path) -> None:
    names = {name_unfinished() for _ in range(100)}
    assert len(names) == 100
    assert all(name.startswith(f".{os.getpid()}@{name_place()}.") for name in names)
    assert max(map(len, names)) < 128


def test_a_new_folder_is_empty_and_alone(tmp_path: Path) -> None:
    (tmp_path / name_abandoned()).mkdir()
    folder = make_unfinished(tmp_path)
    assert list_names(tmp_path) == {folder.name}
    assert list_names(folder) == set()
    deep = make_unfinished(tmp_path / "a" / "b")
    assert list_names(tmp_path / "a" / "b") == {deep.name}


def test_git_and_dvc_see_no_unfinished_file(root: Path) -> None:
    name = name_unfinished()
    done = subprocess.run(["git", "check-ignore", "--no-index", f"data/{name}", f"models/{name}"], cwd=root)
    assert done.returncode == 0
    assert ".*.part" in (root / ".dvcignore").read_text("utf-8").split()
