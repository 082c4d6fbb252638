import bz2
import gzip
import hashlib
import io
import lzma
import os
import random
import stat
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagepipe.core.errors import EnvironmentFault, InputError
from imagepipe.core.slices import FileSlice
from imagepipe.sources import archive as module
from imagepipe.sources.archive import (
    Member,
    list_members,
    make_pax_header,
    parse_header,
    repack_archive,
    write_members,
)
from tests.conftest import SHARED

PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "tar": bytes,
    "tar.gz": gzip.compress,
    "tar.xz": lzma.compress,
    "tar.bz2": bz2.compress,
}
FILES = {"cats/b.png": b"cat b", "cats/a.png": bytes(512), "dogs/1.png": b"", "labels.csv": bytes(range(256)) * 300}


def make_tar(*members: tuple[tarfile.TarInfo | str, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar of files, or of whatever the given headers say."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form, errors="surrogateescape") as tar:
        for member, data in members:
            info = tarfile.TarInfo(member) if isinstance(member, str) else member
            info.size = info.size or len(data)
            tar.addfile(info, io.BytesIO(data) if data else None)
    return out.getvalue()


def make_header(name: str, kind: bytes = tarfile.REGTYPE, **fields: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def make_zip(*members: tuple[zipfile.ZipInfo | str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for member, data in members:
            archive.writestr(member, data)
    return out.getvalue()


def make_entry(name: str, mode: int = 0) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)
    entry.external_attr = mode << 16
    return entry


def repack(tmp_path: Path, data: bytes, most_bytes: int = 10**9) -> dict[str, bytes]:
    """What an archive of these bytes is repacked to."""
    (tmp_path / "in").write_bytes(data)
    repack_archive(tmp_path / "in", tmp_path / "files.tar", most_bytes)
    return {name: part.read() for name, part in list_members(tmp_path / "files.tar").items()}


def note(tmp_path: Path, data: bytes) -> list[str]:
    (tmp_path / "in").write_bytes(data)
    return repack_archive(tmp_path / "in", tmp_path / "files.tar", 10**9)


def refuse(tmp_path: Path, data: bytes, most_bytes: int = 10**9) -> str:
    """The message with which an archive of these bytes is refused, without its name."""
    (tmp_path / "in").write_bytes(data)
    with pytest.raises(InputError) as caught:
        repack_archive(tmp_path / "in", tmp_path / "files.tar", most_bytes)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    assert str(caught.value).startswith(f"{tmp_path / 'in'}: ")
    return str(caught.value).removeprefix(f"{tmp_path / 'in'}: ")


# What is taken


@pytest.mark.parametrize("kind", PACKERS)
def test_a_tar_of_any_packing_is_told_by_its_content(tmp_path: Path, kind: str) -> None:
    assert repack(tmp_path, PACKERS[kind](make_tar(*FILES.items()))) == FILES


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_format_of_tar_is_taken(tmp_path: Path, form: int) -> None:
    files = {"a" * 90 + "/" + "b" * 90: b"long"} | FILES
    assert repack(tmp_path, make_tar(*files.items(), form=form)) == files


def test_a_tar_of_the_seventies_has_no_magic_bytes(tmp_path: Path) -> None:
    data = bytearray(make_tar(("a.png", b"x"), form=tarfile.USTAR_FORMAT))
    data[257:265] = bytes(8)
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    assert repack(tmp_path, bytes(data)) == {"a.png": b"x"}


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_every_method_of_zip_is_taken(tmp_path: Path, method: int) -> None:
    assert repack(tmp_path, make_zip(*FILES.items(), method=method)) == FILES


def test_order_is_the_archives_own(tmp_path: Path) -> None:
    for data in (make_tar(*FILES.items()), make_zip(*FILES.items())):
        assert list(repack(tmp_path, data)) == ["cats/b.png", "cats/a.png", "dogs/1.png", "labels.csv"]


def test_the_tar_depends_on_names_and_bytes_alone(tmp_path: Path) -> None:
    plain = make_header("cats/é.png")
    odd = make_header("./cats//é.png", mode=0o4777, mtime=12.5, uid=7, gid=8, uname="ada", gname="staff")
    odd.pax_headers = {"comment": "by hand"}
    entry = make_entry("cats/é.png", stat.S_IFREG | 0o700)
    entry.date_time = (2020, 2, 2, 2, 2, 2)
    hashes: set[str] = set()
    for data in (make_tar((plain, b"x")), gzip.compress(make_tar((odd, b"x"))), make_zip((entry, b"x"))):
        assert repack(tmp_path, data) == {"cats/é.png": b"x"}
        hashes.add(hashlib.sha256((tmp_path / "files.tar").read_bytes()).hexdigest())
    assert len(hashes) == 1


def test_the_tar_is_the_one_that_tarfile_writes(tmp_path: Path) -> None:
    repack(tmp_path, make_zip(*FILES.items()))
    assert (tmp_path / "files.tar").read_bytes() == make_tar(*FILES.items())


def test_members_can_be_read_by_their_offsets(tmp_path: Path) -> None:
    repack(tmp_path, make_zip(("a.png", b"x" * 513), ("b.png", b"y")))
    members = list_members(tmp_path / "files.tar")
    assert [(part.offset, part.length) for part in members.values()] == [(512, 513), (2048, 1)]
    assert {part.path for part in members.values()} == {tmp_path / "files.tar"}


def test_an_archive_in_an_archive_is_a_file(tmp_path: Path) -> None:
    inner = make_zip(("../evil", b"x"))
    assert repack(tmp_path, make_zip(("inner.zip", inner), ("a.png", b"x")))["inner.zip"] == inner
    assert repack(tmp_path, make_tar(("inner.zip", inner), ("a.png", b"x")))["inner.zip"] == inner


def test_a_large_member_goes_through_in_blocks(tmp_path: Path) -> None:
    data = random.Random(1).randbytes(300_001)
    for archive in (make_zip(("a.bin", data)), gzip.compress(make_tar(("a.bin", data)))):
        assert repack(tmp_path, archive) == {"a.bin": data}


def test_backslashes_separate(tmp_path: Path) -> None:
    data = make_zip(("cats#a.png", b"x"), ("dogs#", b"")).replace(b"cats#", b"cats\\").replace(b"dogs#", b"dogs\\")
    assert repack(tmp_path, data) == {"cats/a.png": b"x"}


def test_a_zip_of_macos_has_names_in_utf_8_without_saying_so(tmp_path: Path) -> None:
    data = make_zip(("c____.png", b"x")).replace(b"c____.png", "cäö.png".encode())
    assert repack(tmp_path, data) == {"cäö.png": b"x"}


def test_a_zip_of_dos_has_names_in_its_code_page(tmp_path: Path) -> None:
    assert repack(tmp_path, make_zip(("c_.png", b"x")).replace(b"c_.png", b"c\x84.png")) == {"cä.png": b"x"}


def test_what_the_system_left_is_skipped_and_reported(tmp_path: Path) -> None:
    names = ["cats/.DS_Store", "dogs/.DS_Store", "Thumbs.db", "__MACOSX/cats/._a.png", "cats/._a.png", ".git/HEAD"]
    members = [(name, b"x") for name in [*names, "cats/a.png", "DESKTOP.INI", "a..b/c.d.png"]]
    expected = "left out 7 files that no dataset needs: .DS_Store (2), ._*, .git, DESKTOP.INI, Thumbs.db, __MACOSX"
    for data in (make_zip(*members), make_tar(*members)):
        assert note(tmp_path, data) == [expected]
        assert list(list_members(tmp_path / "files.tar")) == ["cats/a.png", "a..b/c.d.png"]


def test_one_file_that_was_left_out_is_one_file(tmp_path: Path) -> None:
    data = make_tar(("a.png", b"x"), (".hidden", b"x"))
    assert note(tmp_path, data) == ["left out 1 file that no dataset needs: .hidden"]
    assert note(tmp_path, make_tar(("a.png", b"x"))) == []


def test_folders_without_files_are_reported(tmp_path: Path) -> None:
    for data in (
        make_zip(("cats/", b""), ("cats/a.png", b"x"), ("dogs/", b""), ("birds/", b""), (".idea/", b"")),
        make_tar(
            (make_header("./", tarfile.DIRTYPE), b""),
            *[(make_header(name, tarfile.DIRTYPE), b"") for name in ("cats", "dogs", "./birds", ".idea")],
            ("cats/a.png", b"x"),
        ),
    ):
        assert note(tmp_path, data) == ["2 folders without files: birds, dogs"]


# What is refused: names


HOSTILE = {
    "../a.png": "leads out of the archive through `..`; pack it again from inside its folder.",
    "cats/../../a.png": "leads out of the archive through `..`; ",
    "cats/..": "leads out of the archive through `..`; ",
    "..\\a.png": "leads out of the archive through `..`; ",
    "/etc/cron.d/a": "is an absolute path; expected paths inside the archive. ",
    "\\\\host\\share\\a.png": "is an absolute path; ",
    "C:\\a.png": "is an absolute path; ",
    "c:a.png": "is an absolute path; ",
    "./c:/a.png": "is an absolute path; ",
    "cats/\x07.png": "the name holds control characters or is not UTF-8; rename the file and pack it again.",
    "cats/a\n.png": "the name holds control characters or is not UTF-8; ",
    "x" * 1025: "the name has 1025 characters; expected at most 1024.",
}
SHOWN = {"cats/\x07.png": "cats/\\x07.png", "cats/a\n.png": "cats/a\\n.png", "x" * 1025: "x" * 1024}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_is_refused(tmp_path: Path, name: str) -> None:
    for data in (make_tar(("a.png", b"x"), (name, b"x")), make_zip(("a.png", b"x"), (name, b"x"))):
        assert refuse(tmp_path, data).startswith(f"`{SHOWN.get(name, name)}`: {HOSTILE[name]}")


def test_a_hostile_folder_is_refused_and_so_is_a_hostile_hidden_file(tmp_path: Path) -> None:
    assert "leads out" in refuse(tmp_path, make_zip(("a.png", b"x"), ("cats/../", b"")))
    assert "leads out" in refuse(tmp_path, make_tar((".hidden/../../a", b"x")))
    assert "is an absolute path" in refuse(tmp_path, make_zip(("/.hidden", b"x")))


def test_a_nul_in_a_name_of_a_zip_is_shown(tmp_path: Path) -> None:
    data = make_zip(("a.png#.exe", b"x")).replace(b"a.png#.exe", b"a.png\0.exe")
    assert refuse(tmp_path, data).startswith("`a.png\\x00.exe`: the name holds control characters")


def test_a_nul_in_an_extended_name_of_a_tar_is_shown(tmp_path: Path) -> None:
    header = make_header("x")
    header.pax_headers = {"path": "a.png\0.exe"}
    assert refuse(tmp_path, make_tar((header, b"x"))).startswith("`a.png\\x00.exe`: the name holds control")


def test_a_name_that_is_not_utf_8_is_shown_escaped(tmp_path: Path) -> None:
    data = make_tar(("cats/caf\udce9.png", b"x"), form=tarfile.GNU_FORMAT)
    assert refuse(tmp_path, data).startswith("`cats/caf\\xe9.png`: the name holds control characters or is not UTF-8;")
    data = make_zip(("cats/é.png", b"x")).replace("é".encode(), b"\xe9\xe9")
    assert refuse(tmp_path, data) == "a name is not the UTF-8 that it is marked as: b'cats/\\xe9\\xe9.png'."


def test_a_file_without_a_name_is_refused(tmp_path: Path) -> None:
    assert refuse(tmp_path, make_tar(("./.", b"x"))) == "`./.`: a file without a name."


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    members = [("a", b"x"), ("cats/a.png", b"x"), ("./cats//a.png", b"y")]
    expected = "`./cats//a.png`: the archive holds two files of this name."
    assert refuse(tmp_path, make_tar(*members)) == expected
    assert refuse(tmp_path, make_zip(*members)) == expected
    assert "two files of this name" in refuse(tmp_path, make_zip(("a", b"x"), ("a", b"x")))


@pytest.mark.parametrize(
    ("one", "other"),
    [("cats/a.png", "cats/A.png"), ("café.png", "cafe\u0301.png"), ("straße", "STRASSE"), ("cats/a", "Cats/b")],
)
def test_names_that_some_disks_take_for_one_are_refused(tmp_path: Path, one: str, other: str) -> None:
    twins = ("cats", "Cats") if one == "cats/a" else (one, other)
    for data in (make_tar((one, b"x"), (other, b"y")), make_zip((one, b"x"), (other, b"y"))):
        assert refuse(tmp_path, data) == (
            f"`{other}`: `{twins[1]}` differs from `{twins[0]}` only by case or Unicode form, so that many disks "
            "cannot hold both; rename one."
        )


def test_a_name_that_is_both_file_and_folder_is_refused(tmp_path: Path) -> None:
    for members in (
        [("a/b", b"x"), ("a/b/c.png", b"x")],
        [("a/b/c.png", b"x"), ("a/b", b"x")],
        [("a/b", b"x"), (make_header("a/b", tarfile.DIRTYPE), b"")],
    ):
        assert refuse(tmp_path, make_tar(*members)).endswith(": `a/b` is both a file and a folder.")
    assert "`a` is both a file and a folder" in refuse(tmp_path, make_zip(("a/", b""), ("a", b"x")))


# What is refused: kinds


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (tarfile.SYMTYPE, "a symbolic link"),
        (tarfile.LNKTYPE, "a hard link"),
        (tarfile.CHRTYPE, "a character device"),
        (tarfile.BLKTYPE, "a block device"),
        (tarfile.FIFOTYPE, "a FIFO"),
        (b"V", "of the unknown kind b'V'"),
    ],
)
def test_what_is_no_file_in_a_tar_is_refused(tmp_path: Path, kind: bytes, words: str) -> None:
    data = make_tar(("a.png", b"x"), (make_header("cats/link", kind, linkname="/etc/passwd"), b""))
    assert refuse(tmp_path, data) == (
        f"`cats/link`: is {words}; expected files. Pack the files themselves (tar --dereference --hard-dereference)."
    )


def test_a_sparse_file_is_refused(tmp_path: Path) -> None:
    header = make_header("a.png")
    header.pax_headers = {"GNU.sparse.map": "0,1", "GNU.sparse.size": str(2**60), "GNU.sparse.name": "a.png"}
    assert refuse(tmp_path, make_tar((header, b"x"))).startswith("`a.png`: is a sparse file; expected files.")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (stat.S_IFLNK, "a symbolic link"),
        (stat.S_IFCHR, "a character device"),
        (stat.S_IFBLK, "a block device"),
        (stat.S_IFIFO, "a FIFO"),
        (stat.S_IFSOCK, "a socket"),
    ],
)
def test_what_is_no_file_in_a_zip_is_refused(tmp_path: Path, kind: int, words: str) -> None:
    data = make_zip(("a.png", b"x"), (make_entry("cats/link", kind | 0o777), b"/etc/passwd"))
    assert refuse(tmp_path, data) == f"`cats/link`: is {words}; expected files. Pack the files themselves."


def test_a_folder_with_data_is_refused(tmp_path: Path) -> None:
    data = make_zip(("a.png", b"x"), (make_entry("cats", stat.S_IFDIR), b"data"))
    assert refuse(tmp_path, data) == "`cats`: is a folder with 4 bytes of data. Get or pack the archive again."


def test_an_encrypted_member_is_refused(tmp_path: Path) -> None:
    data = bytearray(make_zip(("a.png", b"x")))
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    assert refuse(tmp_path, bytes(data)) == "`a.png`: is encrypted; pack it again without a password."


def test_an_unknown_compression_is_refused(tmp_path: Path) -> None:
    data = bytearray(make_zip(("a.png", b"x")))
    for at in (8, data.index(b"PK\x01\x02") + 10):
        data[at : at + 2] = struct.pack("<H", 98)
    assert refuse(tmp_path, bytes(data)) == (
        "`a.png`: cannot be unpacked: That compression method is not supported; pack it again with the usual "
        "compression (deflate)."
    )


# What is refused: bombs


def test_more_bytes_than_the_limit_are_refused(tmp_path: Path) -> None:
    data = random.Random(1).randbytes(3000)
    for archive in (make_zip(("a.bin", data), ("b.bin", data)), gzip.compress(make_tar(("a", data), ("b.bin", data)))):
        assert refuse(tmp_path, archive, 5000) == (
            "`b.bin`: the archive unpacks to more than 5e-06 GB, the limit that fetch.max_gigabytes sets in "
            "params.yaml; raise it if the data is meant to be that large."
        )
        assert len(repack(tmp_path, archive, 20_000)) == 2
        (tmp_path / "files.tar").unlink()


def test_a_size_that_a_zip_understates_is_no_way_around(tmp_path: Path) -> None:
    data = bytearray(make_zip(("a.bin", bytes(100_000))))
    at = data.index(b"PK\x01\x02") + 24
    data[at : at + 4] = struct.pack("<I", 10)
    assert "`a.bin`: is damaged or cut off: Bad CRC-32" in refuse(tmp_path, bytes(data))


def test_what_grows_two_hundredfold_is_refused(tmp_path: Path) -> None:
    zeros = bytes(101_000_000)
    for archive in (make_zip(("a.bin", zeros)), gzip.compress(make_tar(("a.bin", zeros)), 1)):
        assert refuse(tmp_path, archive) == (
            f"`a.bin`: the archive unpacks to more than 200 times its {len(archive)} bytes, as a decompression bomb "
            "does; if the data is real, pack it without compression (a plain .tar)."
        )


def test_the_ratio_counts_from_a_size_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = make_zip(("a.bin", bytes(200_000)))
    assert len(repack(tmp_path, archive)["a.bin"]) == 200_000
    (tmp_path / "files.tar").unlink()
    monkeypatch.setattr(module, "RATIO_FROM", 100_000)
    assert "200 times its" in refuse(tmp_path, archive)


def test_zeros_behind_the_end_of_a_tar_are_counted(tmp_path: Path) -> None:
    archive = gzip.compress(make_tar(("a.png", b"x")) + bytes(10**6))
    assert "the archive unpacks to more than 0.0005 GB" in refuse(tmp_path, archive, 500_000)


def test_more_entries_than_the_limit_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_ENTRIES", 2)
    members = [("a", b""), (".b", b""), ("c", b"")]
    for archive in (make_zip(*members), make_tar(*members)):
        assert refuse(tmp_path, archive) == "`c`: the archive has more than 2 entries; pack it as several."


def test_an_enormous_header_is_refused_before_it_is_read(tmp_path: Path) -> None:
    header = make_header("b.png")
    header.pax_headers = {"comment": "x" * 20_000}
    assert refuse(tmp_path, make_tar(("a.png", b"x"), (header, b"x"))) == (
        "after `a.png`: has a header of 20480 bytes; expected at most 16384."
    )


def test_headers_without_end_are_refused(tmp_path: Path) -> None:
    header = make_header("x", tarfile.XHDTYPE).tobuf(tarfile.USTAR_FORMAT)
    assert refuse(tmp_path, header * 2000).startswith("is damaged or cut off: ")


def test_a_negative_size_is_refused(tmp_path: Path) -> None:
    block = bytearray(make_header("b.png").tobuf(tarfile.GNU_FORMAT))
    block[124:136] = b"\xff" * 10 + b"\xfe\x00"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    data = make_tar(("a.png", b"x"))[:1024] + bytes(block) + bytes(1024)
    assert refuse(tmp_path, data) == "`b.png`: has -512 bytes, the archive says. Get or pack the archive again."


# What is refused: damage


@pytest.mark.parametrize("kind", PACKERS)
def test_a_tar_that_is_cut_off_anywhere_is_refused(tmp_path: Path, kind: str) -> None:
    tar = make_tar(("cats/a.png", random.Random(1).randbytes(1000)), ("b.png", b"x"))[: 512 + 1024 + 1024 + 1024]
    data = PACKERS[kind](tar)
    assert len(repack(tmp_path, data)) == 2
    (tmp_path / "files.tar").unlink()
    for length in [*range(600, len(data), 53), len(data) - 1, *((len(tar) - 512, len(tar) - 1024) * (kind == "tar"))]:
        assert "Get or pack the archive again." in refuse(tmp_path, data[:length])


def test_a_tar_that_is_cut_off_names_the_place(tmp_path: Path) -> None:
    data = make_tar(("cats/a.png", b"x" * 1000), ("b.png", b"x"))
    for length, words in (
        (700, "`cats/a.png`: is damaged or cut off: 812 of 1000 bytes are missing."),
        (1536, "after `cats/a.png`: is damaged or cut off: the two blocks of zeros at its end are missing."),
        (1600, "after `cats/a.png`: is damaged or cut off: the two blocks of zeros at its end are missing."),
        (3072, "after `b.png`: is damaged or cut off: the two blocks of zeros at its end are missing."),
    ):
        assert refuse(tmp_path, data[:length]) == f"{words} Get or pack the archive again."


def test_a_damaged_header_is_not_taken_for_the_end(tmp_path: Path) -> None:
    data = bytearray(make_tar(("cats/a.png", b"x"), ("b.png", b"x")))
    data[1024] ^= 1
    assert refuse(tmp_path, bytes(data)) == (
        "after `cats/a.png`: is damaged or cut off: what follows is no header. Get or pack the archive again."
    )


def test_tars_that_were_joined_are_refused(tmp_path: Path) -> None:
    data = make_tar(("a.png", b"x"))
    for archive in (data + data, gzip.compress(data) + gzip.compress(data)):
        assert refuse(tmp_path, archive) == (
            "after `a.png`: data follows the end of the tar; where tars were joined, pack their files as one."
        )


def test_a_wrong_checksum_of_gzip_is_noticed(tmp_path: Path) -> None:
    data = bytearray(gzip.compress(make_tar(("a.png", b"x"))))
    data[-8] ^= 1
    assert refuse(tmp_path, bytes(data)).startswith("after `a.png`: is damaged: CRC check failed")


def test_a_dictionary_that_memory_does_not_hold_is_refused(tmp_path: Path) -> None:
    """Of 4 GiB, which its header states with the right checksum, in a process that may take 1 GiB more."""
    resource = pytest.importorskip("resource")
    if not Path("/proc/self/statm").exists():
        pytest.skip("needs Linux, which says how much memory this process has")
    data = bytearray(lzma.compress(make_tar(("a.png", b"x"))))
    end = 12 + 4 * data[12]  # of the block's header, which begins with its length
    data[data.index(b"\x21\x01", 12) + 2] = 40
    data[end : end + 4] = zlib.crc32(data[12:end]).to_bytes(4, "little")
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (taken + 2**30, limits[1]))
    try:
        message = refuse(tmp_path, bytes(data))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert message == "asks for more memory than there is; pack it again with a smaller dictionary (xz -6)."


@pytest.mark.parametrize("kind", ["tar.xz", "tar.bz2"])
def test_a_flipped_bit_is_noticed(tmp_path: Path, kind: str) -> None:
    data = bytearray(PACKERS[kind](make_tar(("a.png", random.Random(1).randbytes(5000)))))
    data[len(data) // 2] ^= 1
    assert "is damaged" in refuse(tmp_path, bytes(data))


def test_a_wrong_checksum_of_a_zips_member_is_noticed(tmp_path: Path) -> None:
    data = make_zip(("a.png", b"first"), ("b.png", b"second"), method=zipfile.ZIP_STORED)
    assert refuse(tmp_path, data.replace(b"second", b"s3cond")) == (
        "`b.png`: is damaged or cut off: Bad CRC-32 for file 'b.png'. Get or pack the archive again."
    )


def test_a_zip_that_is_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    data = make_zip(("cats/a.png", random.Random(1).randbytes(1000)), ("b.png", b"x"))
    for length in [*range(4, len(data), 41), len(data) - 1]:
        assert "is damaged" in refuse(tmp_path, data[:length])


def test_an_entry_that_a_damaged_directory_swallows_is_missed(tmp_path: Path) -> None:
    data = bytearray(make_zip(("a.png", b"x"), ("b.png", b"x")))
    data[data.index(b"PK\x01\x02") + 32] = 51  # the length of the first entry's comment: all of the second
    assert refuse(tmp_path, bytes(data)) == (
        "has 1 entries in its directory and 2 at its end. Get or pack the archive again."
    )


def test_a_zip_may_have_a_comment(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "in", "w") as archive:
        archive.writestr("a.png", b"x")
        archive.comment = b"made by hand" * 1000
    assert repack(tmp_path, (tmp_path / "in").read_bytes()) == {"a.png": b"x"}


@pytest.mark.slow
def test_a_zip_of_more_entries_than_two_bytes_can_count(tmp_path: Path) -> None:
    names = [f"{number:x}" for number in range(65_540)]
    assert list(repack(tmp_path, make_zip(*[(name, b"") for name in names], method=zipfile.ZIP_STORED))) == names


# What is no archive


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><p>Sign in", "is no archive: it begins with b'<!DOCTYPE html><'"),
        (
            b"\x89PNG\r\n\x1a\n" + bytes(600),
            "is no archive: it begins with b'\\x89PNG\\r\\n\\x1a\\n" + "\\x00" * 8 + "'",
        ),
        (b"Rar!\x1a\x07\x01\x00", "is a RAR archive: it begins with b'Rar!\\x1a\\x07\\x01\\x00'"),
        (b"7z\xbc\xaf\x27\x1c", 'is a 7z archive: it begins with b"7z\\xbc\\xaf\'\\x1c"'),
        (b"\x28\xb5\x2f\xfd", "is packed by zstd: it begins with b'(\\xb5/\\xfd'"),
    ],
)
def test_what_is_no_archive_is_shown(tmp_path: Path, data: bytes, found: str) -> None:
    assert refuse(tmp_path, data) == (
        f"{found}; expected .zip, .tar, .tar.gz, .tar.xz or .tar.bz2 (told by what is inside, not by the name)."
    )


@pytest.mark.parametrize("kind", ["tar.gz", "tar.xz", "tar.bz2"])
def test_a_packed_file_that_is_no_tar_is_refused(tmp_path: Path, kind: str) -> None:
    expected = r"what it holds does not begin as a tar does (truncated header); expected .zip, "
    assert refuse(tmp_path, PACKERS[kind](b"just text")).startswith(expected)


def test_an_archive_without_a_file_is_refused(tmp_path: Path) -> None:
    for data in (make_zip(), make_tar(), gzip.compress(make_tar()), make_zip(("cats/", b""), ("dogs/", b""))):
        assert refuse(tmp_path, data).startswith("holds no file")
    assert refuse(tmp_path, make_tar((".DS_Store", b"x"))) == (
        "holds no file (left out 1 file that no dataset needs: .DS_Store); expected images."
    )


def test_what_is_not_there_or_no_file_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for name, found in (("none.zip", "not there"), ("", "not a file"), ("fifo", "not a file")):
        with pytest.raises(InputError) as caught:
            repack_archive(tmp_path / name, tmp_path / "files.tar", 10**9)
        assert str(caught.value).startswith(f"{tmp_path / name}: {found}; expected an archive: .zip, .tar, ")


# Faults of the machine


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    (tmp_path / "in").write_bytes(make_zip(("a.bin", bytes(300_000))))
    (tmp_path / "files.tar").symlink_to("/dev/full")
    full = r"No space left on device \(at least [\d,]+ bytes are needed, [\d,]+ are free\)"
    with pytest.raises(EnvironmentFault, match=rf"files\.tar: cannot be written: {full}\."):
        repack_archive(tmp_path / "in", tmp_path / "files.tar", 10**9)


def test_what_was_written_before_a_fault_is_removed(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    (tmp_path / "in").write_bytes(make_zip(("a.bin", bytes(300_000))))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(EnvironmentFault, match=r"files\.tar: cannot be written: File too large\."):
            repack_archive(tmp_path / "in", tmp_path / "files.tar", 10**9)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not (tmp_path / "files.tar").exists()


def test_an_interrupted_copy_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    (tmp_path / "in").write_bytes(make_zip(("a.bin", b"x")))
    monkeypatch.setattr(module.Inspection, "count_bytes", interrupt)
    with pytest.raises(KeyboardInterrupt):
        repack_archive(tmp_path / "in", tmp_path / "files.tar", 10**9)
    assert not (tmp_path / "files.tar").exists()


def test_a_target_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(make_zip(("a.png", b"x")))
    with pytest.raises(EnvironmentFault, match=r"none/files\.tar: cannot be written: No such file or directory\."):
        repack_archive(tmp_path / "in", tmp_path / "none" / "files.tar", 10**9)
    with pytest.raises(EnvironmentFault, match=r": cannot be written: Is a directory\."):
        repack_archive(tmp_path / "in", tmp_path, 10**9)


def test_a_damaged_tar_of_ours_says_to_fetch_again(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"files\.tar: cannot be read: No such file.*Run the fetch stage again\.$"):
        list_members(tmp_path / "files.tar")
    (tmp_path / "files.tar").write_bytes(b"x" * 1024)
    with pytest.raises(InputError, match=r"files\.tar: is damaged: .*Run the fetch stage again\.$"):
        list_members(tmp_path / "files.tar")


LETTERS = st.characters(exclude_categories=["Cc", "Cs"])
NAMES = st.text(LETTERS, min_size=1, max_size=120) | st.integers(1, 300).map(lambda length: "x" * length)


@given(st.dictionaries(NAMES.map(lambda name: f"{name}."), st.integers(0, 1100), max_size=5))
def test_our_tar_is_read_as_tarfile_reads_it(sizes: dict[str, int]) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT, encoding="utf-8") as archive:
        for name, size in sizes.items():
            archive.addfile(make_header(name, size=size), io.BytesIO(bytes(size)))
    with tempfile.TemporaryDirectory() as folder:
        tar = Path(folder) / "files.tar"
        write_members((Member(name, size, iter([bytes(size)])) for name, size in sizes.items()), tar)
        assert tar.read_bytes() == out.getvalue()
        members = list_members(tar)
        with tarfile.open(tar, encoding="utf-8") as archive:
            found = {info.name: FileSlice(tar, info.offset_data, info.size) for info in archive}
        assert (members, list(members)) == (found, list(sizes))


@pytest.mark.parametrize("name", ["a.png", "é.png", "x" * 200])
@pytest.mark.parametrize("size", [0, 8**11 - 1, 8**11, 10**13])
def test_a_header_of_any_size_is_the_one_that_tarfile_writes(name: str, size: int) -> None:
    header = make_pax_header(name, size)
    assert header == make_header(name, size=size).tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")
    assert parse_header(header) == (name, size)


def test_any_damage_to_a_header_of_ours_is_noticed(tmp_path: Path) -> None:
    tar = tmp_path / "files.tar"
    write_members(iter([Member("a.png", 3, iter([b"abc"])), Member("cats/b.png", 2, iter([b"de"]))]), tar)
    data = tar.read_bytes()
    for at in [*range(0, 160), *range(160, 512, 11), *range(1024, 1536, 7), *range(2048, len(data), 499)]:
        tar.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(InputError, match=r"files\.tar: is damaged: .*\. Run the fetch stage again\.$"):
            list_members(tar)


def test_damage_to_an_extended_header_is_noticed_but_in_the_name_itself(tmp_path: Path) -> None:
    tar = tmp_path / "files.tar"
    write_members(iter([Member("é.png", 3, iter([b"abc"]))]), tar)
    data = tar.read_bytes()
    assert data[512:530].startswith("15 path=é.png\n".encode())
    for at in [*range(0, 512, 7), *range(512, 520), *range(526, 1024, 13), *range(1024, 1536, 7)]:
        tar.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(InputError, match=r"files\.tar: is damaged: .*\. Run the fetch stage again\.$"):
            list_members(tar)


def test_our_tar_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    tar = tmp_path / "files.tar"
    write_members(iter([Member("a.png", 700, iter([bytes(700)])), Member("é.png", 2, iter([b"de"]))]), tar)
    data = tar.read_bytes()
    assert len(list_members(tar)) == 2
    for length in [*range(0, len(data), 97), len(data) - 1]:
        tar.write_bytes(data[:length])
        with pytest.raises(InputError, match=r"files\.tar: is damaged: .*\. Run the fetch stage again\.$"):
            list_members(tar)
    tar.write_bytes(data + bytes(512))
    with pytest.raises(InputError, match=r"is damaged: what follows byte 3584 is not the end of a tar\. Run the fetch"):
        list_members(tar)


def test_a_size_below_0_does_not_lead_back_for_ever(tmp_path: Path) -> None:
    (tmp_path / "files.tar").write_bytes(make_pax_header("é.png", -1536) + bytes(10_240))
    with pytest.raises(InputError, match=r"is damaged: what is at byte 0 is no header of ours\. Run the fetch"):
        list_members(tmp_path / "files.tar")


def test_another_tar_is_none_of_ours(tmp_path: Path) -> None:
    (tmp_path / "files.tar").write_bytes(make_tar((make_header("a.png", mode=0o755), b"x")))
    with pytest.raises(InputError, match=r"is damaged: what is at byte 0 is no header of ours\. Run the fetch"):
        list_members(tmp_path / "files.tar")


def test_a_real_set_keeps_every_byte(tmp_path: Path) -> None:
    path = SHARED / "cifar10" / "cifar10-11k.zip"
    if not path.is_file():
        pytest.skip("needs ../shared/data/cifar10/cifar10-11k.zip")
    assert repack_archive(path, tmp_path / "files.tar", 10**9) == []
    members = list_members(tmp_path / "files.tar")
    with zipfile.ZipFile(path) as archive:
        assert list(members) == archive.namelist()
        assert all(members[name].read() == archive.read(name) for name in members)
