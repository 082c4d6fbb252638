"""[torch] ManifestDataset: images and labels as a CSV names them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from imagepipe.core.errors import InputError, list_findings
from imagepipe.core.manifest import order_classes, read_dataset_info
from imagepipe.core.tables import LABEL_COLUMNS, PATH_COLUMNS, find_column, read_text_table
from imagepipe.data.pixels import open_image, read_all_pixels, read_pixels

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

    `dataset[i]` opens one file. `load_pixels()` decodes all of them once, as `make_loaders` does, whose batches are
    then one gather from memory.

    Raises InputError where the CSV has no such columns or rows, or a label is not among `classes`.
    """

    def __init__(
        self,
        csv_path: str | Path,
        image_dir: str | Path,
        transform: Transform | None = None,
        split: str | None = None,
        classes: Sequence[str] | None = None,
    ) -> None:
        csv_path = Path(csv_path)
        table = read_text_table(csv_path)
        if split is not None:
            table = select_split(table, split, csv_path)
        if table.empty:
            raise InputError(f"{csv_path}: no rows" + (f" of the split `{split}`." if split else "."))
        self.image_dir = Path(image_dir)
        self.transform = transform
        self.files: NDArray[np.str_] = table[find_column(table, PATH_COLUMNS, "a file", csv_path)].to_numpy(dtype=str)
        self.labels, self.classes = number_labels(table, csv_path, classes)
        self._pixels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        label = int(self.labels[index])
        if self._pixels is not None:
            return self._pixels[index], label
        path = self.image_dir / str(self.files[index])
        if self.transform is not None:
            return self.transform(open_image(path)), label
        return to_channels_first(read_pixels(path)[None])[0], label

    @property
    def has_pixels(self) -> bool:
        """Whether a batch is one gather from memory."""
        return self._pixels is not None

    def load_pixels(self, jobs: int = 1) -> None:
        """Decode every image once, with `jobs` processes, into one uint8 tensor (N, C, H, W), channels last in memory.

        Raises InputError where a transform is set (it wants the file anew each time) or the images differ in size.
        """
        if self.transform is not None:
            raise InputError("a dataset with a transform reads its images anew each time; leave the transform out.")
        if self._pixels is None:
            paths = [self.image_dir / str(file) for file in self.files]
            self._pixels = to_channels_first(read_all_pixels(paths, jobs))

    @property
    def pixels(self) -> Tensor:
        """All images as uint8 (N, C, H, W); decodes them at the first use."""
        self.load_pixels()
        return cast("Tensor", self._pixels)


def to_channels_first(pixels: NDArray[np.uint8]) -> Tensor:
    """uint8 (N, H, W, C) as a tensor (N, C, H, W) over the same memory (the channels-last memory format)."""
    return torch.from_numpy(np.array(pixels) if not pixels.flags.writeable else pixels).permute(0, 3, 1, 2)


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
    beside = csv_path.parent / "dataset.json"
    if classes is None and "class" in table.columns:
        if beside.is_file():
            classes = read_dataset_info(beside).classes
        elif column != "class":
            classes = name_labels(table, column)
    names = table["class"] if classes is not None and "class" in table.columns else table[column]
    rows: list[tuple[int, str]] = list(zip((table.index + 2).tolist(), names.tolist(), strict=True))
    if classes is None:
        classes = list_classes(rows, csv_path)
    number = {name: index for index, name in enumerate(classes)}
    unknown = [f"row {row}: {name!r}" for row, name in rows if name not in number]
    if unknown:
        raise InputError(list_findings(f"{csv_path}: labels that are not among the classes", unknown))
    return np.array([number[name] for _, name in rows], dtype=np.int64), list(classes)


def name_labels(table: pd.DataFrame, column: str) -> list[str] | None:
    """Class names in the order of the whole numbers in `column`, from the column `class` beside it.

    A number that no row has keeps its digits for a name. None where the two columns do not go together.
    """
    pairs = set(zip(table[column], table["class"], strict=True))
    names = {int(label): name for label, name in pairs if label.isdecimal()}
    if not len(names) == len(pairs) == len(set(names.values())) or max(names) >= MOST_CLASSES:
        return None
    return [names.get(number, str(number)) for number in range(max(names) + 1)]


def list_classes(rows: Sequence[tuple[int, str]], csv_path: Path) -> list[str]:
    """Class names of a CSV without a list of them: 0 to the largest where all are whole numbers, else those it has.

    Raises InputError for blank labels, and for numbers too large to be class indices.
    """
    blank = [f"row {row}" for row, name in rows if not name.strip()]
    if blank:
        raise InputError(list_findings(f"{csv_path}: labels are blank", blank))
    distinct = {name for _, name in rows}
    if not all(name.isdecimal() and str(int(name)) == name for name in distinct):
        return order_classes(distinct)
    largest = max(map(int, distinct))
    if largest >= MOST_CLASSES:
        raise InputError(f"{csv_path}: the label {largest} is too large for a class index; give the list of classes.")
    return [str(number) for number in range(largest + 1)]
