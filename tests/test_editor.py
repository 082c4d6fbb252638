"""What editors are told: a container in which everything runs, and where DVC, Python and ruff are."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

CONTAINER = ".devcontainer/devcontainer.json"
FILES = (CONTAINER, ".vscode/settings.json", ".vscode/extensions.json")
# Of the properties in the schema of the Development Container Specification, those that are used here.
PROPERTIES = {"name", "image", "postCreateCommand", "remoteEnv", "customizations"}


def read(root: Path, name: str) -> dict[str, Any]:
    return json.loads((root / name).read_text("utf-8"))


@pytest.mark.parametrize("name", FILES)
def test_the_files_are_plain_json_that_git_has(name: str, root: Path) -> None:
    assert read(root, name)
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", name]
    assert subprocess.run(listed, cwd=root, capture_output=True, text=True, check=True).stdout.split() == [name]


def test_the_container_is_a_python_that_the_project_runs_under_and_installs_itself(root: Path) -> None:
    container = read(root, CONTAINER)
    assert set(container) == PROPERTIES
    version = re.fullmatch(r"python:3\.(\d+)-bookworm", container["image"])  # and no host before it
    wanted = re.search(r'requires-python = ">=3\.(\d+)"', (root / "pyproject.toml").read_text("utf-8"))
    assert version is not None
    assert wanted is not None
    assert int(version[1]) >= int(wanted[1])
    python, script, option = container["postCreateCommand"].split()
    assert (python, option) == ("python3", "--dev")
    assert (root / script).is_file()
    assert container["remoteEnv"]["PATH"].startswith("${containerWorkspaceFolder}/.venv/bin:")


def test_both_ways_recommend_the_same_extensions(root: Path) -> None:
    recommended = read(root, ".vscode/extensions.json")["recommendations"]
    assert read(root, CONTAINER)["customizations"]["vscode"]["extensions"] == recommended
    assert {"iterative.dvc", "charliermarsh.ruff", "ms-python.python"} <= set(recommended)


def test_the_editor_takes_the_environment_that_make_builds(root: Path) -> None:
    settings = read(root, ".vscode/settings.json")
    assert (settings["dvc.dvcPath"], settings["dvc.pythonPath"]) == (".venv/bin/dvc", ".venv/bin/python")
    assert settings["python.defaultInterpreterPath"] == "${workspaceFolder}/.venv/bin/python"
    assert "BIN := .venv/bin" in (root / "Makefile").read_text("utf-8")
    assert all((Path(sys.executable).parent / name).is_file() for name in ("dvc", "python", "ruff"))
