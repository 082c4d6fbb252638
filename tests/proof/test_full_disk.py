"""Stages in a workspace whose disk is full: path and reason are named, nothing half-written is left, room mends it."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.stages import command_of

NO_ROOM = (
    r"error: {}: cannot be written: No space left on device \(at least [\d,]+ bytes are needed, [\d,]+ are free\)\. "
    r"Make room or change the permissions, then run the stage again; nothing half-written was left\.\n"
)


def run_stage(folder: Path, name: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command_of(name), cwd=folder, capture_output=True, text=True)


def list_files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def grow(disk: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", disk], check=True)


@pytest.mark.slow
def test_fetch_and_split_name_what_they_cannot_write(mount_disk: Callable[[str], Path]) -> None:
    disk = mount_disk("size=64k")
    shutil.copy(ROOT / "params.yaml", disk)
    (disk / "data/classes").mkdir(parents=True)
    shutil.copy(ROOT / "data/classes/all.csv", disk / "data/classes")
    before = list_files(disk)
    done = run_stage(disk, "fetch")
    assert done.returncode == 3
    assert re.fullmatch(NO_ROOM.format(r"data/\S+/digits\.csv\.gz"), done.stderr)
    assert list_files(disk) == before
    grow(disk, "1m")
    assert run_stage(disk, "fetch").returncode == 0
    before = list_files(disk)
    done = run_stage(disk, "split")
    assert done.returncode == 3
    assert re.fullmatch(NO_ROOM.format("data/images"), done.stderr)
    assert list_files(disk) == before
    grow(disk, "100m")
    done = run_stage(disk, "split")
    assert done.returncode == 0, done.stderr
    assert len(list((disk / "data/images").glob("*.png"))) == 1797
