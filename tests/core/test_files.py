import csv
import errno
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagepipe.core import files
from imagepipe.core.errors import EnvironmentFault
from imagepipe.core.files import (
    format_csv,
    replace_directory,
    report_write_errors,
    round_numbers,
    sync_path,
    write_blocks,
    write_bytes,
    write_csv,
    write_json,
    write_text,
)


@pytest.fixture
def umask() -> Iterator[Callable[[int], int]]:
    before = os.umask(0)
    os.umask(before)
    yield os.umask
    os.umask(before)


def list_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_syncs_a_folder_that_is_there(tmp_path: Path) -> None:
    sync_path(tmp_path)
    with pytest.raises(FileNotFoundError):
        sync_path(tmp_path / "absent")


def refuse_sync(patch: pytest.MonkeyPatch, number: int, of_folders: bool) -> None:
    """Let fsync fail with this error for folders, or for files."""
    fsync = os.fsync

    def refuse(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode) == of_folders:
            raise OSError(number, os.strerror(number))
        fsync(handle)

    patch.setattr(os, "fsync", refuse)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EBADF])
def test_a_disk_that_syncs_no_folders_takes_files_and_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    refuse_sync(monkeypatch, number, of_folders=True)
    write_bytes(tmp_path / "file", b"x")
    with replace_directory(tmp_path / "folder") as staging:
        (staging / "inside").write_bytes(b"y")
    assert (tmp_path / "file").read_bytes() == b"x"
    assert (tmp_path / "folder" / "inside").read_bytes() == b"y"


@pytest.mark.parametrize(("number", "of_folders"), [(errno.EIO, True), (errno.EINVAL, False), (errno.EBADF, False)])
def test_another_failure_of_a_sync_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, of_folders: bool
) -> None:
    (tmp_path / "file").write_bytes(b"x")
    refuse_sync(monkeypatch, number, of_folders)
    with pytest.raises(OSError, match=re.escape(os.strerror(number))):
        sync_path(tmp_path if of_folders else tmp_path / "file")


def test_writes_bytes_into_a_new_folder(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a" / "b" / "c.bin", b"\x00\xff")
    assert (tmp_path / "a" / "b" / "c.bin").read_bytes() == b"\x00\xff"
    assert list_names(tmp_path / "a" / "b") == ["c.bin"]


def test_replaces_what_was_there(tmp_path: Path) -> None:
    write_bytes(tmp_path / "x", b"old and longer")
    write_bytes(tmp_path / "x", b"new")
    assert (tmp_path / "x").read_bytes() == b"new"


def test_a_reader_of_the_old_file_keeps_it(tmp_path: Path) -> None:
    write_bytes(tmp_path / "x", b"old")
    with (tmp_path / "x").open("rb") as reader:
        write_bytes(tmp_path / "x", b"new")
        assert reader.read() == b"old"


@pytest.mark.parametrize("mask", [0o000, 0o077])
def test_modes_do_not_follow_the_umask(tmp_path: Path, umask: Callable[[int], int], mask: int) -> None:
    umask(mask)
    write_bytes(tmp_path / "file", b"")
    with replace_directory(tmp_path / "folder"):
        pass
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o755


def test_text_keeps_its_line_endings(tmp_path: Path) -> None:
    write_text(tmp_path / "x", "é\r\nb\n")
    assert (tmp_path / "x").read_bytes() == b"\xc3\xa9\r\nb\n"


def test_names_the_path_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(EnvironmentFault) as caught:
        write_bytes(tmp_path / "folder", b"x")
    assert str(caught.value) == (
        f"{tmp_path / 'folder'}: cannot be written: Is a directory. Make room or change the permissions, then run the "
        "stage again; nothing half-written was left."
    )
    assert list_names(tmp_path) == ["folder"]


def test_names_the_path_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(EnvironmentFault, match=r"file/x: cannot be written: File exists\."):
        write_bytes(tmp_path / "file" / "x", b"x")
    assert (tmp_path / "file").read_text() == "kept"


def test_gives_the_reason_of_an_error_without_a_number(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match=r"x: cannot be written: no reason\."), report_write_errors(Path("x")):
        raise OSError("no reason")


FORBIDDEN = "os.chmod('.', 0o555); os.geteuid() or os.setuid(65534)"  # root may write everywhere
TOO_LARGE = "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))"


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits and permissions of POSIX")
@pytest.mark.parametrize(
    ("refuse", "reason"), [(FORBIDDEN, "Permission denied"), (TOO_LARGE, "File too large")], ids=["forbidden", "large"]
)
def test_a_write_that_the_system_refuses_leaves_the_old_file(tmp_path: Path, refuse: str, reason: str) -> None:
    (tmp_path / "x").write_bytes(b"old")
    script = f"""
import os, resource
from pathlib import Path
from imagepipe.core.files import write_bytes
{refuse}
write_bytes(Path("x"), bytes(2000))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert f"DiskFault: x: cannot be written: {reason}." in done.stderr
    assert list_names(tmp_path) == ["x"]
    assert (tmp_path / "x").read_bytes() == b"old"


def test_a_full_quota_is_named() -> None:
    with (
        pytest.raises(EnvironmentFault, match=r"x: cannot be written: .*quota exceeded\."),
        report_write_errors(Path("x")),
    ):
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))


NO_ROOM = "Make room or change the permissions, then run the stage again; nothing half-written was left."


def test_a_full_disk_is_named_and_the_old_file_stays(mount_disk: Callable[[str], Path]) -> None:
    disk = mount_disk("size=64k")
    write_bytes(disk / "x", b"old")
    with pytest.raises(EnvironmentFault) as caught:
        write_bytes(disk / "x", bytes(100_000))
    said = "No space left on device (at least 100,000 bytes are needed, 61,440 are free)"
    assert str(caught.value) == f"{disk / 'x'}: cannot be written: {said}. {NO_ROOM}"
    assert list_names(disk) == ["x"]
    assert (disk / "x").read_bytes() == b"old"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (
            "nr_inodes=3,size=64k",
            r"No space left on device \(no inodes are left: there are too many files; delete some, or set split\.layout"
            r" to shards\)",
        ),
        ("ro,size=64k", "Read-only file system"),
    ],
    ids=["no further file", "read-only"],
)
def test_a_disk_that_takes_nothing_is_named(mount_disk: Callable[[str], Path], options: str, reason: str) -> None:
    disk = mount_disk("size=64k")
    (disk / "out").mkdir()
    (disk / "out" / "old").write_bytes(b"")
    subprocess.run(["mount", "-o", f"remount,{options}", disk], check=True)
    with pytest.raises(EnvironmentFault, match=rf"x: cannot be written: {reason}\."):
        write_bytes(disk / "x", b"x")
    with (
        pytest.raises(EnvironmentFault, match=rf"out: cannot be written: {reason}\."),
        replace_directory(disk / "out"),
    ):
        pass
    assert list_names(disk) == ["out"]
    assert list_names(disk / "out") == ["old"]


def test_a_folder_that_is_a_disk_of_its_own_cannot_be_replaced_and_stays(mount_disk: Callable[[str], Path]) -> None:
    disk = mount_disk("size=64k")
    (disk / "old").write_text("0")
    with (
        pytest.raises(EnvironmentFault, match=rf"{disk.name}: cannot be written: Device or resource busy\."),
        replace_directory(disk),
    ):
        pass
    assert list_names(disk) == ["old"]
    assert list_names(disk.parent) == [disk.name]


def test_a_file_is_written_to_the_disk_of_its_folder(mount_disk: Callable[[str], Path], tmp_path: Path) -> None:
    """Where a rename from elsewhere would be one across devices."""
    disk = mount_disk("size=64k")
    (tmp_path / "link").symlink_to(disk)
    write_bytes(tmp_path / "link" / "x", b"x")
    with replace_directory(tmp_path / "link" / "out") as staging:
        write_bytes(staging / "y", b"y")
    assert list_names(disk) == ["out", "x"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the number of open files")
def test_too_many_open_files_are_named(tmp_path: Path) -> None:
    script = (
        "import resource; from pathlib import Path; from imagepipe.core.files import write_bytes\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3)); write_bytes(Path('x'), b'x')"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "DiskFault: x: cannot be written: Too many open files." in done.stderr
    assert list_names(tmp_path) == []


ORDERED = """\
from pathlib import Path
from imagepipe.core.files import replace_directory, write_bytes
write_bytes(Path("x"), b"x")
with replace_directory(Path("out")) as staging:
    write_bytes(staging / "deep" / "y", b"y")
"""


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace, which sees in which order calls come")
def test_what_a_rename_makes_known_is_on_the_disk_before_and_the_rename_after(tmp_path: Path) -> None:
    """A power loss at any moment shows the old or the new: fsync of the file, rename, fsync of the folder."""
    (tmp_path / "made").mkdir()
    command = [
        "strace",
        "-y",
        "-qq",
        "-o",
        tmp_path / "trace",
        "-e",
        "trace=fsync,rename",
        sys.executable,
        "-c",
        ORDERED,
    ]
    subprocess.run(command, cwd=tmp_path / "made", check=True)
    top = re.escape(str(tmp_path / "made"))
    part = r"\.[0-9]+@[^\"/>]*\.part"
    calls = [line.rpartition(" = ")[0].rstrip() for line in (tmp_path / "trace").read_text().splitlines()]
    expected = [
        rf"fsync\(\d+<{top}/{part}>\)",
        rf'rename\("{part}", "x"\)',
        rf"fsync\(\d+<{top}>\)",
        rf'rename\("{part}/deep/{part}", "{part}/deep/y"\)',
        rf"fsync\(\d+<{top}/{part}/deep/y>\)",
        rf"fsync\(\d+<{top}/{part}/deep>\)",
        rf"fsync\(\d+<{top}/{part}>\)",
        rf'rename\("{part}", "out"\)',
        rf"fsync\(\d+<{top}>\)",
    ]
    assert len(calls) == len(expected), calls
    for call, pattern in zip(calls, expected, strict=True):
        assert re.fullmatch(pattern, call), (call, pattern)


def test_rounds_every_float_and_nothing_else() -> None:
    value = {"a": 0.123456, "b": [1, True, None, "0.123456"], "c": (np.float64(2.0004),)}
    assert round_numbers(value, 3) == {"a": 0.123, "b": [1, True, None, "0.123456"], "c": [2.0]}


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_refuses_what_json_lacks(tmp_path: Path, number: float) -> None:
    with pytest.raises(ValueError, match=rf"{number} has no place in a JSON file"):
        write_json(tmp_path / "x.json", {"a": [number]})
    assert list_names(tmp_path) == []


def test_json_is_sorted_and_rounded(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"b": 1 / 3, "a": "é", "c": {"z": 1, "y": []}})
    expected = '{\n  "a": "é",\n  "b": 0.333333,\n  "c": {\n    "y": [],\n    "z": 1\n  }\n}\n'
    assert (tmp_path / "x.json").read_text("utf-8") == expected


def test_json_keeps_as_many_digits_as_asked(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", 1 / 3, digits=2)
    assert json.loads((tmp_path / "x.json").read_bytes()) == 0.33


def test_csv_has_a_header_and_plain_line_ends(tmp_path: Path) -> None:
    write_csv(tmp_path / "x.csv", pd.DataFrame({"class": ["NA", 'a"b', "é,"], "n": [1, 2, 3]}, index=[7, 8, 9]))
    assert (tmp_path / "x.csv").read_bytes().decode() == 'class,n\nNA,1\n"a""b",2\n"é,",3\n'


LETTERS = st.sampled_from(["a", "NA", "é", "😀", " ", ",", '"', "\n", "'", "\t", "\0", "\ufeff"])
TEXTS = st.one_of(st.sampled_from(["a", "", "b c"]), st.lists(LETTERS, max_size=4).map("".join))
FLOATS = st.sampled_from([0.1, -0.0, 1e16, 1e-7, 123456789.125, float("nan"), float("inf")])
COLUMNS: list[tuple[st.SearchStrategy[Any], str]] = [
    (TEXTS, "str"),
    (TEXTS.map(lambda text: text.replace("a", "\r")), "str"),
    (st.none() | TEXTS, "str"),
    (st.none() | TEXTS, "string"),
    (st.integers(-(2**63), 2**63 - 1), "int64"),
    (st.integers(0, 255), "uint8"),
    (st.none() | st.integers(0, 9), "Int64"),
    (FLOATS, "float64"),
    (FLOATS, "float32"),
    (st.booleans(), "bool"),
    (st.none() | TEXTS | st.integers() | FLOATS | st.booleans(), "object"),
    (TEXTS, "category"),
    (st.sampled_from([pd.Timestamp("2020-01-02"), pd.Timestamp("2020-01-02 03:04")]), "datetime64[ns]"),
]


@st.composite
def make_frames(draw: st.DrawFn) -> pd.DataFrame:
    """Tables of all kinds of columns, of which some have one name."""
    rows, kinds = draw(st.integers(0, 5)), draw(st.lists(st.sampled_from(COLUMNS), max_size=4))
    columns = [
        pd.Series(draw(st.lists(values, min_size=rows, max_size=rows)), range(7, 7 + rows), dtype)
        for values, dtype in kinds
    ]
    table = pd.concat(columns, axis=1) if columns else pd.DataFrame(index=range(rows))
    table.columns = draw(st.lists(TEXTS, min_size=len(kinds), max_size=len(kinds)))
    return table


def format_with_pandas(table: pd.DataFrame) -> bytes:
    """All of the table at once; in quotes where there is a CR, which Python's csv module does not see."""
    text = table.to_csv(index=False, lineterminator="\n")
    if "\r" in text:
        text = table.to_csv(index=False, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    return text.encode()


@given(make_frames(), st.data())
def test_every_table_has_the_bytes_that_pandas_gives_it(table: pd.DataFrame, data: st.DataObject) -> None:
    positions = np.array(data.draw(st.lists(st.sampled_from(range(len(table))))) if len(table) else [], np.int64)
    assert b"".join(format_csv(table, np.arange(len(table)))) == format_with_pandas(table)
    assert b"".join(format_csv(table, positions)) == format_with_pandas(table.iloc[positions])


@pytest.mark.parametrize("odd", ["x", 'x"y'])
def test_a_table_is_written_some_rows_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, odd: str) -> None:
    monkeypatch.setattr(files, "PIECES", 1)
    count = 120_000  # three pieces of 50,000 rows
    names = [f"{number:x}" for number in range(count)]
    names[60_000] = odd
    table = pd.DataFrame({"name": names, "number": range(count)})
    assert len(list(format_csv(table, np.arange(count)))) == 4
    write_csv(tmp_path / "x.csv", table)
    assert (tmp_path / "x.csv").read_bytes() == format_with_pandas(table)
    write_csv(tmp_path / "x.csv", table, np.arange(count)[::-1])
    assert (tmp_path / "x.csv").read_bytes() == format_with_pandas(table[::-1])


def test_a_table_that_fails_halfway_leaves_the_old_file(tmp_path: Path) -> None:
    write_bytes(tmp_path / "x", b"old")

    def make_blocks() -> Iterator[bytes]:
        yield b"new"
        raise ValueError("halfway")

    with pytest.raises(ValueError, match="halfway"):
        write_blocks(tmp_path / "x", make_blocks())
    assert list_names(tmp_path) == ["x"]
    assert (tmp_path / "x").read_bytes() == b"old"


def test_a_new_folder_takes_its_place(tmp_path: Path) -> None:
    with replace_directory(tmp_path / "deep" / "out") as staging:
        (staging / "a").write_text("1")
        assert not (tmp_path / "deep" / "out").exists()
    assert (tmp_path / "deep" / "out" / "a").read_text() == "1"
    assert list_names(tmp_path / "deep") == ["out"]


def test_a_new_folder_replaces_the_whole_old_one(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("0")
    with replace_directory(tmp_path / "out") as staging:
        (staging / "new").write_text("1")
        assert list_names(tmp_path / "out") == ["old"]
    assert list_names(tmp_path / "out") == ["new"]
    assert list_names(tmp_path) == ["out"]


def test_a_failure_keeps_the_old_folder(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("0")
    with pytest.raises(FileNotFoundError), replace_directory(tmp_path / "out") as staging:
        (staging / "new").write_bytes((tmp_path / "absent").read_bytes())
    assert list_names(tmp_path / "out") == ["old"]
    assert list_names(tmp_path) == ["out"]


@pytest.mark.parametrize("moment", ["path.rename(previous)", "staging.rename(path)", "sync_path(path.parent)"])
def test_an_interrupt_in_the_midst_of_the_exchange_leaves_one_of_the_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Just after the call: the exchange is two renames."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("0")
    rename, sync = Path.rename, files.sync_path
    renames: list[Path] = []

    def rename_and_end(self: Path, target: Path) -> Path:
        done = rename(self, target)
        renames.append(target)
        if len(renames) == {"path.rename(previous)": 1, "staging.rename(path)": 2}.get(moment, 0):
            raise KeyboardInterrupt
        return done

    def sync_and_end(path: Path) -> None:
        sync(path)
        if path == tmp_path and moment.startswith("sync"):
            raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", rename_and_end)
    monkeypatch.setattr(files, "sync_path", sync_and_end)
    with pytest.raises(KeyboardInterrupt), replace_directory(tmp_path / "out") as staging:
        (staging / "new").write_text("1")
    assert list_names(tmp_path) == ["out"]
    assert list_names(tmp_path / "out") == (["old"] if moment.startswith("path") else ["new"])


def test_an_interrupt_leaves_no_new_folder(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), replace_directory(tmp_path / "out"):
        raise KeyboardInterrupt
    assert list_names(tmp_path) == []


def test_names_the_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(EnvironmentFault, match=r"file/out: cannot be written: File exists\."),
        replace_directory(tmp_path / "file" / "out"),
    ):
        pass


def test_a_file_in_the_place_of_a_folder_stays_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(EnvironmentFault, match="out: cannot be written"), replace_directory(tmp_path / "out"):
        pass
    assert list_names(tmp_path) == ["out"]
    assert (tmp_path / "out").read_text() == "a file"
