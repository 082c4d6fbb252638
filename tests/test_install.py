"""The environment: made once, redone when what decides it has changed or it is half-made."""

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

PROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "nothing"
version = "1"

[tool.setuptools]
packages = []
"""


def install(folder: Path) -> subprocess.CompletedProcess[str]:
    """Without an index, so that whatever is to be installed is not there."""
    command = [sys.executable, ".ci/install.py"]
    environment = os.environ | {"PIP_NO_INDEX": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_inside_and_outside_of_it_the_same_environment_is_wanted() -> None:
    """Whatever the interpreter is called: `make` finds another one once there is a .venv."""
    base = Path(sys._base_executable)  # pyright: ignore[reportAttributeAccessIssue]
    names = [sys.executable, *(base.with_name(name) for name in ("python", "python3", base.name))]
    found = {
        subprocess.run(
            [name, "-c", "import runpy; print(runpy.run_path('.ci/install.py')['fingerprint'](['constraints.txt']))"],
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for name in names
        if Path(name).exists()
    }
    assert len(found) == 1


@pytest.mark.slow
def test_what_is_there_is_kept_and_what_is_half_made_or_outdated_is_redone(tmp_path: Path) -> None:
    (tmp_path / ".ci").mkdir()
    shutil.copyfile(ROOT / ".ci/install.py", tmp_path / ".ci/install.py")
    (tmp_path / "pyproject.toml").write_text(PROJECT)
    (tmp_path / "constraints.txt").write_text("")
    failed = install(tmp_path)
    assert failed.stderr.splitlines()[-1] == (
        "installing failed (exit 1); run the same command again once the cause is mended"
    )
    stamp = tmp_path / ".venv/installed-run"
    assert not stamp.exists()
    (tmp_path / ".venv/mine").touch()
    stamp.write_text(runpy.run_path(str(tmp_path / ".ci/install.py"))["fingerprint"](["constraints.txt"]))
    done = install(tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / ".venv/mine").exists()
    (tmp_path / "constraints.txt").write_text("numpy==1.0\n")
    assert install(tmp_path).stdout == "installing into .venv (about two minutes, several GB: PyTorch is large)\n"
    assert not (tmp_path / ".venv/mine").exists()
    assert not stamp.exists()
