"""[torch] What a run that was interrupted goes on from: its newest states, kept in the cache root until it ends."""

import io
import json
import pickle
import shutil
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from imagepipe.core.errors import EnvironmentFault
from imagepipe.core.files import write_bytes
from imagepipe.core.hashes import hash_bytes
from imagepipe.training.group import ALONE, Group

KEPT = 2  # of one run: where the newest is damaged, the one before serves
MONTH = 30 * 86_400  # seconds; nobody goes on with a run that was left for longer
FORMAT = 1
SUFFIX = ".ckpt"
TRIES = 3  # to write one where a run of the same key ends just then, and takes the folder with it

Key = Mapping[str, str]


class DamagedCheckpoint(Exception):
    """A file that is not what was written, or belongs to another run; the message says how it is known."""


class Checkpoints:
    """The newest states of one run, below `root`, in a folder named by all that decides the run's bytes.

    `key` holds that, by name: another learning rate, other data or other code is another run. A state is whatever
    torch can save without code: tensors, numbers, text, lists and dicts of them. A file is the SHA-256 of the rest, a
    newline and what `torch.save` makes of key and state; it is read with `weights_only`. Nothing is fsynced: after a
    power loss, the hash tells what is damaged.

    Two runs of one key may go on at once, as two experiments do that differ in what comes after training: they make the
    same bytes, so that either may go on from what the other wrote.

    `is_due` says whether `seconds` have passed since the last one. Of a `group`, the leading process writes and reads,
    and hands out what it has read.
    """

    def __init__(
        self,
        root: Path,
        key: Key,
        seconds: float,
        group: Group = ALONE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.root = root
        self.key = dict(key)
        self.folder = root / hash_bytes(json.dumps([FORMAT, self.key], sort_keys=True).encode())
        self.seconds = seconds
        self.group = group
        self.clock = clock
        self.last = clock()

    def is_due(self) -> bool:
        """Whether the last state, or the start of this process, is older than the interval."""
        return self.group.leads and self.clock() - self.last >= self.seconds

    def save(self, update: int, state: Mapping[str, Any]) -> None:
        """Keep the state after so many updates; raises EnvironmentFault where it cannot be written."""
        if not self.group.leads:
            return
        buffer = io.BytesIO()
        torch.save({"key": self.key, "state": dict(state)}, buffer)
        data = buffer.getvalue()
        self._write(self.folder / f"{update:012d}{SUFFIX}", f"{hash_bytes(data)}\n".encode() + data)
        for path in self.list_files()[KEPT:]:
            path.unlink(missing_ok=True)
        self.last = self.clock()

    def _write(self, path: Path, data: bytes) -> None:
        for left in reversed(range(TRIES)):
            try:
                write_bytes(path, data, durable=False)
                return
            except EnvironmentFault as error:
                if not (left and isinstance(error.__cause__, FileNotFoundError | FileExistsError)):
                    raise

    def load(self) -> dict[str, Any] | None:
        """The newest state that is intact and this run's own; None where there is none.

        Warns of each that is not, naming it, and takes the one before. Removes what other runs left a month ago.
        """
        data = self.group.hand_out(self._read_newest() if self.group.leads else None)
        return None if data is None else unpack(data)["state"]

    def _read_newest(self) -> bytes | None:
        self.remove_abandoned()
        for path in self.list_files():
            try:
                return read_checked(path, self.key)
            except FileNotFoundError:  # another run of this key has ended, or written a newer one
                continue
            except (DamagedCheckpoint, OSError) as error:
                reason = f"cannot be read: {error.strerror or error}" if isinstance(error, OSError) else error
                warnings.warn(f"{path}: {reason}; it is not used, and the one before is tried", stacklevel=4)
        return None

    def list_files(self) -> list[Path]:
        """The files, the newest first."""
        try:
            return sorted(self.folder.glob(f"*{SUFFIX}"), reverse=True)
        except FileNotFoundError:  # another run of this key has ended just now
            return []

    def remove(self) -> None:
        """Take all states of this run away: it has ended, and its outputs are written."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def remove_abandoned(self) -> None:
        """Remove the folders of other runs in which nothing was written for a month."""
        for folder in self.root.glob("*"):
            with suppress(OSError):  # somebody else's, or gone just now
                if folder != self.folder and time.time() - folder.stat().st_mtime > MONTH:
                    shutil.rmtree(folder, ignore_errors=True)


def read_checked(path: Path, key: Key) -> bytes:
    """What torch saved in a file; raises DamagedCheckpoint where it is not what was written, or has another key."""
    digest, newline, data = path.read_bytes().partition(b"\n")
    if not newline or digest != hash_bytes(data).encode():
        raise DamagedCheckpoint("damaged or cut off (its hash is another)")
    try:
        found = unpack(data)["key"]
    except pickle.UnpicklingError as error:
        raise DamagedCheckpoint("it holds code, which reading it would run") from error
    other = sorted(name for name in {*key, *found} if key.get(name) != found.get(name))
    if other:
        raise DamagedCheckpoint(f"a checkpoint of another run (other {', '.join(other)})")
    return data


def unpack(data: bytes) -> dict[str, Any]:
    """Key and state."""
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
