"""Faults on purpose: a stage under strace, which kills it at a certain system call, or lets that call fail."""

import os
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from tests.forked import Forking
from tests.stages import command_of

# What changes a disk. Opening a file anew does, too, and is followed by a write.
CHANGING = ("write", "sendfile", "copy_file_range", "rename", "fsync", "mkdir", "unlink", "unlinkat", "rmdir", "chmod")
CALL = re.compile(r"(?P<name>\w+)\((?P<rest>.*)")
PLACE = re.compile(r'<(?P<open>[^>]*)>|"(?P<named>[^"]*)"')


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens at the `number`th call of this name: `error`, or, where that is '', the end by SIGKILL."""

    call: str
    number: int
    error: str = ""

    def __str__(self) -> str:
        return f"{self.error or 'SIGKILL'} at {self.call} {self.number}"

    def describe(self) -> str:
        """As strace takes it."""
        what = f"error={self.error}" if self.error else "signal=KILL"
        return f"inject={self.call}:{what}:when={self.number}"


@dataclass(frozen=True, slots=True)
class Done:
    """How a run ended: its exit code, negative where a signal ended it, what it printed, and what strace noted."""

    code: int
    printed: str
    trace: list[str]


class Runner:
    """Runs stages in a scratch folder, in which `project` is the workspace and `cache` the cache root."""

    def __init__(self, scratch: Path, programs: ExitStack) -> None:
        self.running = programs
        self.programs: dict[str, Forking] = {}
        self.scratch = scratch
        self.project, self.cache = scratch / "project", scratch / "cache"
        self.aside = scratch.with_name(f"{scratch.name}-aside")
        self.aside.mkdir()

    def run(self, stage: str, traced: bool = False, fault: Fault | None = None) -> Done:
        """Run a stage; `traced`, it notes what changes a disk."""
        printed, trace = self.aside / "printed", self.aside / "trace"
        for path in (printed, trace):
            path.write_bytes(b"")
        python = self.open_program(stage)
        process = python.begin(self.project, command_of(stage)[1:], printed, printed, IMAGEPIPE_CACHE=str(self.cache))
        with trace_process(process, trace, fault) if traced else nullcontext():
            os.kill(process, signal.SIGCONT)
            code = python.end()
        return Done(code, printed.read_text("utf-8"), trace.read_text("utf-8", "replace").splitlines())

    def open_program(self, stage: str) -> Forking:
        """The program that runs a stage, and has imported what that stage needs and nothing else."""
        if stage not in self.programs:
            # Threads that wait for work would take the core from the other of a traced pair.
            forking = Forking(PYTHONDONTWRITEBYTECODE="1", OMP_NUM_THREADS="1")
            self.programs[stage] = self.running.enter_context(forking)
        return self.programs[stage]

    def list_calls(self, trace: list[str]) -> list[tuple[str, int, str]]:
        """Name, number and first path of each call that changes something in the scratch folder."""
        counts: Counter[str] = Counter()
        found: list[tuple[str, int, str]] = []
        for call in filter(None, map(CALL.match, trace)):
            counts[call["name"]] += 1
            if path := self.find_path(call["rest"]):
                found.append((call["name"], counts[call["name"]], path))
        return found

    def find_path(self, rest: str) -> str:
        """A call's first path where it is in the scratch folder, else ''; the workspace is the present folder there."""
        place = PLACE.search(rest)
        if place is None:
            return ""
        path = place["open"] or place["named"] or ""
        outside = place["open"] is not None or path.startswith("/")
        return "" if outside and not path.startswith(f"{self.scratch}/") else path


@contextmanager
def open_runner(scratch: Path) -> Iterator[Runner]:
    """The programs that the runner talks to end with the block."""
    with ExitStack() as programs:
        yield Runner(scratch, programs)


@contextmanager
def trace_process(process: int, trace: Path, fault: Fault | None) -> Iterator[None]:
    """strace the first thread of a process that has stopped itself, until it ends; with one job it writes all.

    Both on one core: they take turns at every call, which takes a third of the time so.
    """
    cores = sorted(os.sched_getaffinity(0))
    core = {cores[int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % len(cores)]}
    os.sched_setaffinity(process, core)
    options = ["-e", f"trace={','.join(CHANGING)}", *(["-e", fault.describe()] if fault else [])]
    with subprocess.Popen(["strace", "-y", "-qq", "-o", trace, *options, "-p", str(process)]) as strace:
        os.sched_setaffinity(strace.pid, core)
        while not is_traced(process):
            assert strace.poll() is None
            time.sleep(0.002)
        yield


def is_traced(process: int) -> bool:
    return "TracerPid:\t0\n" not in Path(f"/proc/{process}/status").read_text("ascii")
