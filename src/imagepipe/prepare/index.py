"""What is known of many images, in columns: 200 bytes for each, so that a million fit; and the index that keeps it.

The index is an Arrow file inside the image folder, sealed by its hash: what is read back is believed only when nobody
touched it, and only as far as it was made in the present way.
"""

import io
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from imagepipe.core.files import write_blocks, write_text
from imagepipe.core.hashes import hash_file
from imagepipe.prepare.images import ImageFacts, name_mode, sum_channels
from imagepipe.prepare.lookalikes import fingerprint_image

INDEX = "index.arrow"
SEAL = "index.arrow.sha256"
BATCH = 2**16  # rows that are packed at a time
RECIPE = b"recipe"  # in the file's metadata: the way in which the images were made

MODES = ("L", "RGB")
FACTS = np.dtype(
    [
        ("source_sha256", "V32"),  # of what the image was made from
        ("content_sha256", "V32"),
        ("pixel_sha256", "V32"),
        ("png_sha256", "V32"),
        ("width", "<i4"),
        ("height", "<i4"),
        ("mode", "<i4"),  # place in MODES
        ("pixel_sums", "<i8", (3,)),
        ("pixel_squares", "<i8", (3,)),
        ("fingerprint", "<u8"),
        ("fingerprinted", "<i4"),
        ("length", "<i8"),  # bytes of the PNG
    ]
)


@dataclass(slots=True)
class ImageTable:
    """One row of FACTS for each image, and its remark where it has one (by row)."""

    rows: NDArray[np.void]
    remarks: dict[int, str] = field(default_factory=dict[int, str])

    @classmethod
    def of_size(cls, count: int) -> "ImageTable":
        """A table of `count` rows of zeros."""
        return cls(np.zeros(count, FACTS))

    def get(self, row: int) -> ImageFacts:
        """The facts of one row."""
        values = self.rows[row]
        channels = 1 if values["mode"] == MODES.index("L") else 3
        return ImageFacts(
            values["content_sha256"].tobytes().hex(),
            values["pixel_sha256"].tobytes().hex(),
            int(values["width"]),
            int(values["height"]),
            MODES[values["mode"]],
            tuple(values["pixel_sums"][:channels].tolist()),
            tuple(values["pixel_squares"][:channels].tolist()),
            f"{int(values['fingerprint']):016x}" if values["fingerprinted"] else "",
            self.remarks.get(row, ""),
        )


def put_facts(rows: NDArray[np.void], images: Sequence[NDArray[np.uint8]]) -> None:
    """Set in rows of FACTS (N,) what the pixels tell, but for their hash: of N images (H, W) or (H, W, 3)."""
    places_of: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for place, pixels in enumerate(images):
        places_of[pixels.shape].append(place)
    for shape, places in places_of.items():  # at once: for digits, a tenth of the time of one by one
        rows["height"][places], rows["width"][places] = shape[:2]
        rows["mode"][places] = MODES.index(name_mode(images[places[0]]))
        sums, squares = sum_channels(np.stack([images[place] for place in places]))
        rows["pixel_sums"][places, : sums.shape[1]] = sums
        rows["pixel_squares"][places, : sums.shape[1]] = squares
    fingerprints = [fingerprint_image(pixels) for pixels in images]
    rows["fingerprint"] = [int(fingerprint or "0", 16) for fingerprint in fingerprints]
    rows["fingerprinted"] = [bool(fingerprint) for fingerprint in fingerprints]


def pack_hashes(hashes: Sequence[bytes]) -> NDArray[np.void]:
    """Hashes of 32 bytes as a column of FACTS, (N,)."""
    return np.frombuffer(b"".join(hashes), "V32")


class Facts(Mapping[str, ImageFacts]):
    """Key → facts, made of the table's columns when they are asked for."""

    def __init__(self, table: ImageTable, row_of: Mapping[str, int], usable: NDArray[np.bool_]) -> None:
        self.table = table
        self.row_of = row_of
        self.usable = usable

    def __getitem__(self, key: str) -> ImageFacts:
        row = self.row_of[key]
        if not self.usable[row]:
            raise KeyError(key)
        return self.table.get(row)

    def __iter__(self) -> Iterator[str]:
        return (key for key, row in self.row_of.items() if self.usable[row])

    def __len__(self) -> int:
        return int(np.count_nonzero(self.usable))

    def __contains__(self, key: object) -> bool:
        return key in self.row_of and bool(self.usable[self.row_of[key]])  # pyright: ignore[reportArgumentType]

    def map_hashes(self, column: str) -> "Hashes":
        """Key → one of the hashes."""
        return Hashes(self, np.ascontiguousarray(self.table.rows[column]).tobytes())

    def map_fingerprints(self) -> dict[str, str]:
        """Key → fingerprint, of the images that have one."""
        rows = self.table.rows
        if not rows["fingerprinted"].any():
            return {}
        shown = zip(self.row_of, rows["fingerprinted"].tolist(), rows["fingerprint"].tolist(), strict=True)
        return {key: f"{value:016x}" for key, there, value in shown if there}

    def take_rows(self, keys: Sequence[str]) -> NDArray[np.void]:
        """The rows of FACTS of some keys, in that order; those of all are not copied."""
        if len(keys) == len(self.row_of) and list(keys) == list(self.row_of):
            return self.table.rows
        places = np.fromiter((self.row_of[key] for key in keys), np.int64, len(keys))
        return self.table.rows[places]


class Hashes(Mapping[str, str]):
    """Key → a hash in hexadecimal digits, made when it is asked for: a million of them would take 110 MB."""

    def __init__(self, facts: Facts, column: bytes) -> None:
        self.facts = facts
        self.column = column

    def __getitem__(self, key: str) -> str:
        row = self.facts.row_of[key]
        return self.column[32 * row : 32 * row + 32].hex()

    def __iter__(self) -> Iterator[str]:
        return iter(self.facts)

    def __len__(self) -> int:
        return len(self.facts)


def list_hashes(hashes: NDArray[np.void]) -> list[str]:
    """Hashes of 32 bytes, (N,), as hexadecimal digits."""
    digits = np.ascontiguousarray(hashes).tobytes().hex()
    return [digits[first : first + 64] for first in range(0, len(digits), 64)]


@dataclass(frozen=True, slots=True)
class Places:
    """Where the PNG of each image is below the image folder.

    `files` (N,) are the paths of files, '' where no PNG is kept; with shards those of the tars, and `offsets` (N,) says
    where in them the PNG begins, else 0.
    """

    files: NDArray[np.object_]
    offsets: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Index:
    """The index as it was read: keys, sorted, with what is known of them and where their PNGs are."""

    keys: "pa.ChunkedArray[Any]"
    table: ImageTable
    places: Places

    def find_rows(self, keys: Sequence[str]) -> NDArray[np.int64]:
        """The row of each key, -1 where the index has none."""
        found = pc.call_function("index_in", [pa.array(keys, pa.string())], pc.SetLookupOptions(self.keys))
        return found.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)


def write_index(
    folder: Path, recipe: str, keys: Sequence[str], table: ImageTable, places: Places, rows: NDArray[np.int64]
) -> None:
    """Write the index of `folder` and its seal, the seal last.

    What is written is of `rows`, in their order; `keys` (sorted), `table` and `places` hold them and others.
    """
    write_blocks(folder / INDEX, pack_index(recipe, keys, table, places, rows))
    write_text(folder / SEAL, hash_file(folder / INDEX) + "\n")


def pack_index(
    recipe: str, keys: Sequence[str], table: ImageTable, places: Places, rows: NDArray[np.int64]
) -> Iterator[bytes]:
    """The bytes of the index, a batch of rows at a time: all at once would take several times their memory."""
    file = io.BytesIO()
    schema = make_schema().with_metadata({RECIPE: recipe.encode()})
    with pa.ipc.new_file(pa.PythonFile(file, "w"), schema) as writer:
        for first in range(0, len(rows), BATCH):
            batch = rows[first : first + BATCH]
            columns: dict[str, Any] = {
                "key": pa.array([keys[row] for row in batch.tolist()], pa.string()),
                "path": pa.array(places.files[batch], pa.string()),
                "offset": pa.array(places.offsets[batch]),
                "remark": pa.array([table.remarks.get(row) for row in batch.tolist()], pa.string()),
            }
            for name in FACTS.names or ():
                columns[name] = pack_column(table.rows[name][batch])
            writer.write_table(pa.table(columns).select(schema.names))
            yield take_bytes(file)
    yield take_bytes(file)


def make_schema() -> Any:
    """The columns of the index, as an Arrow schema."""
    columns: dict[str, Any] = {"key": pa.string(), "path": pa.string(), "offset": pa.int64()}
    columns |= {name: pack_column(np.zeros(0, FACTS)[name]).type for name in FACTS.names or ()}
    return pa.schema([*columns.items(), ("remark", pa.string())])


def take_bytes(file: io.BytesIO) -> bytes:
    """What was written since it was asked for last; the place in the file goes on, as Arrow counts it by itself."""
    data = file.getvalue()
    file.seek(0)
    file.truncate()
    return data


def pack_column(values: NDArray[Any]) -> Any:
    """A column of FACTS as an Arrow array: hashes as binaries of 32 bytes, sums as lists of three."""
    values = np.ascontiguousarray(values)
    if values.dtype.kind == "V":
        return pa.FixedSizeBinaryArray.from_buffers(pa.binary(32), len(values), [None, pa.py_buffer(values)])
    if values.ndim > 1:
        return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
    return pa.array(values)


def read_index(folder: Path, recipe: str) -> Index | None:
    """The index of `folder`; None where there is none, it is damaged, or its images were made in another way."""
    path, seal = folder / INDEX, folder / SEAL
    if not (path.is_file() and seal.is_file() and seal.read_bytes() == f"{hash_file(path)}\n".encode()):
        return None
    try:
        with pa.memory_map(str(path)) as source:
            packed = pa.ipc.open_file(source).read_all()
    except pa.ArrowInvalid:  # whoever wrote the seal wrote no index
        return None
    if (packed.schema.metadata or {}).get(RECIPE) != recipe.encode():
        return None
    rows = np.zeros(len(packed), FACTS)
    files = np.empty(len(packed), object)
    remarks: dict[int, str] = {}
    names: dict[str, str] = {}  # so that a shard's name is one object
    first = 0
    for batch in packed.to_batches():
        part = slice(first, first + len(batch))
        for name in FACTS.names or ():
            rows[name][part] = unpack_column(batch[name], rows.dtype[name])
        files[part] = [names.setdefault(file, file) for file in batch["path"].to_pylist()]
        noted = np.flatnonzero(batch["remark"].is_valid().to_numpy(zero_copy_only=False)).tolist()
        remarks |= {first + place: batch["remark"][place].as_py() for place in noted}
        first = part.stop
    return Index(packed["key"], ImageTable(rows, remarks), Places(files, packed["offset"].to_numpy()))


def unpack_column(values: Any, kind: "np.dtype[Any]") -> NDArray[Any]:
    """The inverse of `pack_column`."""
    if kind.kind == "V" and kind.subdtype is None:
        return np.frombuffer(values.buffers()[1], kind, len(values), values.offset * kind.itemsize)
    if kind.subdtype is not None:
        return values.flatten().to_numpy().reshape(-1, *kind.shape)
    return values.to_numpy()
