import errno
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from imagepipe.core.errors import EnvironmentFault
from imagepipe.core.lock import HOLDER, describe_holder, lock_stage

pytestmark = pytest.mark.skipif(os.name == "nt", reason="locks are POSIX's")

HOLD = """\
import sys, time
from pathlib import Path
from imagepipe.core.stage import run_stage

def main() -> None:
    print("holding", flush=True)
    {last}

run_stage(main)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The present folder, with the folder that makes it a DVC project."""
    (tmp_path / ".dvc").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@contextmanager
def hold(folder: Path, name: str = "fetch", last: str = "time.sleep(600)") -> Iterator["subprocess.Popen[str]"]:
    """Another process that runs the stage, and is killed at the end."""
    (folder / f"{name}.py").write_text(HOLD.format(last=last), "utf-8")
    with subprocess.Popen([sys.executable, f"{name}.py"], cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "holding\n"
        try:
            yield process
        finally:
            process.kill()


def test_the_second_run_is_refused_and_told_who_the_first_is(folder: Path) -> None:
    with hold(folder) as first:
        done = subprocess.run([sys.executable, "fetch.py"], cwd=folder, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (3, "")
        assert done.stderr == (
            f"error: fetch: process {first.pid} runs this stage here already; let it finish, or end it (kill "
            f"{first.pid}), and run this again.\n"
        )


def test_another_stage_and_another_folder_are_free(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    with hold(folder):
        with lock_stage("split"):
            pass
        elsewhere = tmp_path_factory.mktemp("elsewhere")
        (elsewhere / ".dvc").mkdir()
        with hold(elsewhere):
            pass


def test_a_run_that_was_killed_holds_nothing(folder: Path) -> None:
    with hold(folder):
        pass
    with lock_stage("fetch"):
        assert (folder / ".dvc/tmp/stage-fetch.lock").read_text() == f"{os.getpid()}\n"
    with lock_stage("fetch"):
        pass


def test_a_process_that_the_killed_one_forked_holds_nothing(folder: Path) -> None:
    last = "import os; child = os.fork(); child and print(child, flush=True); time.sleep(600)"
    with hold(folder, last=last) as first:
        assert first.stdout is not None
        forked = int(first.stdout.readline())
        first.kill()
        first.wait()
        os.kill(forked, 0)  # is there
        with lock_stage("fetch"):
            os.kill(forked, 9)


def test_who_has_not_yet_said_who_it_is_is_refused_to_as_well(folder: Path) -> None:
    with hold(folder), (folder / ".dvc/tmp/stage-fetch.lock").open("w"):
        with pytest.raises(EnvironmentFault) as caught, lock_stage("fetch"):
            pass
        assert str(caught.value) == describe_holder("fetch", "")
    assert describe_holder("fetch", "") == (
        "fetch: another process runs this stage here already; let it finish, or end it, and run this again."
    )


def test_of_processes_that_train_together_the_first_alone_takes_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hold(folder, "train"):
        monkeypatch.setenv("RANK", "1")
        with lock_stage("train"):
            pass
        monkeypatch.setenv("RANK", "0")
        with pytest.raises(EnvironmentFault, match="runs this stage here already"), lock_stage("train"):
            pass
        monkeypatch.setenv(HOLDER, "1")  # `launch` holds it
        with lock_stage("train"):
            pass


def test_who_holds_it_says_so_to_the_processes_that_it_starts(folder: Path) -> None:
    with lock_stage("train"):
        assert os.environ[HOLDER] == str(os.getpid())
    assert HOLDER not in os.environ


def test_where_there_is_no_dvc_project_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with lock_stage("fetch"):
        assert list(tmp_path.iterdir()) == []


def test_a_lock_that_cannot_be_written_is_named(folder: Path) -> None:
    (folder / ".dvc/tmp").write_text("a file")
    with (
        pytest.raises(EnvironmentFault, match=r"^\.dvc/tmp/stage-fetch\.lock: cannot be written: "),
        lock_stage("fetch"),
    ):
        pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_without_locks_a_stage_runs_with_a_warning(folder: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    refuse_locks(monkeypatch, number)
    said = (
        f".dvc/tmp/stage-fetch.lock: this file system has no locks ({os.strerror(number)}): a second run of this stage "
        "at the same time is not refused; see to it that there is none, or put the project on another disk"
    )
    with pytest.warns(UserWarning, match=f"^{re.escape(said)}$"), lock_stage("fetch"):
        assert os.environ[HOLDER] == str(os.getpid())  # so that processes that train do not say it, too


def test_another_error_of_the_lock_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_locks(monkeypatch, errno.EIO)
    message = r"^\.dvc/tmp/stage-fetch\.lock: cannot be written: Input/output error\."
    with pytest.raises(EnvironmentFault, match=message), lock_stage("fetch"):
        pass


def refuse_locks(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Let the system answer every wish for a lock with this error."""

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.lockf", refuse)


def test_git_does_not_see_it(root: Path) -> None:
    done = subprocess.run(["git", "check-ignore", "--no-index", "-q", ".dvc/tmp/stage-fetch.lock"], cwd=root)
    assert done.returncode == 0
