"""With real processes: stages that sleep, killed or told to end; a DVC that is killed."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from imagepipe.core.lifetime import is_orphan
from tests.conftest import ROOT

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals and parents are POSIX's")

STAGE = """\
import sys, time
from imagepipe.core.lifetime import guard_stage
if __name__ == "__main__":
    guard_stage()
{early}
from pathlib import Path
from imagepipe.core.files import replace_directory, write_blocks
from imagepipe.core.stage import run_stage

def make_blocks():
    yield b"half"
    print("busy", flush=True)
    for _ in range(6000):
        time.sleep(0.1)  # a signal that comes just before a sleep is answered after it

def main(out_dir: Path) -> None:
    with replace_directory(out_dir) as staging:
        write_blocks(staging / "file", make_blocks())

if __name__ == "__main__":
    run_stage(main)
"""
PIPELINE = """\
stages:
  busy:
    cmd: python busy.py out
    outs: [out]
"""
ENDED = "error: ended by {}; nothing half-written is left. Run it again.\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "busy.py").write_text(STAGE.format(early=""), "utf-8")
    return tmp_path


@contextmanager
def start(folder: Path, *command: str, **variables: str) -> Iterator["subprocess.Popen[str]"]:
    """The command, both of whose outputs are one pipe; it and what it started are killed at the end."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"PATH": path, "DVC_NO_ANALYTICS": "1", "PYTHONPATH": str(ROOT / "src")} | variables
    with subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def wait_for(process: "subprocess.Popen[str]", line: str) -> None:
    """Read what the process prints up to a line."""
    assert process.stdout is not None
    read: list[str] = []
    while not read or read[-1] != f"{line}\n":
        read.append(process.stdout.readline())
        assert read[-1], "".join(read)


def read_rest(process: "subprocess.Popen[str]") -> str:
    """What is printed until the last process that holds the pipe has ended.

    Not by `communicate`, which with a time-out passes over what `readline` has taken from the pipe already.
    """
    assert process.stdout is not None
    limit = threading.Timer(60, os.killpg, (process.pid, signal.SIGKILL))
    limit.start()
    try:
        return process.stdout.read()
    finally:
        limit.cancel()
        process.wait()


def list_names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_signal_ends_a_stage_in_good_order(folder: Path, name: str) -> None:
    number = signal.Signals[name]
    with start(folder, sys.executable, "busy.py", "out") as process:
        wait_for(process, "busy")
        assert len(list_names(folder)) == 2
        process.send_signal(number)
        assert read_rest(process) == ENDED.format(name)
    assert process.returncode == 128 + number
    assert list_names(folder) == {"busy.py"}


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_so_it_does_while_it_imports(folder: Path, name: str) -> None:
    number = signal.Signals[name]
    early = "print('importing', flush=True); time.sleep(600)"
    (folder / "busy.py").write_text(STAGE.format(early=early), "utf-8")
    with start(folder, sys.executable, "busy.py", "out") as process:
        wait_for(process, "importing")
        process.send_signal(number)
        assert read_rest(process) == ENDED.format(name)
    assert process.returncode == 128 + number


def test_further_signals_do_not_cut_short_what_is_cleaned_up(folder: Path) -> None:
    with start(folder, sys.executable, "busy.py", "out") as process:
        wait_for(process, "busy")
        for _ in range(50):
            process.send_signal(signal.SIGTERM)
            process.send_signal(signal.SIGINT)
        assert read_rest(process).count("\n") == 1
    assert list_names(folder) == {"busy.py"}


INTERRUPTED = """\
import signal, sys
from imagepipe.core.lifetime import answer_signals

left = int(sys.argv[1])

def interrupt(frame, event, argument):
    global left
    if frame.f_code.co_name == "end":
        left -= 1
        if left == 0:
            signal.raise_signal(signal.SIGINT)
    return interrupt

answer_signals()
sys.settrace(interrupt)
signal.raise_signal(signal.SIGTERM)
"""


@pytest.mark.parametrize("line", range(1, 11))
def test_of_two_signals_one_ends_a_stage_wherever_in_its_answer_the_other_comes(tmp_path: Path, line: int) -> None:
    (tmp_path / "interrupted.py").write_text(INTERRUPTED, "utf-8")
    with start(tmp_path, sys.executable, "interrupted.py", str(line)) as process:
        name = "SIGINT" if line <= 3 else "SIGTERM"  # the one that is first to take the lock
        assert read_rest(process) == ENDED.format(name)
    assert process.returncode == 128 + signal.Signals[name]


DEAF = """\
import sys, time
from imagepipe.core import lifetime
lifetime.PATIENCE = 0.5
lifetime.guard_stage()

class Deaf:
    def __del__(self):
        print("busy", flush=True)
        for _ in range(600):
            time.sleep(0.1)

try:
    del [Deaf()][0]
    print("works on", flush=True)
    for _ in range(600):
        time.sleep(0.1)
finally:
    print("leaves", flush=True)
    time.sleep(1.5)
    print("left", flush=True)
"""


def test_an_exit_that_python_has_lost_is_repeated_by_the_next_signal(tmp_path: Path) -> None:
    """It comes while an object is deleted; what the second one interrupts is not cut short by a third."""
    (tmp_path / "deaf.py").write_text(DEAF, "utf-8")
    with start(tmp_path, sys.executable, "deaf.py") as process:
        wait_for(process, "busy")
        process.send_signal(signal.SIGTERM)
        wait_for(process, "works on")
        time.sleep(0.6)
        process.send_signal(signal.SIGTERM)
        wait_for(process, "leaves")
        time.sleep(0.6)
        process.send_signal(signal.SIGTERM)
        assert read_rest(process) == "left\n"
    assert process.returncode == 128 + signal.SIGTERM


def kill_parent(folder: Path, code: str, word: str) -> str:
    """What a stage prints after `word`, at which the shell that has started it is killed."""
    (folder / "stage.py").write_text(code, "utf-8")
    with start(folder, "sh", "-c", f"{sys.executable} stage.py & wait", DVC_STAGE="stage") as process:
        wait_for(process, word)
        process.kill()
        return read_rest(process)


def test_the_end_of_the_parent_is_answered_even_where_python_loses_the_exit(tmp_path: Path) -> None:
    """The shell ends while the stage deletes an object."""
    printed = kill_parent(tmp_path, DEAF, "busy")
    assert ENDED.format("SIGTERM") in printed
    assert printed.endswith("works on\nleaves\nleft\n")


def test_a_signal_in_the_interpreters_own_end_makes_no_noise(folder: Path) -> None:
    late = "import atexit, signal; atexit.register(lambda: signal.raise_signal(signal.SIGTERM)); sys.exit(5)"
    text = STAGE.format(early="").replace("with replace_directory", f"{late}\n    with replace_directory")
    (folder / "busy.py").write_text(text, "utf-8")
    with start(folder, sys.executable, "busy.py", "out") as process:
        assert read_rest(process) == ""
    assert process.returncode == -signal.SIGTERM


def test_the_hang_up_that_nohup_ignores_stays_ignored(folder: Path) -> None:
    with start(folder, "nohup", sys.executable, "busy.py", "out") as process:
        wait_for(process, "busy")
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)
        assert read_rest(process) == ENDED.format("SIGTERM")


def test_a_forked_process_answers_as_all_do(tmp_path: Path) -> None:
    script = (
        "import os, signal\n"
        "from imagepipe.core.lifetime import guard_stage\n"
        "guard_stage()\n"
        "if not os.fork():\n"
        "    print(signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, flush=True)\n"
        "    signal.raise_signal(signal.SIGTERM)\n"
        "print(os.waitstatus_to_exitcode(os.wait()[1]))\n"
    )
    with start(tmp_path, sys.executable, "-c", script) as process:
        assert read_rest(process) == f"True\n{-signal.SIGTERM}\n"


def make_project(folder: Path) -> None:
    """A DVC project of one stage."""
    (folder / "dvc.yaml").write_text(PIPELINE, "utf-8")
    with start(folder, "dvc", "init", "--no-scm", "-q") as process:
        assert read_rest(process) == ""


def write_waiting_shell(folder: Path) -> Path:
    """A shell that waits for the command that it is given, as fish does."""
    path = folder / "patient"
    path.write_text('#!/bin/sh\neval "$2"\nexit $?\n', "utf-8")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("shell", ["/bin/sh", "bash", "zsh", "fish", "patient"])
def test_a_stage_ends_when_dvc_is_killed(folder: Path, shell: str) -> None:
    """The pipe is read to its end, which is that of the last process that holds it. What runs is left as it is said."""
    path = str(write_waiting_shell(folder)) if shell == "patient" else shutil.which(shell)
    if path is None:
        pytest.skip(f"needs {shell}")
    make_project(folder)
    with start(folder, "dvc", "repro", SHELL=path) as process:
        wait_for(process, "busy")
        process.kill()
        assert read_rest(process) == ENDED.format("SIGTERM")
    assert not (folder / "out").exists()
    assert not list(folder.glob(".*.part"))


@pytest.mark.parametrize(("starter", "watches"), [("DVC_STAGE", 1), ("TORCHELASTIC_RUN_ID", 1), ("NOBODY", 0)])
def test_only_dvc_and_torchrun_are_followed_into_their_end(tmp_path: Path, starter: str, watches: int) -> None:
    """What a person started by hand may outlive the shell."""
    script = (
        "import threading; from imagepipe.core.lifetime import guard_stage\n"
        "guard_stage(); print(threading.active_count() - 1)"
    )
    with start(tmp_path, sys.executable, "-c", script, **{starter: "busy"}) as process:
        assert read_rest(process) == f"{watches}\n"


LATE = """\
import os, sys, time
starter = os.getppid()
print("began", flush=True)
while os.getppid() == starter:
    time.sleep(0.01)
if os.getppid() != 1 or os.getsid(1) == os.getsid(0):
    sys.exit("another process than the first takes orphans here")
from imagepipe.core.lifetime import guard_stage
guard_stage()
time.sleep(60)
"""


def test_a_stage_whose_dvc_ended_before_it_could_look_ends_at_once(tmp_path: Path) -> None:
    printed = kill_parent(tmp_path, LATE, "began")
    if printed.startswith("another process"):
        pytest.skip(printed)
    assert printed == ENDED.format("SIGTERM")


def test_process_1_that_started_a_stage_itself_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As DVC does that is the first process of a container: its children are of its session."""
    sessions = {0: 7, 1: 1}
    monkeypatch.setattr(os, "getsid", sessions.__getitem__)
    assert is_orphan(1)
    assert not is_orphan(2)
    sessions[0] = 1
    assert not is_orphan(1)


WORKERS = """\
import os, sys, time
from imagepipe.core import parallel

def tell_and_hang(chunk):
    print("hanging", os.getpid(), flush=True)
    time.sleep(600)

if __name__ == "__main__":
    engine = parallel.LocalEngine(2)
    list(engine._share(tell_and_hang, iter([[1]])))
"""


def test_processes_for_trusted_work_leave_with_a_stage_that_is_killed(tmp_path: Path) -> None:
    (tmp_path / "share.py").write_text(WORKERS, "utf-8")
    with start(tmp_path, sys.executable, "share.py") as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("hanging ")
        process.kill()
        assert "hanging" not in read_rest(process)  # which ends with the worker, that holds the pipe, too
