"""[torch] ManifestDataset: images and labels as a CSV names them."""

import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from imagepipe.core.errors import InputError, list_findings
from imagepipe.core.manifest import MOST_DIGITS, SHARD_COLUMNS, order_classes, read_dataset_info
from imagepipe.core.slices import ImageFiles, list_image_files
from imagepipe.core.tables import LABEL_COLUMNS, PATH_COLUMNS, find_column, read_text_table
from imagepipe.data.images import OtherMode, make_image, open_image, read_pixels
from imagepipe.data.pixels import PixelCache, Pixels, decode_pixels

MOST_CLASSES = 100_000  # a whole number from here on is an identifier, not the index of a class

Transform = Callable[[Image.Image], Any]


class ManifestDataset(Dataset[tuple[Any, int]]):
    """`dataset[i] -> (image, label)` for the rows of a CSV that names a file and a label.

    Reads imagepipe's manifests, and any CSV with such columns (`Class Label,File Name`; `filepath,label`;
    `file,target`). `image` is a uint8 tensor (C, H, W), or whatever `transform` makes of the PIL image; `label` is an
    int from 0. `split` keeps the rows whose `split` column says so.

    Without `classes`, labels that are whole numbers from 0 are taken as they are. Else they are names, numbered in the
    order of `classes`, which is given, found in the `dataset.json` beside a manifest, or made from the names in the
    CSV. Give a second CSV the first one's `dataset.classes`, so that a class that it lacks shifts no number.

    Where another column holds labels, too, the names are read from `class` if a `dataset.json` lies beside the CSV, or
    if the two columns pair one to one and the other holds whole numbers from 0; that `classes` is given changes nothing
    about it.

    `dataset[i]` opens one file, or one slice of a shard. `load_pixels()` decodes all of them once, as `make_loaders`
    does where there is no transform, whose batches are then one gather from memory. Either way an image is upright, and
    a transform gets pixels without metadata.

    `table` is what the CSV holds, where that has been read before (`read_split`).

    Raises InputError where the CSV has no such columns or rows, or a label is not among `classes`.
    """

    def __init__(
        self,
        csv_path: str | Path,
        image_dir: str | Path,
        transform: Transform | None = None,
        split: str | None = None,
        classes: Sequence[str] | None = None,
        table: pd.DataFrame | None = None,
    ) -> None:
        csv_path = Path(csv_path)
        table = read_text_table(csv_path) if table is None else table
        if split is not None:
            table = select_split(table, split, csv_path)
        if table.empty:
            raise InputError(f"{csv_path}: no rows" + (f" of the split `{split}`." if split else "."))
        self.image_dir = Path(image_dir)
        self.transform = transform
        self.files = list_files(table, self.image_dir, csv_path)
        self.hashes = read_pixel_hashes(table, csv_path)
        self.labels, self.classes = number_labels(table, csv_path, classes)
        self._pixels: Pixels | None = None
        self._placed: Tensor | None = None
        self._opens_anew = False

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        label = int(self.labels[index])
        if self.transform is None:
            pixels = read_pixels(self.files, index) if self._pixels is None else self._pixels[index]
            return torch.from_numpy(np.array(pixels)).permute(2, 0, 1), label
        image = open_image(self.files, index) if self._pixels is None else make_image(self._pixels[index])
        return self.transform(image), label

    def load_pixels(self, cache: PixelCache | None = None, jobs: int = 1) -> None:
        """Decode every image once, with `jobs` processes; what the cache holds is not even decoded once.

        Where a transform is set and an image has another mode than L, RGB and RGBA, pixels alone would not do: this
        warns, and each sample opens its file as before.

        Raises InputError where an image cannot be decoded, or is not the one that the manifest names.
        """
        if self._pixels is not None or self._opens_anew:
            return
        try:
            self._pixels = self._decode(cache, jobs)
        except OtherMode as error:
            if self.transform is None:
                raise
            self._opens_anew = True
            found = str(error).rpartition("; expected")[0]
            warnings.warn(f"each sample is decoded anew, since only L, RGB and RGBA are kept: {found}", stacklevel=2)

    def _decode(self, cache: PixelCache | None, jobs: int) -> Pixels:
        if cache is None:
            return decode_pixels(self.files, self.hashes, jobs)
        return cache.load(self.files, self.hashes, jobs)

    def place_pixels(self, device: torch.device) -> None:
        """Copy all images into the memory of a GPU, where half of what is free there holds them."""
        if self._placed is None and device.type != "cpu" and self.pixels.nbytes <= find_room(device) // 2:
            self._placed = self.pixels.to(device)

    @property
    def pixels(self) -> Tensor:
        """All images as uint8 (N, C, H, W), channels last in memory; decodes them at the first use.

        Nobody may write to it: it may be a file. They are on a GPU where `place_pixels` has put them there. Raises
        InputError, naming a file, where the images differ in size.
        """
        if self._placed is not None:
            return self._placed
        if self._pixels is None:
            self._pixels = self._decode(None, jobs=1)
        odd = self._pixels.odd
        if odd is not None:
            raise InputError(f"{self.files.describe(odd)}: {self._pixels.describe_odd(odd)}")
        return to_channels_first(self._pixels.images)


def find_room(device: torch.device) -> int:
    """Bytes that are free on a CUDA device; 0 for others, whose memory is the processor's, too."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


def to_channels_first(pixels: NDArray[np.uint8]) -> Tensor:
    """uint8 (N, H, W, C) as a tensor (N, C, H, W) over the same memory (the channels-last memory format)."""
    with warnings.catch_warnings():
        # A map of a file is read-only. A private one that is not would count against the machine's memory.
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def list_files(table: pd.DataFrame, image_dir: Path, csv_path: Path) -> ImageFiles:
    """The images that the rows name: files, or slices of shards where the table has all of SHARD_COLUMNS."""
    column = find_column(table, PATH_COLUMNS, "a file", csv_path)
    if not set(SHARD_COLUMNS) <= set(table.columns):
        return list_image_files(table[[column]], image_dir, column)
    for name in ("offset", "length"):
        check_cells(table, name, r"[0-9]{1,18}", "expected whole numbers from 0", csv_path)
    return list_image_files(table.astype({"offset": np.int64, "length": np.int64}), image_dir, column)


def read_pixel_hashes(table: pd.DataFrame, csv_path: Path) -> NDArray[np.uint8] | None:
    """The column `pixel_sha256` as (N, 32) uint8; None where there is none."""
    if "pixel_sha256" not in table.columns:
        return None
    check_cells(table, "pixel_sha256", r"[0-9a-fA-F]{64}", "expected 64 hexadecimal digits", csv_path)
    return np.frombuffer(bytes.fromhex("".join(table["pixel_sha256"])), np.uint8).reshape(-1, 32)


def check_cells(table: pd.DataFrame, column: str, pattern: str, expected: str, csv_path: Path) -> None:
    """Raise InputError, listing the rows, where a cell of the column is not as `pattern` says."""
    matches = re.compile(pattern).fullmatch
    cells = number_rows(table[column].astype(str))
    wrong = [f"row {row}: {column} is {cell!r}" for row, cell in cells if not matches(cell)]
    if wrong:
        raise InputError(list_findings(f"{csv_path}: {expected}", wrong))


def number_rows(cells: pd.Series) -> Iterator[tuple[int, str]]:
    """Each cell of a column of text, with its row in the file."""
    return zip((cells.index + 2).tolist(), cells.tolist(), strict=True)


def select_split(table: pd.DataFrame, split: str, csv_path: Path) -> pd.DataFrame:
    """The rows whose `split` column is `split`; raises InputError where there is no such column."""
    if "split" not in table.columns:
        raise InputError(f"{csv_path}: no column `split` (columns: {', '.join(table.columns)}); leave split=None.")
    return table[table["split"] == split]


def number_labels(
    table: pd.DataFrame, csv_path: Path, classes: Sequence[str] | None
) -> tuple[NDArray[np.int64], list[str]]:
    """The int64 labels of the rows and the class names that they index (see ManifestDataset)."""
    column = find_column(table, LABEL_COLUMNS, "a label", csv_path)
    names, beside = table[column].astype(str), csv_path.parent / "dataset.json"
    if "class" in table.columns and beside.is_file():
        names = table["class"]
        classes = read_dataset_info(beside).classes if classes is None else classes
    elif "class" in table.columns and column != "class":
        paired = name_labels(names, table["class"])
        if paired is not None:
            names = table["class"]
            classes = paired if classes is None else classes
    if classes is None:
        classes = list_classes(names, csv_path)
    number = {name: index for index, name in enumerate(classes)}
    numbers = np.array([number.get(name, -1) for name in names.tolist()], dtype=np.int64)
    unknown = [f"row {row}: {name!r}" for row, name in number_rows(names[numbers < 0])]
    if unknown:
        raise InputError(list_findings(f"{csv_path}: labels that are not among the classes", unknown))
    return numbers, list(classes)


def name_labels(labels: pd.Series, classes: pd.Series) -> list[str] | None:
    """Class names in the order of the whole numbers in `labels`, from the column `class` beside it.

    A number that no row has keeps its digits for a name. None where the two columns do not go together.
    """
    pairs = set(zip(labels, classes, strict=True))
    names = {int(label): name for label, name in pairs if label.isdecimal() and len(label) <= MOST_DIGITS}
    if not len(names) == len(pairs) == len(set(names.values())) or max(names) >= MOST_CLASSES:
        return None
    return [names.get(number, str(number)) for number in range(max(names) + 1)]


def list_classes(names: pd.Series, csv_path: Path) -> list[str]:
    """Class names of a CSV without a list of them: 0 to the largest where all are whole numbers, else those it has.

    Raises InputError for blank labels, and for numbers too large to be class indices.
    """
    distinct: set[str] = set(names)
    blank = [f"row {row}" for row, name in number_rows(names) if not name.strip()]
    if blank:
        raise InputError(list_findings(f"{csv_path}: labels are blank", blank))
    if not all(name.isdecimal() and len(name) <= MOST_DIGITS and str(int(name)) == name for name in distinct):
        return order_classes(distinct)
    largest = max(map(int, distinct))
    if largest >= MOST_CLASSES:
        raise InputError(f"{csv_path}: the label {largest} is too large for a class index; give the list of classes.")
    return [str(number) for number in range(largest + 1)]
