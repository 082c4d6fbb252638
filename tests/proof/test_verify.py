import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from dvc.utils.serialize import dump_yaml

from imagepipe.core.config import read_yaml
from imagepipe.core.errors import EnvironmentFault, InputError
from imagepipe.proof.verify import (
    Compared,
    Verdict,
    bring_run_section,
    bring_source,
    compare,
    describe,
    end_with_it,
    is_within,
    judge,
    read_metrics,
    read_stages,
    run_again,
    verify_commit,
)
from tests.conftest import GIT_NAME
from tests.core.made import make_run
from tests.core.test_lifetime import ENDED, PIPELINE, STAGE, read_rest, start, wait_for

METRICS = {"test": {"accuracy": 0.9, "accuracy_low": 0.8, "accuracy_high": 0.95}}


def make_entry(outs: dict[str, str], deps: dict[str, str] | None = None) -> dict[str, Any]:
    kinds = {"outs": outs, "deps": deps or {}}
    return {kind: [{"path": path, "md5": md5} for path, md5 in hashes.items()] for kind, hashes in kinds.items()}


@pytest.mark.parametrize(
    ("stage", "after", "agrees", "verdict"),
    [
        ("split", "a", False, Verdict.SAME),
        ("split", "b", True, Verdict.DIFFERENT),
        ("train", "b", True, Verdict.WITHIN),
        ("train", "b", False, Verdict.DIFFERENT),
        ("evaluate", "b", True, Verdict.WITHIN),
        ("evaluate", None, True, Verdict.ABSENT),
    ],
)
def test_the_verdict_on_an_output(stage: str, after: str | None, agrees: bool, verdict: Verdict) -> None:
    assert judge(stage, "a", after, agrees) == verdict


@pytest.mark.parametrize(("accuracy", "within"), [(0.8, True), (0.95, True), (0.79, False), (0.96, False)])
def test_the_interval_is_that_of_the_first_run(accuracy: float, within: bool) -> None:
    assert is_within(METRICS, {"test": {"accuracy": accuracy}}) == within


@pytest.mark.parametrize(("first", "again"), [({}, METRICS), (METRICS, {})])
def test_without_metrics_nothing_is_within(first: dict[str, Any], again: dict[str, Any]) -> None:
    assert not is_within(first, again)


def test_outputs_are_compared_stage_by_stage_and_changed_inputs_named() -> None:
    before = {
        "split": make_entry({"images": "1", "table": "2"}, {"code": "c"}),
        "train": make_entry({"model": "3"}, {"images": "1", "code": "c"}),
    }
    after = {
        "split": make_entry({"images": "9", "table": "2"}, {"code": "d"}),
        "train": make_entry({"model": "8"}, {"images": "9", "code": "c"}),
    }
    compared = compare(before, after, METRICS, METRICS)
    assert compared == Compared(
        [
            ("split", "images", Verdict.DIFFERENT),
            ("split", "table", Verdict.SAME),
            ("train", "model", Verdict.WITHIN),
        ],
        [("split", "code")],
    )
    assert not compared.is_reproduced
    assert list(describe(compared)) == [
        "split  images: different",
        "split  table: same bytes",
        "train  model: other bytes, accuracy within the interval",
        "split  code: this input had other bytes when dvc.lock was written",
        "verify: 3 outputs: 1 same bytes; 1 other bytes, accuracy within the interval; 1 different",
    ]


def test_a_lock_without_a_stage_is_refused() -> None:
    stage = make_entry({"a": "1"})
    with pytest.raises(InputError, match=r"^dvc\.lock: has no entry for stages of dvc\.yaml \(1\):\n  train\nRun `dvc"):
        compare({"split": stage}, {"split": stage, "train": stage}, {}, {})


def test_a_lock_without_stages_is_refused(tmp_path: Path) -> None:
    (tmp_path / "dvc.lock").write_text("schema: '2.0'\n", "utf-8")
    with pytest.raises(InputError, match=r"^dvc\.lock: has no stages; run `dvc repro` and commit it\.$"):
        read_stages(tmp_path / "dvc.lock")


@pytest.mark.parametrize(
    ("entry", "named"),
    [
        ({"outs": [{"path": "a", "hash": "md5"}]}, "split: outs: a"),
        ({"deps": [{"path": "a", "md5": 7}]}, "split: deps: a"),
        ({"deps": [{"md5": "1"}]}, "split: deps: {'md5': '1'}"),
        ({"outs": ["a"]}, "split: outs: a"),
        ({"outs": "a"}, "split: outs: a"),
        ([], "split"),
    ],
)
def test_a_lock_without_a_hash_is_refused(tmp_path: Path, entry: object, named: str) -> None:
    dump_yaml(tmp_path / "dvc.lock", {"stages": {"fetch": make_entry({"b": "1"}, {"c": "2"}), "split": entry}})
    with pytest.raises(InputError) as raised:
        read_stages(tmp_path / "dvc.lock")
    assert str(raised.value) == (
        f"dvc.lock: has no path or no md5 where it should have both (1):\n  {named}\nRun `dvc repro` and commit it."
    )


def make_params(folder: Path, path: str, **run: Any) -> None:
    folder.mkdir(exist_ok=True)
    values = {"fetch": {"path": path, "classes": "data/classes/pets.csv"}, "run": make_run(**run).model_dump()}
    dump_yaml(folder / "params.yaml", values)


def write_files(folder: Path, **texts: str) -> None:
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, "utf-8")


@pytest.fixture
def bring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """`bring("data/pets", tracked={…}, untracked={…}, cloned={…})`: the clone, once the source is brought there."""

    def prepare(path: str, tracked: dict[str, str], untracked: dict[str, str], cloned: dict[str, str]) -> Path:
        here, clone = tmp_path / "here", tmp_path / "clone"
        for folder in (here, clone):
            make_params(folder, path)
        write_files(here, **tracked)
        make_repository(here)
        write_files(here, **untracked)
        write_files(clone, **cloned)
        monkeypatch.chdir(here)
        bring_source(clone)
        return clone

    return prepare


def read_files(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "params.yaml"]
    return {path.relative_to(folder).as_posix(): path.read_text("utf-8") for path in files}


def test_what_git_does_not_have_is_brought_along(bring: Callable[..., Path]) -> None:
    images = {"data/pets/cat/1.png": "x", "data/classes/pets.csv": "class,as\n"}
    assert read_files(bring("data/pets", {}, {**images, "data/dogs/1.png": "y"}, {})) == images


def test_weights_to_start_from_are_brought_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, clone = tmp_path / "here", tmp_path / "clone"
    params = {"fetch": {"path": "data/source"}, "train": {"pretrained": "models/start.safetensors"}}
    for folder in (here, clone):
        folder.mkdir()
        dump_yaml(folder / "params.yaml", params)
    make_repository(here)
    write_files(here, **{"models/start.safetensors": "w", "models/other.safetensors": "o"})
    monkeypatch.chdir(here)
    bring_source(clone)
    assert read_files(clone) == {"models/start.safetensors": "w"}


def test_an_archive_is_brought_along(bring: Callable[..., Path]) -> None:
    assert read_files(bring("pets.zip", {}, {"pets.zip": "PK"}, {})) == {"pets.zip": "PK"}


def test_what_git_has_in_part_is_filled_up_file_by_file(bring: Callable[..., Path]) -> None:
    """The clone keeps what its commit has, and does not get what Git has here in another commit."""
    tracked = {"data/pets/README.md": "edited since", "data/pets/dog/later.png": "z", "data/classes/pets.csv": "later"}
    clone = bring("data/pets", tracked, {"data/pets/cat/1.png": "x"}, {"data/pets/README.md": "pets"})
    assert read_files(clone) == {"data/pets/README.md": "pets", "data/pets/cat/1.png": "x"}


def test_a_class_without_images_is_brought_along(bring: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "here/data/pets/bird").mkdir(parents=True)
    clone = bring("data/pets", {}, {"data/pets/cat/1.png": "x"}, {})
    assert sorted(path.name for path in (clone / "data/pets").iterdir()) == ["bird", "cat"]


def test_a_folder_where_the_commit_has_a_file_is_not_brought(bring: Callable[..., Path]) -> None:
    assert read_files(bring("pets", {}, {"pets/cat/1.png": "x"}, {"pets": "PK"})) == {"pets": "PK"}


def test_links_are_brought_as_what_they_lead_to(bring: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "here/data/pets").mkdir(parents=True)
    (tmp_path / "here/data/pets/1.png").symlink_to("../../../elsewhere.png")
    (tmp_path / "here/data/pets/2.png").symlink_to("nowhere.png")
    (tmp_path / "here/.gitignore").write_text("data\n")
    (tmp_path / "elsewhere.png").write_text("x")
    clone = bring("data/pets", {}, {}, {})
    assert read_files(clone / "data") == {"pets/1.png": "x"}
    assert (clone / "data/pets/2.png").readlink() == Path("nowhere.png")


@pytest.mark.parametrize("path", [".", "../outside", "{place}/outside"])
def test_nothing_is_brought_from_outside(bring: Callable[..., Path], tmp_path: Path, path: str) -> None:
    """An absolute path is the same in the clone; fetch itself refuses the others."""
    write_files(tmp_path, **{"outside/1.png": "x"})
    assert read_files(bring(path.format(place=tmp_path), {}, {"a": "b"}, {})) == {}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clone", "here", "outside"]


@pytest.mark.parametrize(
    ("fetch", "found"),
    [
        (None, "fetch.path: found nothing"),
        ({}, "fetch.path: found nothing"),
        ({"path": 7}, "fetch.path: found 7"),
        ({"path": "/data", "classes": ["a"]}, "fetch.classes: found ['a']"),
    ],
)
def test_parameters_that_lack_what_fetch_reads_are_refused(tmp_path: Path, fetch: object, found: str) -> None:
    dump_yaml(tmp_path / "params.yaml", {"fetch": fetch})
    with pytest.raises(InputError) as raised:
        bring_source(tmp_path)
    assert str(raised.value) == (
        f"params.yaml of that commit: {found}; expected the path that fetch reads. Verify a commit whose parameters "
        "are complete."
    )


def test_a_commit_from_before_the_choice_of_classes_has_none(tmp_path: Path) -> None:
    dump_yaml(tmp_path / "params.yaml", {"fetch": {"path": "/data"}})
    bring_source(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]


def test_a_source_is_not_brought_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_params(tmp_path, "data/pets")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EnvironmentFault, match=r"^verify: git failed: fatal: not a git repository"):
        bring_source(tmp_path)


@pytest.mark.parametrize(
    ("mirror", "named"),
    [
        ("", ""),
        ("https://example.org/mnist", "https://example.org/mnist"),
        ("../mnist", "{place}/mnist"),
        ("~/mnist", "{place}/home/mnist"),
    ],
)
def test_the_clone_gets_the_run_section_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mirror: str, named: str
) -> None:
    here, clone = tmp_path / "here", tmp_path / "clone"
    make_params(here, "data/pets", jobs=3, mirror=mirror)
    make_params(clone, "data/dogs", jobs=8, cache_dir="/elsewhere")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(here)
    bring_run_section(clone)
    values = read_yaml(clone / "params.yaml")[0]
    assert values["run"] == make_run(jobs=3, mirror=named.format(place=tmp_path)).model_dump()
    assert values["fetch"]["path"] == "data/dogs"


@pytest.mark.parametrize("run", [None, 3])
def test_a_commit_without_a_run_section_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: int | None
) -> None:
    here, clone = tmp_path / "here", tmp_path / "clone"
    make_params(here, "data/pets")
    clone.mkdir()
    dump_yaml(clone / "params.yaml", {"fetch": {"path": "data/pets"}} | ({"run": run} if run else {}))
    monkeypatch.chdir(here)
    with pytest.raises(InputError) as raised:
        bring_run_section(clone)
    assert str(raised.value) == (
        "params.yaml of that commit: section `run` is missing. Verify a commit whose parameters are complete."
    )


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("<<<<<<< HEAD\n{}", "is not JSON (Expecting value: line 1 column 1 (char 0))"),
        ("[]", "has no number test.accuracy"),
        ('{"test": {"accuracy": 1, "accuracy_low": 0.8, "accuracy_high": null}}', "has no number test.accuracy_high"),
    ],
)
def test_metrics_that_are_damaged_are_refused(tmp_path: Path, text: str, found: str) -> None:
    (tmp_path / "metrics.json").write_text(text, "utf-8")
    with pytest.raises(InputError) as raised:
        read_metrics(tmp_path / "metrics.json")
    assert str(raised.value) == (
        f"reports/evaluate/metrics.json: {found}; it is damaged, or holds the marks of a conflict. Run `dvc repro` and "
        "commit it."
    )


def test_metrics_are_read_where_there_are_some(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "metrics.json") == {}
    (tmp_path / "metrics.json").write_text(json.dumps(METRICS), "utf-8")
    assert read_metrics(tmp_path / "metrics.json") == METRICS


def make_repository(folder: Path, **files: str) -> None:
    for name, text in {"dvc.yaml": "stages: {}\n", **files}.items():
        (folder / name).write_text(text, "utf-8")
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "first"]):
        subprocess.run(["git", *GIT_NAME, *command], cwd=folder, check=True)


def test_a_folder_that_is_no_project_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"^verify: run it at the top of the repository, where dvc\.yaml and \.git"):
        verify_commit("HEAD")


@pytest.mark.parametrize("revision", ["nobody", "--version", ""])
def test_an_unknown_revision_is_refused(revision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_repository(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r": no revision of this repository; `git log` and `git tag` name them\.$"):
        verify_commit(revision)


def test_a_commit_without_a_lock_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_repository(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"^HEAD: has no dvc\.lock, with which to compare; run `dvc repro` and commit"):
        verify_commit("HEAD")


def test_a_run_that_fails_is_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    make_repository(tmp_path)
    with pytest.raises(
        EnvironmentFault, match=r"^verify: `dvc cache` failed in the clone; what it said stands above\.$"
    ):
        run_again(tmp_path, tmp_path)
    assert "Not inside a DVC repo" in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX's")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_leaves_neither_the_clone_nor_a_process(tmp_path: Path, name: str) -> None:
    """The pipe is read to its end, which is that of the last process that holds it: DVC, or the stage."""
    project, temporary = tmp_path / "project", tmp_path / "temporary"
    make_params(project, "data/pets")
    (project / ".dvc").mkdir()
    (project / ".dvc/config").touch()
    temporary.mkdir()
    lock = "schema: '2.0'\nstages:\n  busy:\n    cmd: python busy.py out\n"
    make_repository(project, **{"busy.py": STAGE.format(early=""), "dvc.yaml": PIPELINE, "dvc.lock": lock})
    command = [sys.executable, "-c", "from imagepipe.cli import main; main()", "verify"]
    with start(project, *command, TMPDIR=str(temporary)) as process:
        wait_for(process, "busy")
        assert list(temporary.glob("imagepipe-verify-*/project/.*.part"))
        process.send_signal(signal.Signals[name])
        assert process.wait(60) == 128 + signal.Signals[name]
        assert list(temporary.glob("imagepipe-verify-*")) == []
        assert ENDED.format("SIGTERM") in read_rest(process)


STUBBORN = """\
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("busy", flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX's")
def test_what_does_not_end_by_itself_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imagepipe.proof.verify.GRACE", 0.2)
    with subprocess.Popen([sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(KeyboardInterrupt), end_with_it(process):
            raise KeyboardInterrupt
        assert not psutil.pid_exists(process.pid)


@pytest.mark.proof
def test_the_pipeline_proves_itself_and_a_forged_lock_does_not(
    project: Path, tmp_path: Path, run_in: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """The whole command, once with the lock of a run, and once with another hash in it."""
    folder = tmp_path / "project"
    shutil.copytree(project, folder, symlinks=True)
    commit = ["git", *GIT_NAME, "commit", "-qam", "ran"]
    run_in(folder, *commit)
    command = [sys.executable, "-c", "from imagepipe.cli import main; main()", "verify"]
    done = run_in(folder, *command)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == "verify: 27 outputs: 27 same bytes"
    lock = (folder / "dvc.lock").read_text("utf-8")
    (md5,) = {
        out["md5"] for out in read_stages(folder / "dvc.lock")["split"]["outs"] if out["path"] == "data/manifests"
    }
    (folder / "dvc.lock").write_text(lock.replace(md5, f"{'0' * 32}.dir"), "utf-8")
    run_in(folder, *commit)
    forged = run_in(folder, *command)
    assert forged.returncode == 1
    assert "split     data/manifests: different" in forged.stdout.splitlines()
