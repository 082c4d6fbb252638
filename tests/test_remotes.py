"""The data for others, by the commands of docs/remotes.md: pushed, pulled, and what is secret stays out of Git."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from imagepipe.core.config import read_yaml
from tests.conftest import ROOT
from tests.pages import find_blocks, split_commands

Run = Callable[..., subprocess.CompletedProcess[str]]
pytestmark = pytest.mark.slow

PAGE = (ROOT / "docs/remotes.md").read_text("utf-8")
NAMED = {f"GIT_{role}_{part}": "test@localhost" for role in ("AUTHOR", "COMMITTER") for part in ("NAME", "EMAIL")}
PLACES = {"S3": "s3://bucket/pets", "Google Cloud": "gs://bucket/pets", "Azure": "azure://container/pets"}


def list_outputs(project: Path) -> set[str]:
    """The outputs in `dvc.lock` that are there and that Git does not have."""
    stages = read_yaml(project / "dvc.lock")[0]["stages"]
    outs = {out["path"] for stage in stages.values() for out in stage["outs"] if not out["path"].endswith(".json")}
    return {path for path in outs if (project / path).exists()}


def test_what_is_pushed_is_pulled_into_a_clone_that_has_nothing_to_do_then(
    project: Path, tmp_path: Path, run_in: Run
) -> None:
    origin = shutil.copytree(project, tmp_path / "origin", symlinks=True)
    assert run_in(origin, "git", "commit", "--allow-empty", "-qam", "it has run", **NAMED).returncode == 0
    publish, pull_model = (split_commands(block) for block in find_blocks(PAGE, "console"))
    for command, _ in publish:
        done = run_in(origin, "sh", "-c", command.replace("/mnt/share/pets", str(tmp_path / "store")), **NAMED)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
    clone = tmp_path / "clone"
    assert run_in(tmp_path, "git", "clone", "-q", str(origin), str(clone)).returncode == 0
    ((command, _),) = pull_model
    assert run_in(clone, "sh", "-c", command).returncode == 0
    assert list_outputs(clone) == {"models/model.safetensors"}
    pulled = run_in(clone, "dvc", "pull")
    assert pulled.returncode == 0, pulled.stderr
    assert list_outputs(clone) == list_outputs(origin)
    assert "Data and pipelines are up to date." in run_in(clone, "dvc", "repro").stdout
    assert run_in(clone, "git", "status", "--porcelain").stdout == ""


def test_what_is_secret_goes_into_a_file_that_git_ignores(
    tmp_path: Path, copy_project: Callable[[Path], Path], run_in: Run
) -> None:
    folder = copy_project(tmp_path)
    local = folder / ".dvc/config.local"
    rows = re.findall(r"^\| (\w[\w ]*\w) \|.*`(dvc remote modify --local store \w+) …`", PAGE, re.MULTILINE)
    assert [name for name, _ in rows] == list(PLACES)
    for name, command in rows:
        added = run_in(folder, "dvc", "remote", "add", "-q", "-f", "store", PLACES[name])
        assert added.returncode == 0, added.stderr
        done = run_in(folder, *command.split(), "hush-hush")
        assert done.returncode == 0, done.stderr
        assert "hush-hush" in local.read_text("utf-8")
        assert run_in(folder, "git", "add", "-A").returncode == 0
        assert run_in(folder, "git", "status", "--porcelain").stdout == "M  .dvc/config\n"
        assert "hush-hush" not in (folder / ".dvc/config").read_text("utf-8")
        local.unlink()  # a remote of another kind would refuse these keys
