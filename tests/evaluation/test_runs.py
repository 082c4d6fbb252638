import subprocess
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from imagepipe.core.errors import EnvironmentFault, InputError
from imagepipe.core.files import write_csv
from imagepipe.evaluation.runs import flatten_params, read_run
from tests.evaluation.made import CLASSES, make_table, write_run

Run = Callable[..., subprocess.CompletedProcess[str]]
PARAMS = "train:\n  lr: 0.1\n  cnn:\n    base: 16\nrun:\n  jobs: 3\n"


def test_a_folder_that_holds_predictions_is_a_run(tmp_path: Path) -> None:
    table = make_table([True, False, True])
    run = read_run(write_run(tmp_path / "a", table.iloc[::-1], PARAMS))
    assert run.test["key"].tolist() == ["00000", "00001", "00002"]
    assert run.classes == CLASSES
    assert run.params == {"train.lr": 0.1, "train.cnn.base": 16}
    assert (run.name, run.folder) == (str(tmp_path / "a"), tmp_path / "a")


def test_a_project_folder_is_a_run_and_the_one_here_is_the_workspace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path / "reports" / "evaluate", make_table([True]))
    write_run(tmp_path, make_table([True, False]))
    (tmp_path / "params.yaml").write_text(PARAMS)
    monkeypatch.chdir(tmp_path)
    run = read_run(".")
    assert (run.name, len(run.test)) == ("workspace", 1)
    assert run.params == flatten_params(PARAMS.encode(), Path("params.yaml"))


def test_params_may_be_absent_and_groups_too(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path, make_table([True]).drop(columns="group")))
    assert run.params is None
    assert run.test["group"].tolist() == [""]


def test_an_empty_section_of_params_is_no_leaf_and_a_list_is_one() -> None:
    assert flatten_params(b"train: {}\nsplit:\n  a: [1, 2]\nb: null\n", Path("p")) == {"split.a": [1, 2], "b": None}


def make_headless(table: pd.DataFrame) -> pd.DataFrame:
    return table.drop(columns="pixel_sha256")


def make_doubled(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(key="7")


def make_untested(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(split="val")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (make_headless, r"predictions.csv: not a predictions table \(no pixel_sha256\); run the evaluate stage again"),
        (make_doubled, r"predictions.csv: keys that stand there twice \(1\):\n  7"),
        (make_untested, r"predictions.csv: has no test rows"),
    ],
)
def test_a_table_that_cannot_be_compared_is_refused(
    tmp_path: Path, change: Callable[[pd.DataFrame], pd.DataFrame], message: str
) -> None:
    write_run(tmp_path, change(make_table([True, False])))
    with pytest.raises(InputError, match=message):
        read_run(str(tmp_path))


def test_a_folder_without_predictions_says_what_brings_them(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_run(str(tmp_path))
    assert str(caught.value) == (
        f"{tmp_path}: holds neither reports/evaluate/predictions.csv nor predictions.csv; run `dvc repro` there, or "
        "`dvc checkout` where it ran before."
    )


def test_a_file_is_no_run(tmp_path: Path) -> None:
    name = write_run(tmp_path, make_table([True])) + "/predictions.csv"
    with pytest.raises(InputError, match="is a file; name the folder that holds"):
        read_run(name)


def test_a_revision_needs_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(InputError, match="main: not a folder, and there is no Git repository here"):
        read_run("main")


NAME = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
PIPELINE = """
stages:
  evaluate:
    cmd: mkdir -p reports/evaluate && cp "${table}" reports/evaluate/predictions.csv
    params: [table]
    outs: [reports/evaluate/predictions.csv]
"""


@pytest.fixture
def repository(tmp_path: Path, run_in: Run, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small project, below the root of its Git repository: its last commit has results, the one before has a pipeline
    that has not run, the first has not even that. The experiment `better` has other results."""
    project = tmp_path / "below"
    project.mkdir()
    for command in (
        ["git", "init", "-q", "-b", "main", str(tmp_path)],
        ["dvc", "init", "-q", "--subdir"],
        ["git", "add", "-A"],
        ["git", *NAME, "commit", "-qm", "nothing"],
        ["write"],
        ["git", "add", "-A"],
        ["git", *NAME, "commit", "-qm", "before"],
        ["dvc", "repro", "-q"],
        ["git", "add", "-A"],
        ["git", *NAME, "commit", "-qm", "after"],
        ["dvc", "exp", "run", "-q", "-n", "better", "-S", "table=two.csv"],
        ["git", "checkout", "-q", "."],
    ):
        if command == ["write"]:
            write_csv(project / "one.csv", make_table([True, False, False]))
            write_csv(project / "two.csv", make_table([True, True, True]))
            (project / "dvc.yaml").write_text(PIPELINE)
            (project / "params.yaml").write_text("table: one.csv\n")
            continue
        done = run_in(project, *command, GIT_AUTHOR_NAME="t", GIT_AUTHOR_EMAIL="t@localhost")
        assert done.returncode == 0, done.stderr
    monkeypatch.chdir(project)
    return project


@pytest.mark.slow
def test_revisions_and_experiments_come_out_of_dvcs_cache_or_remote(
    repository: Path, run_in: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, right, table in (("main", 1, "one.csv"), ("better", 3, "two.csv")):
        run = read_run(name)
        assert int((run.test["class"] == run.test["predicted"]).sum()) == right
        assert (run.name, run.params, run.folder) == (name, {"table": table}, None)
    with pytest.raises(InputError, match=r"main~2:reports/evaluate/predictions\.csv: this revision has no such file"):
        read_run("main~2")
    with pytest.raises(
        InputError, match=r"main~1:reports/.*nor in its remote. If the pipeline had run in this revision"
    ):
        read_run("main~1")
    with pytest.raises(InputError, match="nope: neither a folder, nor a Git revision or an experiment"):
        read_run("nope")
    cache = repository / ".dvc" / "cache"
    remote = repository.parent / "remote"
    cache.rename(repository / "away")
    with pytest.raises(InputError, match=r"main:reports/.*neither in DVC's cache here nor in its remote\. "):
        read_run("main")
    (repository / "away").rename(cache)
    for command in (
        ["dvc", "remote", "add", "-q", "-d", "store", str(remote)],
        ["dvc", "push", "-q"],
        ["git", *NAME, "commit", "-qam", "with a remote"],
    ):
        assert run_in(repository, *command).returncode == 0
    cache.rename(repository / "away")
    assert len(read_run("HEAD").test) == 3

    def fail(*_: object) -> bytes:
        raise ConnectionError("no route")

    monkeypatch.setattr("dvc.api.DVCFileSystem.read_bytes", fail)
    with pytest.raises(EnvironmentFault, match=r"main:reports/evaluate/predictions\.csv: DVC cannot read it: no route"):
        read_run("main")
