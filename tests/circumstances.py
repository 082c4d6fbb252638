"""All that must not matter to what a stage writes, and running a command under it."""

import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

STRANGE = Path(__file__).resolve().parent / "strange"
YEARS = 365 * 24 * 3600
PLAIN = {"TZ": "UTC", "LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "0"}  # what the others differ from
BUSY = 3  # processes that do nothing but count, beside the one that matters

Run = Callable[..., subprocess.CompletedProcess[str]]


@dataclass(frozen=True, slots=True)
class Circumstances:
    """How a run differs from the plain one.

    `listing` is `reversed` or `shuffled`, and so is `created`, the order in which the files of a folder were made;
    `clock` is in seconds from now, `cores` counts those that the run may use (0 is all), `place` is the name of its
    folder, `owns` are variables that name folders that are new. `again` says that the run finds what one with another
    seed left.
    """

    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    umask: int = 0o022
    listing: str = ""
    clock: int = 0
    cores: int = 0
    jobs: int = 0
    workers: int = 0
    place: str = "project"
    owns: tuple[str, ...] = ()
    created: str = ""
    busy: bool = False
    again: bool = False


def change_params(project: Path, *changes: tuple[str, str]) -> None:
    """Replace texts in the project's params.yaml, each of which stands there once."""
    path = project / "params.yaml"
    text = path.read_text("utf-8")
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    path.write_text(text, "utf-8")


def set_knobs(project: Path, around: Circumstances) -> None:
    """The counts of processes in the project's params.yaml."""
    change_params(
        project, ("  jobs: 0\n", f"  jobs: {around.jobs}\n"), ("  workers: 0\n", f"  workers: {around.workers}\n")
    )


def copy_files(source: Path, target: Path, created: str) -> None:
    """Copy a folder of folders of files, file by file in the order that `created` says."""
    names = sorted(path.relative_to(source) for path in source.rglob("*") if path.is_file())
    if created == "reversed":
        names.reverse()
    if created == "shuffled":
        random.Random(1).shuffle(names)
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target / name)
        if created:
            os.utime(target / name, (0, 0))


@contextmanager
def set_umask(umask: int) -> Generator[None]:
    before = os.umask(umask)
    try:
        yield
    finally:
        os.umask(before)


@contextmanager
def set_cores(count: int) -> Generator[None]:
    """Let this process, and those that it starts, use so many cores; 0, or where the system cannot, leaves them all."""
    if not count or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def keep_busy(count: int) -> Generator[None]:
    """So many processes that take all the time that they get."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def make_locale(name: str, folder: Path) -> dict[str, str]:
    """Compile the locale (`tr_TR.UTF-8`) into a new folder, and give the variable that names it.

    Skips the test where that cannot be had: the C library takes its own for a name that it lacks.
    """
    folder.mkdir()
    language, codec = name.split(".")
    if shutil.which("localedef"):
        subprocess.run(["localedef", "-i", language, "-f", codec, folder / name], check=False, capture_output=True)
    if not (folder / name / "LC_CTYPE").is_file():
        pytest.skip(f"needs localedef and the sources of locales for {name} (Debian's package `locales`)")
    return {"LOCPATH": str(folder)}


def build_clock(folder: Path) -> Path:
    """Compile the library that shows another day, into a new folder; skips the test where that cannot be had."""
    if sys.platform != "linux" or not shutil.which("cc"):
        pytest.skip("needs Linux and a C compiler for another day")
    folder.mkdir()
    command = ["cc", "-shared", "-fPIC", "-o", folder / "clock.so", STRANGE / "clock.c", "-ldl"]
    subprocess.run(command, check=True)
    return folder / "clock.so"


@contextmanager
def under(around: Circumstances, run_in: Run) -> Generator[Run]:
    """`run(folder, *command)` under these circumstances; raises where the command fails."""
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        environment = make_environment(around, Path(scratch))
        stack.enter_context(set_umask(around.umask))
        stack.enter_context(set_cores(around.cores))
        stack.enter_context(keep_busy(BUSY if around.busy else 0))

        def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
            done = run_in(folder, *command, **environment)
            assert done.returncode == 0, done.stdout + done.stderr
            return done

        yield run


def make_environment(around: Circumstances, scratch: Path) -> dict[str, str]:
    """The variables of these circumstances, with what they name in `scratch`."""
    environment = PLAIN | around.environment
    for name in around.owns:
        (scratch / name).mkdir()
        environment[name] = str(scratch / name)
    if not environment["LC_ALL"].startswith("C"):
        environment |= make_locale(environment["LC_ALL"], scratch / "locales")
    if around.listing:
        environment["PYTHONPATH"] = f"{STRANGE}{os.pathsep}{os.environ.get('PYTHONPATH', '')}".rstrip(os.pathsep)
        environment["STRANGE_LISTING"] = around.listing
    if around.clock:
        environment["LD_PRELOAD"] = str(build_clock(scratch / "clock"))
        environment["STRANGE_CLOCK"] = str(around.clock)
    return environment
