"""What is written aside until it is complete: its name says which process writes it, so that what a killed one left is
known and removed by whoever writes there next."""

import os
import re
import secrets
import shutil
import socket
import time
from contextlib import suppress
from pathlib import Path

DAY = 86_400.0  # seconds after which something unfinished is given up, whoever began it

_UNFINISHED = re.compile(r"\.([0-9]+)@(.*)\.[0-9a-f]{16}\.part")


def name_unfinished() -> str:
    """A new name that says who writes here; the final name may be as long as names can be, and is not in it."""
    return f".{os.getpid()}@{name_place()}.{secrets.token_hex(8)}.part"


def is_unfinished(path: Path) -> bool:
    """Whether `path`, or a folder above it, is written aside."""
    return any(map(_UNFINISHED.fullmatch, path.parts))


def name_place() -> str:
    """Where numbers of processes mean something: the machine and, on Linux, the namespace, since containers may share
    the machine's name and count their processes for themselves."""
    namespace = Path("/proc/self/ns/pid")
    return f"{socket.gethostname()}-{namespace.stat().st_ino}" if namespace.exists() else socket.gethostname()


def make_unfinished(parent: Path) -> Path:
    """A new, empty folder in `parent`, which is made, too; what killed processes left there is removed first.

    Raises OSError.
    """
    parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(parent)
    folder = parent / name_unfinished()
    folder.mkdir()
    return folder


def remove_abandoned(parent: Path) -> None:
    """Remove what processes left in `parent` that were ended while they wrote it.

    Raises OSError where the folder cannot be read.
    """
    with os.scandir(parent) as entries:  # Path.glob takes three times as long, and there may be a million images
        found = [Path(entry.path) for entry in entries if entry.name.startswith(".") and entry.name.endswith(".part")]
    for path in filter(is_abandoned, found):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):  # somebody else's, or gone just now
                path.unlink()


def is_abandoned(path: Path) -> bool:
    """Whether nobody works on something unfinished: its process, of this place, has ended; or it is of another place,
    and nothing was written to it for a day."""
    named = _UNFINISHED.fullmatch(path.name)
    if named is None:
        return False
    if os.name == "posix" and named[2] == name_place():
        return not is_alive(int(named[1]))
    return time.time() - max(map(read_time, [path, *list_inside(path)])) > DAY


def list_inside(folder: Path) -> list[Path]:
    """What lies in a folder; nothing where it is a file, or has just got its name."""
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def is_alive(process: int) -> bool:
    """Whether there is a process of this number on this machine (POSIX)."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def read_time(path: Path) -> float:
    """When a file was changed last; 0 where there is none."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
