"""A user's archive: each member is checked and copied into one plain tar; nothing is unpacked onto the file system.

So a hostile name never becomes a path, DVC tracks one file, and images are read from that file by their offsets. The
members are checked here because the `filter` that Python 3.11.7's tarfile offers can be got around. What is counted is
what was really read: headers may lie.
"""

import bz2
import errno
import gzip
import lzma
import os
import re
import stat
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from tarfile import HeaderError, ReadError, TarFile, TarInfo
from typing import IO, NoReturn, cast

from imagepipe.core.errors import EnvironmentFault, InputError
from imagepipe.core.files import report_write_errors
from imagepipe.core.shards import make_header
from imagepipe.core.slices import FileSlice
from imagepipe.sources.names import MOST_NAME, count_noun, describe_litter, find_litter, fold_name, shorten, show_name

BLOCK = 2**16  # bytes read at once
MOST_HEADER = 2**14  # bytes of an extended tar header, which tarfile reads at once and searches in quadratic time
MOST_ENTRIES = 2_000_000
MOST_RATIO = 200  # unpacked to packed bytes, once RATIO_FROM bytes are unpacked
RATIO_FROM = 100_000_000

ZIP_STARTS = (b"PK\x03\x04", b"PK\x05\x06")
OPENERS: dict[bytes, Callable[[Path], BufferedIOBase]] = {
    b"\x1f\x8b": gzip.GzipFile,
    b"\xfd7zXZ\0": lzma.LZMAFile,
    b"BZh": bz2.BZ2File,
}
OTHER_KINDS = {b"7z\xbc\xaf\x27\x1c": "a 7z archive", b"Rar!": "a RAR archive", b"\x28\xb5\x2f\xfd": "packed by zstd"}
TAKEN = ".zip, .tar, .tar.gz, .tar.xz or .tar.bz2 (told by what is inside, not by the name)"
PLAIN_TAR = "tar --dereference --hard-dereference"

TAR_KINDS = {
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a hard link",
    tarfile.CHRTYPE: "a character device",
    tarfile.BLKTYPE: "a block device",
    tarfile.FIFOTYPE: "a FIFO",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
}
UNIX_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
}
DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    ValueError,  # tarfile and zipfile let those of int() and decode() through
    OverflowError,
    RecursionError,  # extended headers that follow each other without end
)


@dataclass(frozen=True, slots=True)
class Member:
    """One file of an archive on its way into the tar; `blocks` yields just `size` bytes or raises."""

    name: str
    size: int
    blocks: Iterator[bytes]


class Inspection:
    """What is known of an archive while it is read; raises InputError at the first thing that is wrong with it."""

    def __init__(self, path: Path, most_bytes: int) -> None:
        self.path = path
        self.most_bytes = most_bytes
        self.packed = path.stat().st_size
        self.member = ""  # the one that is read, or was read last
        self.between = False  # whether the next header is looked for
        self.entries = 0
        self.unpacked = 0
        self.files: dict[str, str] = {}  # name without case and Unicode form: name
        self.folders: dict[str, str] = {}
        self.listed_folders: list[str] = []  # those that have an entry of their own
        self.left_out: Counter[str] = Counter()

    def refuse(self, reason: str) -> NoReturn:
        """Raise InputError, naming the archive and the member."""
        place = f"{'after ' if self.between else ''}`{show_name(self.member)}`: " if self.member else ""
        raise InputError(f"{self.path}: {place}{reason}")

    def count_bytes(self, length: int) -> None:
        """Note `length` unpacked bytes; refuses more than `fetch.max_gigabytes`, and what grows like a bomb."""
        self.unpacked += length
        if self.unpacked > self.most_bytes:
            self.refuse(
                f"the archive unpacks to more than {self.most_bytes / 1e9:g} GB, the limit that fetch.max_gigabytes "
                "sets in params.yaml; raise it if the data is meant to be that large."
            )
        if self.unpacked > RATIO_FROM and self.unpacked > MOST_RATIO * self.packed:
            self.refuse(
                f"the archive unpacks to more than {MOST_RATIO} times its {self.packed} bytes, as a decompression bomb "
                "does; if the data is real, pack it without compression (a plain .tar)."
            )

    def enter(self, raw_name: str) -> str:
        """Count one entry and return its name, POSIX and relative ('' for the top); refuses names that lead away."""
        self.member, self.between = raw_name, False
        self.entries += 1
        if self.entries > MOST_ENTRIES:
            self.refuse(f"the archive has more than {MOST_ENTRIES} entries; pack it as several.")
        if len(raw_name) > MOST_NAME:
            self.refuse(f"the name has {len(raw_name)} characters; expected at most {MOST_NAME}.")
        if not raw_name.isprintable() and any(unicodedata.category(letter) in ("Cc", "Cs") for letter in raw_name):
            self.refuse("the name holds control characters or is not UTF-8; rename the file and pack it again.")
        parts = raw_name.replace("\\", "/").split("/")
        name = "/".join(part for part in parts if part not in ("", "."))
        if (len(parts) > 1 and not parts[0]) or re.match("[A-Za-z]:", name):
            self.refuse("is an absolute path; expected paths inside the archive. Pack it again from inside its folder.")
        if ".." in parts:
            self.refuse("leads out of the archive through `..`; pack it again from inside its folder.")
        return name

    def take_file(self, name: str) -> bool:
        """Whether the file belongs to the data; refuses a second one of its name."""
        if not name:
            self.refuse("a file without a name.")
        litter = find_litter(name)
        if litter:
            self.left_out[litter] += 1
            return False
        folded = fold_name(name)
        if folded in self.folders:
            self.refuse(f"`{show_name(self.folders[folded])}` is both a file and a folder.")
        if folded in self.files:
            self.refuse_twin(name, self.files[folded])
        self.files[folded] = name
        self.take_folder(name.rpartition("/")[0])
        return True

    def take_folder(self, name: str) -> None:
        """Note a folder and those above it."""
        while name and self.folders.get(folded := fold_name(name)) != name:
            if folded in self.files:
                self.refuse(f"`{show_name(self.files[folded])}` is both a file and a folder.")
            if folded in self.folders:
                self.refuse_twin(name, self.folders[folded])
            self.folders[folded] = name
            name = name.rpartition("/")[0]

    def list_folder(self, name: str) -> None:
        """Note a folder that has an entry of its own."""
        if name and not find_litter(name):
            self.take_folder(name)
            self.listed_folders.append(name)

    def refuse_twin(self, name: str, other: str) -> NoReturn:
        """Refuse `name` because `other` is there."""
        if name == other:
            self.refuse("the archive holds two files of this name.")
        self.refuse(
            f"`{show_name(name)}` differs from `{show_name(other)}` only by case or Unicode form, so that many disks "
            "cannot hold both; rename one."
        )

    def list_notes(self) -> list[str]:
        """What a reader of the data should know: files left out, folders without files."""
        notes = describe_litter(self.left_out)
        filled: set[str] = set()
        for name in self.files.values():
            while (name := name.rpartition("/")[0]) and name not in filled:
                filled.add(name)
        empty = sorted({name for name in self.listed_folders if name not in filled})
        if empty:
            notes.append(f"{count_noun(len(empty), 'folder')} without files: {shorten(empty)}")
        return notes


def repack_archive(path: Path, target: Path, most_bytes: int) -> list[str]:
    """Check the archive `path` and copy its files, in its order, into the plain tar `target`; returns notes.

    `target` depends on the names and bytes of the members alone: PAX, mode 0644, no times, no owners. Memory stays flat
    but for the names, and half a kilobyte for each entry of a zip. Raises InputError for everything that is wrong with
    the archive, EnvironmentFault where a disk fails; no half `target` stays.
    """
    if not path.is_file():
        found = "not a file" if path.exists() else "not there"
        raise InputError(f"{path}: {found}; expected an archive: {TAKEN}.")
    inspection = Inspection(path, most_bytes)
    with closing(read_members(inspection)) as members:
        write_members(members, target)
    return inspection.list_notes()


def list_members(tar: Path) -> dict[str, FileSlice]:
    """The files of a tar that `write_members` wrote, by name, in its order; raises InputError where it is damaged."""
    try:
        with tar.open("rb") as file:
            return {name: FileSlice(tar, offset, size) for name, offset, size in read_headers(file)}
    except OSError as error:
        raise InputError(f"{tar}: cannot be read: {error.strerror}. Run the fetch stage again.") from error
    except DAMAGE as error:
        raise InputError(f"{tar}: is damaged: {error}. Run the fetch stage again.") from error


def write_members(members: Iterator[Member], target: Path) -> None:
    """Write a tar whose bytes depend on the members alone."""
    try:
        with report_write_errors(target) as need, target.open("wb") as out:
            for member in members:
                need.bytes = out.tell() + member.size
                out.write(make_pax_header(member.name, member.size))
                for block in member.blocks:
                    out.write(block)
                out.write(bytes(-member.size % tarfile.BLOCKSIZE))
            out.write(make_end(out.tell()))
    except BaseException:
        if target.is_file():
            target.unlink()
        raise


def make_pax_header(name: str, size: int) -> bytes:
    """The header of a regular file of mode 0644 that nobody owns, of 1970; an extended one where USTAR has no room."""
    if name.isascii() and len(name) <= tarfile.LENGTH_NAME and size < 8**11:
        return make_header(name, size)
    info = TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")


def make_end(position: int) -> bytes:
    """What follows the last member, which ends at `position`: two blocks of zeros, and more up to a whole record."""
    return bytes(2 * tarfile.BLOCKSIZE + -(position + 2 * tarfile.BLOCKSIZE) % tarfile.RECORDSIZE)


def read_headers(file: BufferedIOBase) -> Iterator[tuple[str, int, int]]:
    """Name, offset and bytes of each member that `write_members` wrote; raises one of DAMAGE for any other header.

    tarfile needs ten times as long, and takes a damaged header for the end.
    """
    position = 0
    while header := read_header(file):
        name, size = parse_header(header)
        if size < 0 or header != make_pax_header(name, size):  # below 0, it would lead back to itself for ever
            raise ReadError(f"what is at byte {position} is no header of ours")
        position += len(header)
        yield name, position, size
        position = file.seek(position + size + -size % tarfile.BLOCKSIZE)
    file.seek(position)
    if file.read() != make_end(position):
        raise ReadError(f"what follows byte {position} is not the end of a tar")


def read_header(file: BufferedIOBase) -> bytes:
    """The blocks that stand before a member's data; none at the end."""
    header = file.read(tarfile.BLOCKSIZE)
    if header[156:157] == tarfile.XHDTYPE:
        header += file.read(min(int(header[124:135], 8), MOST_HEADER) // -tarfile.BLOCKSIZE * -tarfile.BLOCKSIZE)
        header += file.read(tarfile.BLOCKSIZE)
    return header if any(header[:1]) else b""


def parse_header(header: bytes) -> tuple[str, int]:
    """The name and the size that a header states, or the extended one before it."""
    last = header[-tarfile.BLOCKSIZE :]
    name, size = last[: tarfile.LENGTH_NAME].rstrip(b"\0"), int(last[124:135], 8)
    if len(header) > tarfile.BLOCKSIZE:
        stated: dict[bytes, bytes] = dict(re.findall(rb"[0-9]+ (path|size)=([^\n]*)\n", header[: -tarfile.BLOCKSIZE]))
        name, size = stated.get(b"path", name), int(stated.get(b"size", size))
    return name.decode("utf-8"), size


def read_members(inspection: Inspection) -> Generator[Member]:
    """The files of the archive, whatever its kind, each to be read before the next is asked for."""
    path = inspection.path
    with report_damage(inspection):
        with path.open("rb") as file:
            head = file.read(tarfile.BLOCKSIZE)
        if head.startswith(ZIP_STARTS):
            yield from read_zip(inspection)
        else:
            opener = next((opener for start, opener in OPENERS.items() if head.startswith(start)), open_plain_tar)
            with opener(path) as file:
                yield from read_tar(TarStream(file, inspection), inspection)
        inspection.member = ""
        if not inspection.files:
            left_out = "".join(f" ({note})" for note in inspection.list_notes())
            inspection.refuse(f"holds no file{left_out}; expected images.")


def open_plain_tar(path: Path) -> BufferedIOBase:
    """Open a tar that is not compressed; raises InputError for what is no archive that is taken."""
    with path.open("rb") as file:
        head = file.read(tarfile.BLOCKSIZE)
    try:
        TarInfo.frombuf(head, "utf-8", "surrogateescape")  # old tars have a checksum but no magic bytes
    except HeaderError as error:
        if len(head) < tarfile.BLOCKSIZE or any(head):  # a block of zeros ends a tar, here an empty one
            known = (kind for start, kind in OTHER_KINDS.items() if head.startswith(start))
            found = f"is {next(known, 'no archive')}: it begins with {head[:16]!r}" if head else "is empty"
            raise InputError(f"{path}: {found}; expected {TAKEN}.") from error
    return path.open("rb")


@contextmanager
def report_damage(inspection: Inspection) -> Generator[None]:
    """Turn what the readers of archives raise into a message that names the archive and the member."""
    try:
        yield
    except UnicodeDecodeError as error:
        inspection.refuse(f"a name is not the UTF-8 that it is marked as: {error.object[:MOST_NAME]!r}.")
    except NotImplementedError as error:
        inspection.refuse(f"cannot be unpacked: {error}; pack it again with the usual compression (deflate).")
    except MemoryError:  # a header of a few bytes may ask for a dictionary of 4 GiB
        inspection.refuse("asks for more memory than there is; pack it again with a smaller dictionary (xz -6).")
    except DAMAGE as error:
        inspection.refuse(f"is damaged or cut off: {str(error) or 'it ends early'}. Get or pack the archive again.")
    except OSError as error:
        if error.errno in (None, errno.EINVAL):  # gzip and bz2 call damage so; zipfile seeks where a damaged zip says
            inspection.refuse(f"is damaged: {error}. Get or pack the archive again.")
        raise EnvironmentFault(f"{inspection.path}: cannot be read: {error.strerror}.") from error


def read_zip(inspection: Inspection) -> Iterator[Member]:
    """The files of a zip in the order of its directory."""
    with zipfile.ZipFile(inspection.path) as archive:
        entries = archive.infolist()
        check_count(len(entries), inspection)
        archive.NameToInfo.clear()  # half a kilobyte for each entry, given back on the way
        entries.reverse()
        while entries:
            info = entries.pop()
            raw_name = read_zip_name(info)
            name = inspection.enter(raw_name)
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind in UNIX_KINDS:
                inspection.refuse(f"is {UNIX_KINDS[kind]}; expected files. Pack the files themselves.")
            if raw_name.endswith(("/", "\\")) or kind == stat.S_IFDIR:
                if info.file_size:
                    inspection.refuse(
                        f"is a folder with {info.file_size} bytes of data. Get or pack the archive again."
                    )
                inspection.list_folder(name)
            elif inspection.take_file(name):
                if info.flag_bits & 0x1:
                    inspection.refuse("is encrypted; pack it again without a password.")
                with archive.open(info) as file:
                    # One compressed block of the rarer kinds may grow a thousandfold, so that less is read at once.
                    usual = info.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
                    blocks = read_zip_blocks(file, BLOCK if usual else 4096, info.file_size, inspection)
                    yield Member(name, info.file_size, blocks)


def check_count(found: int, inspection: Inspection) -> None:
    """Compare the entries with the number in the zip's last record: zipfile lets a damaged length swallow some.

    The record is 22 bytes and a comment of at most 65,535; the number is its sixth field (PKWARE, APPNOTE.TXT 4.3.16).
    """
    with inspection.path.open("rb") as file:
        file.seek(-min(inspection.packed, 22 + 65_535), os.SEEK_END)
        tail = file.read()
    at = tail.rfind(b"PK\x05\x06")
    (stated,) = struct.unpack_from("<H", tail, at + 10)
    if stated not in (0xFFFF, found % 2**16):  # 0xFFFF says that another record has it
        inspection.refuse(
            f"has {found} entries in its directory and {stated} at its end. Get or pack the archive again."
        )


def read_zip_name(info: zipfile.ZipInfo) -> str:
    """The name as it was meant: macOS writes UTF-8 without saying so, which zipfile reads as cp437."""
    if info.flag_bits & 0x800:
        return info.orig_filename
    try:
        return info.orig_filename.encode("cp437").decode("utf-8")
    except UnicodeError:
        return info.orig_filename


def read_zip_blocks(file: IO[bytes], length: int, size: int, inspection: Inspection) -> Iterator[bytes]:
    """The bytes of one member, whose checksum zipfile compares at the end."""
    with report_damage(inspection):
        found = 0
        while block := file.read(length):
            inspection.count_bytes(len(block))
            found += len(block)
            yield block
        if found != size:
            inspection.refuse(f"has {found} bytes, though the archive says {size}. Get or pack the archive again.")


class TarStream:
    """The unpacked bytes of a tar: forward only, counted, and never many at once."""

    def __init__(self, file: BufferedIOBase, inspection: Inspection) -> None:
        self.file = file
        self.inspection = inspection
        self.last = b""
        self.position = 0

    def take(self, length: int) -> bytes:
        """The next `length` bytes, fewer at the end."""
        self.last = self.file.read(length)
        self.position += len(self.last)
        self.inspection.count_bytes(len(self.last))
        return self.last

    def read(self, length: int) -> bytes:
        """What tarfile reads: headers."""
        if not 0 <= length <= MOST_HEADER:
            self.inspection.refuse(f"has a header of {length} bytes; expected at most {MOST_HEADER}.")
        return self.take(length)

    def tell(self) -> int:
        """Bytes taken so far."""
        return self.position

    def seek(self, position: int) -> None:
        """Read on to `position`, or to the end where that comes first."""
        while self.position < position and self.take(min(BLOCK, position - self.position)):
            pass


def read_tar(stream: TarStream, inspection: Inspection) -> Iterator[Member]:
    """The files of a tar in its order."""
    file = cast("IO[bytes]", stream)
    try:
        archive = TarFile(fileobj=file, encoding="utf-8", errors="surrogateescape")
    except ReadError as error:
        if not stream.position:  # what unpacks it found damage
            raise
        while stream.take(BLOCK):  # so that damage found further on is called damage
            pass
        inspection.refuse(f"what it holds does not begin as a tar does ({error}); expected {TAKEN}.")
    while info := archive.next():
        archive.members.clear()  # pyright: ignore[reportAttributeAccessIssue] it would grow with every member
        name = inspection.enter(info.name)
        if info.isdir():
            inspection.list_folder(name)
        elif info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE) or info.issparse():
            kind = TAR_KINDS.get(
                info.type, "a sparse file" if info.issparse() else f"of the unknown kind {info.type!r}"
            )
            inspection.refuse(f"is {kind}; expected files. Pack the files themselves ({PLAIN_TAR}).")
        elif info.size < 0:
            inspection.refuse(f"has {info.size} bytes, the archive says. Get or pack the archive again.")
        elif inspection.take_file(name):
            yield Member(name, info.size, read_tar_blocks(stream, info.size, inspection))
        inspection.between = True
    check_end(stream, inspection)


def read_tar_blocks(stream: TarStream, size: int, inspection: Inspection) -> Iterator[bytes]:
    """The `size` bytes that follow a header."""
    with report_damage(inspection):
        left = size
        while left:
            block = stream.take(min(BLOCK, left))
            if not block:
                raise EOFError(f"{left} of {size} bytes are missing")
            left -= len(block)
            yield block


def check_end(stream: TarStream, inspection: Inspection) -> None:
    """Read all that follows the last file, to its end, so that the compression's checksum is compared too.

    tarfile takes the end of the file and a damaged header for the end of a tar, which is two blocks of zeros.
    """
    if len(stream.last) == tarfile.BLOCKSIZE and any(stream.last):
        raise ReadError("what follows is no header")
    if not (len(stream.last) == len(stream.take(tarfile.BLOCKSIZE)) == tarfile.BLOCKSIZE):
        raise ReadError("the two blocks of zeros at its end are missing")
    while stream.last:
        if stream.last.strip(b"\0"):
            inspection.refuse("data follows the end of the tar; where tars were joined, pack their files as one.")
        stream.take(BLOCK)
