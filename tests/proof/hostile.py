"""Inputs as nobody should bring them: valid small ones with a few changes, and such as follow a format's own rules.

Random bytes are refused by the first check and prove little. So the parts are drawn as the format has them (headers
with a right checksum, directories, quoted cells, anchors), each with values that lead astray, and changed afterwards.
"""

import bz2
import gzip
import io
import lzma
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from random import Random

import pyarrow as pa
from hypothesis import strategies as st
from pyarrow import parquet

Strategy = st.SearchStrategy
Inputs = Strategy[bytes]

NUMBERS = [
    *(0, 1, 2, 7, 255, 256, 511, 512, 513, 65_535, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1),
]
LONG_NUMBER = b"9" * 5000  # more digits than Python turns into an int
EDITS = ("flip", "cut", "insert", "repeat", "put", "end", "move")


def change(data: bytes, kind: str, at: int, length: int, text: bytes) -> bytes:
    """One edit at `at`, which may be larger than the data."""
    at %= len(data) + 1
    if kind == "flip":
        return data[:at] + bytes(byte ^ 1 << length % 8 for byte in data[at : at + 1]) + data[at + 1 :]
    if kind == "cut":
        return data[:at] + data[at + length :]
    if kind == "insert":
        return data[:at] + text + data[at:]
    if kind == "repeat":
        return data[:at] + data[at : at + length] * 3 + data[at + length :]
    if kind == "put":
        return data[:at] + text + data[at + len(text) :]
    if kind == "end":
        return data[:at]
    return data[at : at + length] + data[:at] + data[at + length :]


def change_often(data: bytes, edits: Sequence[tuple[str, int, int, bytes]]) -> bytes:
    for kind, at, length, text in edits:
        data = change(data, kind, at, length, text)
    return data


def vary(data: bytes, words: Sequence[bytes], seed: int, count: int) -> Iterator[bytes]:
    """The data as they are, then changed in one to three places each; `words` mean something in the format.

    Hypothesis takes milliseconds to draw an input, and a change takes microseconds.
    """
    random = Random(seed)
    yield data
    for _ in range(count - 1):
        yield change_often(
            data,
            [
                (random.choice(EDITS), random.randrange(len(data) + 1), random.randrange(200), random.choice(words))
                for _ in range(random.choice((1, 1, 2, 3)))
            ],
        )


def draw_edits(words: Sequence[bytes], most: int = 3) -> Strategy[list[tuple[str, int, int, bytes]]]:
    """A few edits whose texts are mostly `words`."""
    texts = st.sampled_from(words) | st.binary(max_size=6)
    return st.lists(
        st.tuples(st.sampled_from(EDITS), st.integers(0, 2**14), st.integers(0, 600), texts), min_size=0, max_size=most
    )


def edit(inputs: Inputs, words: Sequence[bytes], most: int = 3) -> Inputs:
    """The inputs, each changed in a few places."""
    return st.builds(change_often, inputs, draw_edits(words, most))


# Tables

HEADERS = [
    *("path", "file", "File Name", "filepath", "image_id", "label", "Class Label", "class", "target", "y"),
    *("split", "subset", "group", "group_id", "shard", "offset", "length", "pixel_sha256", "width", "", " "),
    *("é", "user:x"),
]
CELLS = [
    *("a.png", "cats/b.png", "b", "cats\\b.png", "./a.png", "", " ", "NA", "null", "007", "1e5", "-1", "0", "1"),
    *("99999", "²", "١", "train", "val", "Testing", "../a.png", "../../out.png", "/etc/passwd", "C:\\a.png"),
    *("//host/a", "..", ".", 'say "hi"', "a,b", "a;b", "a\nb", "a\rb", "\ufeffa", "é", "e\u0301", "=cmd()"),
    *("\x07", "\u2028", "a" * 300, "NaN", "inf", "0" * 64, "f" * 64, "CON", "a/" * 400, "%2e%2e/a.png"),
    *("two.tar", "1.5", str(10**17), str(2**63)),
]
RARE_CELLS = ["\0", LONG_NUMBER.decode(), "x" * 131_073]
TABLE_WORDS = [
    *(b'"', b'""', b",", b";", b"\t", b"\n", b"\r\n", b"\r", b"\0", b"\xff", b"\xef\xbb\xbf", b"../"),
    *(b"\xed\xa0\x80",),
]
CODECS = ["utf-8"] * 30 + ["utf-8-sig", "utf-16", "latin-1"]
LINE_ENDS = ["\n"] * 20 + ["\r\n", "\r", "\n\n"]
DELIMITERS = [","] * 20 + [";", "\t", "|"]


def quote(cell: str, always: bool, delimiter: str) -> str:
    needs = always or any(letter in cell for letter in f'"\r\n{delimiter}')
    return f'"{cell.replace(chr(34), chr(34) * 2)}"' if needs else cell


def write_table(
    header: Sequence[str], cells: Sequence[str], more: int, delimiter: str, line_end: str, codec: str, always: bool
) -> bytes:
    """Rows of as many cells as the header has, and so many more; quotes always, or where they are needed."""
    width = max(len(header) + more, 1)
    rows = [header, *(cells[first : first + width] for first in range(0, len(cells) - width + 1, width))]
    lines = [delimiter.join(quote(cell, always, delimiter) for cell in row) for row in rows]
    return (line_end.join(lines) + line_end).encode(codec, "replace")


def draw_cells(cells: Sequence[str]) -> Strategy[str]:
    """Mostly one of `cells`, now and then one that is rare, or any text."""
    listed = st.sampled_from([*cells] * 6 + RARE_CELLS)
    return st.integers(0, 9).flatmap(
        lambda place: listed if place else st.text(st.characters(codec="utf-8"), max_size=4)
    )


def draw_tables(headers: Sequence[str] = HEADERS, cells: Sequence[str] = CELLS) -> Inputs:
    """A table with a header, whose rows mostly have as many cells, as one program or another would write it."""
    names = st.lists(st.sampled_from(headers), min_size=1, max_size=5)
    return st.builds(
        write_table,
        st.integers(0, 9).flatmap(
            lambda place: st.lists(st.sampled_from(headers), min_size=1, max_size=5, unique=True) if place else names
        ),
        st.lists(draw_cells(cells), max_size=16),
        st.sampled_from([0] * 20 + [1, -1]),
        st.sampled_from(DELIMITERS),
        st.sampled_from(LINE_ENDS),
        st.sampled_from(CODECS),
        st.booleans(),
    )


def draw_filled(columns: Mapping[str, Sequence[str]]) -> Inputs:
    """A table with these columns, whose cells are some of those that are given for each."""
    rows = st.lists(st.tuples(*map(st.sampled_from, columns.values())), min_size=1, max_size=4)
    return rows.map(lambda cells: write_table([*columns], [*chain(*cells)], 0, ",", "\n", "utf-8", False))


# JSON, alone and inside other files

JSON_WORDS = [
    *(b"null", b"true", b"NaN", b"1e999", b"-1", b"0", b"1", b'""', b'"x"', b"[]", b"{}", b"[" * 300),
    *(b'{"a":' * 300, b'"\\ud800"', b"\0", b"\xff", b",", b":", b"}", b"]", b'"', b"9" * 30, LONG_NUMBER),
    *(b'"L"', b'"RGB"', b'"none"', b'"imagenet"', b"3", b"2.5", b'"softmax"', b'"mlp"', b'"cnn"'),
    *(b'"simplenet"', b'"resnet_small"', b'"hidden"', b'"base"', b'"dropout"', b'"width"', b"\n"),
]


# Parquet: columns of every type, and a description by pandas that need not fit them


def make_columns() -> list[pa.Array]:
    """Two rows of every type that a column of a table may have, and of text that is not UTF-8."""
    broken = pa.py_buffer(b"\xff\xfea.png")
    places = pa.py_buffer(struct.pack("<3i", 0, 2, 7))
    return [
        *(
            pa.array(["a.png", "é"]),
            pa.array(["b", None]),
            pa.array(["", "\0"]),
            pa.array(["x", "y"]).dictionary_encode(),
        ),
        *(pa.array([1, None]), pa.array([2**64 - 1, 0], pa.uint64()), pa.array([0.5, float("nan")]), pa.nulls(2)),
        *(pa.array([b"\xff", b""]), pa.array([[1], []]), pa.array([{"a": 1}, None]), pa.array([True, False])),
        *(pa.array([10**15, None], pa.timestamp("s")), pa.array([-(2**31), 2**31 - 1], pa.int32()).cast(pa.date32())),
        *(
            pa.array([1, 2**62], pa.duration("s")),
            pa.array([0, 86_399], pa.time32("s")),
            pa.array([1, 2]).cast(pa.float16()),
        ),
        *(pa.array([1, 2]).cast(pa.decimal128(38, 10)), pa.array([0, 1], pa.timestamp("us", "Mars/Olympus"))),
        *(pa.StringArray.from_buffers(2, places, broken), pa.array(["a.png", "b.png"], pa.large_string())),
    ]


def write_parquet(names: Sequence[str], columns: Sequence[pa.Array], description: bytes) -> bytes:
    table = pa.table(columns, names[: len(columns)]).replace_schema_metadata({"pandas": description})
    out = io.BytesIO()
    parquet.write_table(table, out, store_schema=False)
    return out.getvalue()


def draw_parquets(description: bytes) -> Inputs:
    """`description` is what pandas says of a table with the columns `path`, `label` and an index."""
    names = st.lists(st.sampled_from([*HEADERS, "path", "label", "__index_level_0__"]), min_size=4, max_size=4)
    columns = st.lists(st.sampled_from(make_columns()), min_size=1, max_size=4)
    return st.builds(write_parquet, names, columns, edit(st.just(description), JSON_WORDS))


# YAML

SCALARS = [
    *("1", "-1", "1.5", "1e-3", "1e400", ".nan", ".inf", "0x1f", "0x", "0o8", "1_0", "017", "true", "no", "~"),
    *("null", "", "2024-02-30", "2024-01-02T25:00:00", "12:30:45", "text", "'q'", '"q"', '"\\ud800"'),
    *('"\\UFFFFFFFF"', '"\\x0"', '"\\q"', "&a x", "*a", "*b", "<<", "!!int x", "!!float x", "!!bool x"),
    *("!!binary x", "!!python/object:os.system x", "!x y", "!!timestamp x", "!!null x", "!!str [1]"),
    *("!!set {a, b}", "!!omap [a: 1]", "!!pairs [a: 1]", "!<tag:x> y", "!<", "!%zz x", "|", ">", "|9"),
    *(">-\n   x", "'", '"', "[", "]", "{", "}", "[]", "{}", "[1, *a]", "&a [*a]", "&a {b: *a}", "{<<: *a}"),
    *("&a {<<: *a}", "? x", "- 1", "x: y", "# x", "@", "`", "%", "%YAML 1.1", "---", "...", "\t", "\u0085"),
    *("\u2028", "é", "cnn", "folder", "{1: 2}", "{[1]: 2}", "{? {a: 1} : 2}", "{null: 1}", "{true: 1, 1: 2}"),
    *("9" * 5000, "0x" + "f" * 5000, "x" * 2000, "-0", "+", "1e", "1e9999999999", "1:2:3:4", "=", "!!value ="),
    *("!!merge <<", "_", "0b2", "-.inf", "1.e+"),
]
KEYS = [
    *("fetch", "split", "balance", "train", "run", "source", "max_ratio", "seed", "x", "<<", "1", "? a"),
    *('"\\ud800"', "&a k", "*a", ""),
]
YAML_WORDS = [scalar.encode() for scalar in SCALARS if len(scalar) < 100]
YAML_WORDS += [
    *(b": ", b"\n", b"\n  ", b"  ", b"\t", b"- ", b"? ", b"&a ", b"*a", b"\0", b"\xff", b"\xef\xbb\xbf", b"#", b", "),
]


def nest(opening: str, depth: int, closing: str) -> str:
    return opening * depth + closing * depth


def laugh(levels: int, width: int) -> str:
    """Each line holds the one above `width` times: a few hundred bytes that are millions of values."""
    above = [", ".join([f"*a{level}"] * width) for level in range(levels - 1)]
    return "\n".join(["a0: &a0 [x]", *(f"a{level}: &a{level} [{names}]" for level, names in enumerate(above, start=1))])


DEEP = [
    *(nest(opening, depth, closing) for depth in (5, 50) for opening, closing in ("[]", "{}")),
    *(nest(opening, depth, "") for depth in (5, 50) for opening in ("[", "- ", "{a: ", "? ", "!a ", "a: [")),
    *("\n".join(f"{' ' * level}a:" for level in range(depth)) for depth in (30, 700)),
    *(f"balance: {line}" for line in ("[[[[[[[[[[1]]]]]]]]]]", "{max_ratio: &a [*a]}", "&a {max_ratio: *a, <<: *a}")),
    *(laugh(levels, 9) for levels in (3, 9, 30)),
    *(laugh(30, 9) + "\nbalance: *a29",),
    *(laugh(12, 9) + "\nbalance: {max_ratio: *a11, on_violation: *a11, max_drift: *a11}",),
    *(laugh(30, 9) + "\nbalance: {<<: [*a29, *a29]}",),
]


def write_pairs(pairs: Sequence[tuple[int, str, str]]) -> bytes:
    return "\n".join(f"{'  ' * indent}{key}: {value}" for indent, key, value in pairs).encode()


def draw_yaml(originals: Sequence[bytes]) -> Inputs:
    """Sections with a few changes, lines of odd keys and values, and what is deep or larger than it looks."""
    scalar = st.sampled_from(SCALARS)
    lines = st.lists(st.tuples(st.integers(0, 2), st.sampled_from(KEYS), scalar), min_size=1, max_size=5)
    sections = st.sampled_from(originals)
    values = st.builds(
        put_value, st.sampled_from(originals), st.lists(st.tuples(st.integers(0, 99), scalar), max_size=3)
    )
    odd = lines.map(write_pairs)
    return st.one_of(sections, values, odd, st.sampled_from(DEEP).map(str.encode))


def put_value(section: bytes, changes: Sequence[tuple[int, str]]) -> bytes:
    """The section with the values of some lines replaced."""
    lines = section.split(b"\n")
    for line, scalar in changes:
        key, colon, _ = lines[line % len(lines)].partition(b": ")
        if colon:
            lines[line % len(lines)] = key + colon + scalar.encode()
    return b"\n".join(lines)


# Tars

OUTSIDE = "imagepipe-was-here"  # what a name that leads away would be called
GOOD_NAMES = [f"cats/{number}.png".encode() for number in range(60)]
NAMES = [
    *(b"a.png", b"cats/a.png", b"cats/A.png", b"cats", b"cats/", b"./b.png", b"b//c.png", b".hidden"),
    *(b"__MACOSX/a", b"", f"../{OUTSIDE}".encode(), f"cats/../../{OUTSIDE}".encode()),
    *(f"/tmp/{OUTSIDE}".encode(), f"..\\{OUTSIDE}".encode(), b".", b"..", b"/", b"C:\\a", b"c:a", b"\xff.png"),
    *("é.png".encode(), "e\u0301.png".encode(), b"a\nb", b"a\x07", b"x" * 100),
]
TAR_KINDS = [b"0"] * 60 + [bytes([kind]) for kind in b"\x0012345671DxgLKSVMXZ"]
TAR_SIZES = [
    *(b"-1", b"99", b" 12", b"7" * 12, b"\xff" * 12, b"\x80" + b"\xff" * 11, b"\x80" + bytes(10) + b"\x05"),
    *(b"1_0", b"0x5", b""),
]
TAR_MAGICS = [b"ustar\x0000"] * 12 + [b"ustar  \0", bytes(8), b"ustar\x0099"]
PAX_KEYS = [
    *(b"path", b"size", b"linkpath", b"hdrcharset", b"mtime", b"uid"),
    *(b"GNU.sparse.map", b"GNU.sparse.size", b"GNU.sparse.major", b"GNU.sparse.minor", b"GNU.sparse.name"),
    *(b"GNU.sparse.numblocks", b"GNU.sparse.offset", b"GNU.sparse.numbytes", b"GNU.sparse.realsize"),
]
PAX_VALUES = [
    *(b"1", b"0", b"-5", b"5", b"1e9", b"BINARY", b"0,1", b"1,0,,", b"nan", b"inf", b"", b"\0", b"\xff"),
    *(LONG_NUMBER, *NAMES),
]
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    "gz": lambda data: gzip.compress(data, 1, mtime=0),
    "xz": lambda data: lzma.compress(data, preset=0),
    "bz2": lambda data: bz2.compress(data, 1),
}
PACK_WORDS = [
    *(b"\0", b"\xff", b"\xff\xff\xff\xff", b"PK\3\4", b"PK\1\2", b"PK\5\6", b"ustar", b"\x1f\x8b\x08", b"BZh9"),
    *(b"../",),
]
PACK_WORDS += [bytes(512), b"\0" * 22]


def make_block(name: bytes, size: bytes, kind: bytes, link: bytes, magic: bytes, sound: bool) -> bytes:
    """A header of a tar as its fields are given, with the checksum that they have, unless it is not `sound`."""
    fields = [
        *(name[:100].ljust(100, b"\0"), b"0000644\0", b"0000000\0", b"0000000\0", size[:12].ljust(12, b"\0")),
        *(
            b"00000000000\0",
            b" " * 8,
            kind,
            link[:100].ljust(100, b"\0"),
            magic,
            bytes(64),
            b"0000000\0" * 2,
            bytes(167),
        ),
    ]
    head = b"".join(fields)
    checksum = b"%06o\0 " % (sum(head) + (not sound))
    return head[:148] + checksum + head[156:]


def make_records(records: Sequence[tuple[int, bytes, bytes]]) -> bytes:
    """The data of an extended header; each record states its own length, wrong by so many bytes."""
    parts: list[bytes] = []
    for wrong, key, value in records:
        rest = b" %s=%s\n" % (key, value)
        length = len(rest) + len(str(len(rest) + 3))
        parts.append(b"%d%s" % (length + wrong, rest))
    return b"".join(parts)


def draw_names() -> Strategy[list[bytes]]:
    """Some names, mostly good ones, mostly each once."""
    names = st.sampled_from(GOOD_NAMES * 2 + NAMES)
    return st.integers(0, 9).flatmap(lambda place: st.lists(names, min_size=1, max_size=4, unique=place > 0))


@st.composite
def draw_tar_member(draw: st.DrawFn, name: bytes) -> bytes:
    kind = draw(st.sampled_from(TAR_KINDS))
    if kind in b"xgX":
        wrong = st.sampled_from([0] * 12 + [1, -1, -100, 5000])
        data = make_records(
            draw(st.lists(st.tuples(wrong, st.sampled_from(PAX_KEYS), st.sampled_from(PAX_VALUES)), max_size=3))
        )
    elif kind in b"LK":
        data = draw(st.sampled_from(NAMES)) * draw(st.sampled_from([1, 1, 2, 400]))
    else:
        data = bytes(draw(st.sampled_from([0, 1, 3, 512, 513, 1200]))) if draw(st.booleans()) else b"data"
    odd = draw(st.integers(0, 19)) == 0
    size = draw(st.sampled_from(TAR_SIZES)) if odd else b"%011o\0" % len(data)
    sound = draw(st.integers(0, 39)) > 0
    head = make_block(name, size, kind, draw(st.sampled_from(NAMES)), draw(st.sampled_from(TAR_MAGICS)), sound)
    return head + data + bytes(-len(data) % 512)


def finish_tar(members: Sequence[bytes], end: int) -> bytes:
    return b"".join(members) + bytes(512) * end


def draw_tars(packing: str) -> Inputs:
    """Tars, packed so, of which half were damaged before."""
    ends = st.sampled_from([2] * 20 + [0, 1, 18])
    members = draw_names().flatmap(lambda names: st.tuples(*map(draw_tar_member, names)))
    tars = st.builds(finish_tar, members, ends)
    return st.one_of(tars, edit(tars, PACK_WORDS)).map(PACKERS[packing])


# Zips

METHODS = [0] * 16 + [8] * 16 + [9, 12, 14, 99]
ZIP_WORDS = [*PACK_WORDS, *(struct.pack("<Q", number % 2**64)[:length] for number in NUMBERS for length in (2, 4, 8))]
EXTRAS = [
    *(*[b""] * 20, b"\1\0\x18\0" + b"\xff" * 24, b"\1\0\x10\0" + bytes(16), b"\1\0", b"\1\0\xff\xff"),
    *(b"\x75\x70\5\0\1\0\0\0\0",),
]
ZIP_DATA = [b"", b"data", bytes(600), b"x" * 70_000, bytes(3_000_000)]  # the last one is a small bomb
MODES = [0] * 30 + [0o100644] * 10 + [0o100644, 0o120777, 0o020000, 0o060000, 0o010000, 0o140000, 0o040755]


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of a zip: what its local header and its place in the directory say of it, alike."""

    name: bytes
    data: bytes
    method: int
    flags: int
    extra: bytes
    mode: int

    def pack(self) -> bytes:
        squeeze = zlib.compressobj(1, zlib.DEFLATED, -15)
        return self.data if self.method == 0 else squeeze.compress(self.data) + squeeze.flush()

    def describe(self, packed: bytes) -> bytes:
        """The fields that both have."""
        sizes = (zlib.crc32(self.data), len(packed), len(self.data), len(self.name), len(self.extra))
        return struct.pack("<4H3L2H", self.flags, self.method, 0, 0x21, *sizes)


def draw_entry(name: bytes) -> Strategy[Entry]:
    return st.builds(
        Entry,
        name=st.just(name),
        data=st.sampled_from(ZIP_DATA[:-1] * 6 + ZIP_DATA[-1:]),
        method=st.sampled_from(METHODS),
        flags=st.sampled_from([0] * 20 + [0x800] * 10 + [1, 8, 0x20, 0x40, 0x2000]),
        extra=st.sampled_from(EXTRAS),
        mode=st.sampled_from(MODES),
    )


def write_zip(
    entries: Sequence[Entry], lies: Sequence[tuple[int, bytes]], shift: int, more: int, comment: bytes, junk: bytes
) -> bytes:
    """The files, then the directory with some `lies` in it; the end states its place and count, wrong by so much."""
    files, directory = b"", b""
    for entry in entries:
        packed = entry.pack()
        shared = entry.describe(packed)
        place = struct.pack("<3H2L", 0, 0, 0, entry.mode << 16, len(files))
        directory += struct.pack("<4s2H", b"PK\1\2", 0x314, 20) + shared + place + entry.name + entry.extra
        files += struct.pack("<4sH", b"PK\3\4", 20) + shared + entry.name + entry.extra + packed
    for at, text in lies:
        directory = change(directory, "put", at, 0, text)
    stated, start = max(len(entries) + more, 0) % 2**16, max(len(files) + shift, 0)
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, stated, stated, len(directory), start, len(comment))
    return junk + files + directory + end + comment


def draw_zips() -> Inputs:
    lies = [(number % 2**64).to_bytes(8, "little")[:length] for number in NUMBERS for length in (1, 2, 4)]
    return st.builds(
        write_zip,
        draw_names().flatmap(lambda names: st.tuples(*map(draw_entry, names))),
        st.lists(st.tuples(st.integers(0, 200), st.sampled_from(lies)), max_size=2),
        shift=st.sampled_from([0] * 20 + [-1, 5, 2**31]),
        more=st.sampled_from([0] * 20 + [-1, 1, 0xFFF0]),
        comment=st.sampled_from([b"", b"", b"PK\5\6", b"c" * 300]),
        junk=st.sampled_from([b""] * 20 + [b"MZ junk", bytes(30)]),
    )


# IDX

IDX_WORDS = [b"\0\0\x08\x03", b"\0\0\x0e\x01", b"\0\0\x0d\xff", b"\xff" * 4, b"\0\0\0\0", b"\0\0\0\1", b"\0\1\0\0"]


@st.composite
def draw_idx(draw: st.DrawFn) -> bytes:
    """A header whose sizes mostly agree with the values that follow."""
    shape = draw(st.lists(st.sampled_from([0, 1, 1, 2, 3, 2**32 - 1]), max_size=5))
    shape += [draw(st.sampled_from([0, 1]))] * draw(st.sampled_from([0] * 8 + [60, 200]))
    code, width = draw(st.sampled_from([(8, 1), (9, 1), (11, 2), (12, 4), (13, 4), (14, 8), (7, 1)]))
    count = 1
    for side in shape:
        count *= side
    values = Random(0).randbytes(count * width if count < 200 else 9)
    return bytes([0, 0, code, len(shape)]) + struct.pack(f">{len(shape)}L", *shape) + values
