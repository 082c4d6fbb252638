"""One run of a stage at a time in a workspace: the second is refused, and told who the first is.

The kernel holds the lock and gives it back when the process ends, however it ends, so that nothing stale can stay. It
is of the kind that forked processes do not inherit (POSIX), so a worker that lives on for a moment does not hold it.
"""

import os
from collections.abc import Generator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from imagepipe.core.errors import EnvironmentFault
from imagepipe.core.files import report_write_errors

DVC = Path(".dvc")
LOCKS = DVC / "tmp"  # where DVC has its own: neither Git nor DVC see an output there
HOLDER = "IMAGEPIPE_LOCK"  # tells the processes that a stage starts to train with that it holds the lock for them


@contextmanager
def lock_stage(name: str) -> Generator[None]:
    """Hold the lock of a stage in the present folder; raises EnvironmentFault where another process holds it.

    Of several processes that train together, the first alone takes it. There is no lock on Windows, nor where there is
    no DVC project.
    """
    joins = HOLDER in os.environ or os.environ.get("RANK", "0") != "0"
    if os.name == "nt" or joins or not DVC.is_dir():
        yield
        return
    import fcntl

    path = LOCKS / f"stage-{name}.lock"
    with open_lock(path) as file:
        with report_write_errors(path):
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError) as error:
                raise EnvironmentFault(describe_holder(name, file.read().decode("ascii").strip())) from error
            file.truncate(0)
            file.write(f"{os.getpid()}\n".encode("ascii"))
        os.environ[HOLDER] = str(os.getpid())
        try:
            yield
        finally:
            del os.environ[HOLDER]


def open_lock(path: Path) -> FileIO:
    """The file to lock, which is written in place: who replaces it has another lock."""
    with report_write_errors(path):
        path.parent.mkdir(exist_ok=True)
        file = FileIO(path, "a+")
        file.seek(0)
        return file


def describe_holder(name: str, process: str) -> str:
    """Who is in the way, as far as it has said so, and what to do."""
    who, end = (f"process {process}", f" (kill {process})") if process else ("another process", "")
    return f"{name}: {who} runs this stage here already; let it finish, or end it{end}, and run this again."
