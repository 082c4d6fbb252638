import errno
import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from imagepipe.core.errors import EnvironmentFault
from imagepipe.core.slices import PIECE, FileSlice, blame_machine, list_image_files, read_whole


def test_a_slice_is_all_of_a_file_or_a_piece_of_it(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"0123456789")
    assert FileSlice(path, 0, 10).read() == b"0123456789"
    assert FileSlice(path, 3, 4).read() == b"3456"
    assert FileSlice(path, 3, 0).read() == b""


@pytest.mark.parametrize("length", [9, 11])
def test_a_file_of_another_length_has_changed(tmp_path: Path, length: int) -> None:
    (tmp_path / "x").write_bytes(b"0123456789")
    with pytest.raises(OSError, match=f"the file had {length} bytes and has 10 now: it changed while it was read"):
        FileSlice(tmp_path / "x", 0, length).read()


@pytest.mark.parametrize(("offset", "length"), [(8, 3), (20, 1)])
def test_a_piece_that_is_not_there_was_cut(tmp_path: Path, offset: int, length: int) -> None:
    (tmp_path / "x").write_bytes(b"0123456789")
    with pytest.raises(OSError, match="x ends inside this file: it was cut since it was written"):
        FileSlice(tmp_path / "x", offset, length).read()


@pytest.mark.parametrize("offset", [0, 3])
def test_a_length_beyond_all_memory_is_not_believed(tmp_path: Path, offset: int) -> None:
    (tmp_path / "x").write_bytes(b"0123456789")
    with pytest.raises(OSError, match=r"it was cut since it was written|it changed while it was read"):
        FileSlice(tmp_path / "x", offset, 10**17).read()


def test_a_file_that_was_never_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        FileSlice(tmp_path, 0, None).read()


@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, 2 * PIECE + 1])
def test_a_file_is_read_to_its_end_and_closed(tmp_path: Path, size: int) -> None:
    content = np.random.default_rng(size).bytes(size)
    (tmp_path / "x").write_bytes(content)
    before = count_open_files()
    assert read_whole(str(tmp_path / "x")) == content
    with pytest.raises(IsADirectoryError):
        read_whole(str(tmp_path))
    assert count_open_files() == before


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.EMFILE, "Too many open files. Raise the limit of open files (`ulimit -n`), or lower run.jobs"),
        (errno.ENFILE, "Too many open files in system. Raise the limit of open files of the whole system, or end what"),
        (errno.EIO, "Input/output error. Check the disk, and bring the file back from a copy"),
        (errno.ENOMEM, "Cannot allocate memory. Free memory, or lower run.jobs"),
        (errno.ESTALE, "Stale file handle. Mount the network disk again"),
    ],
)
def test_the_machine_is_blamed_for_what_no_file_does(number: int, message: str) -> None:
    with pytest.raises(EnvironmentFault) as caught:
        blame_machine(OSError(number, os.strerror(number)), "a/b.png")
    assert str(caught.value).startswith(f"a/b.png: cannot be read: {message}")
    assert str(caught.value).endswith(", then run it again.")


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EISDIR, errno.EACCES])
def test_the_machine_is_not_blamed_for_a_file(number: int) -> None:
    blame_machine(OSError(number, os.strerror(number)), "a/b.png")
    blame_machine(OSError("it was cut"), "a/b.png")


def test_what_may_never_end_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", Path("/dev/zero")):
        with pytest.raises(OSError, match="is a FIFO or a device; expected a plain file"):
            read_whole(str(path))


def count_open_files() -> int:
    """How many this process has; 0 where the system does not say."""
    return len(list(Path("/proc/self/fd").iterdir())) if sys.platform == "linux" else 0


def test_the_files_of_a_table_lie_below_the_folder(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.png").write_bytes(b"one")
    (tmp_path / "2.png").write_bytes(b"two")
    files = list_image_files(pd.DataFrame({"file": ["a/1.png", "2.png"]}), tmp_path, "file")
    assert len(files) == 2
    assert [files.read(index) for index in range(2)] == [b"one", b"two"]
    assert files.describe(0) == str(tmp_path / "a" / "1.png")
    assert files.take([1]).read(0) == b"two"


def test_the_files_of_a_table_with_shards_are_pieces_of_them(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"..one..two")
    table = pd.DataFrame({"path": ["1.png", "2.png"], "shard": "x.tar", "offset": [2, 7], "length": [3, 3]})
    files = list_image_files(table, tmp_path)
    assert [files.read(index) for index in range(2)] == [b"one", b"two"]
    assert files.describe(1) == f"{tmp_path / 'x.tar'} (2.png)"
    last = files.take(np.array([1]))
    assert (len(last), last.read(0)) == (1, b"two")
