"""Stages in a workspace whose disk is full: path and reason are named, nothing half-written is left, room mends it."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT

NO_ROOM = (
    "error: {}: cannot be written: No space left on device. Make room or change the permissions, then run the stage "
    "again; nothing half-written was left.\n"
)


def run_stage(folder: Path, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "stages" / f"{name}.py"), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


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
    done = run_stage(disk, "fetch", "data/raw")
    assert done.returncode == 3
    assert done.stderr.startswith("error: data/")
    assert "/digits.csv.gz: cannot be written: No space left on device. Make room" in done.stderr
    assert list_files(disk) == before
    grow(disk, "1m")
    assert run_stage(disk, "fetch", "data/raw").returncode == 0
    before = list_files(disk)
    done = run_stage(disk, "split", "data/raw", "data/images", "data/manifests")
    assert (done.returncode, done.stderr) == (3, NO_ROOM.format("data/images"))
    assert list_files(disk) == before
    grow(disk, "100m")
    done = run_stage(disk, "split", "data/raw", "data/images", "data/manifests")
    assert done.returncode == 0, done.stderr
    assert len(list((disk / "data/images").glob("*.png"))) == 1797
