"""One run of a stage at a time in a workspace: the second is refused, and told who the first is.

The kernel holds the lock and gives it back when the process ends, however it ends, so that nothing stale can stay. It
is of the kind that forked processes do not inherit (POSIX), so a worker that lives on for a moment does not hold it.
"""

import errno
import os
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from imagepipe.core.errors import EnvironmentFault
from imagepipe.core.files import report_write_errors

DVC = Path(".dvc")
LOCKS = DVC / "tmp"  # where DVC has its own: neither Git nor DVC see an output there
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # what a file system says that has none, NFS for one
HOLDER = "IMAGEPIPE_LOCK"  # tells the processes that a stage starts to train with that it holds the lock for them


@contextmanager
def lock_stage(name: str) -> Generator[None]:
    """Hold the lock of a stage in the present folder; raises EnvironmentFault where another process holds it.

    Of several processes that train together, the first alone takes it. There is no lock on Windows, nor where there is
    no DVC project. Where the file system has none, that is a warning.
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
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
                warnings.warn(describe_lack(path, error), stacklevel=3)
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


def describe_lack(path: Path, error: OSError) -> str:
    """What it means that the lock cannot be had, and what to do."""
    return (
        f"{path}: this file system has no locks ({error.strerror}): a second run of this stage at the same time is not "
        "refused; see to it that there is none, or put the project on another disk"
    )
