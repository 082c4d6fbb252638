"""The CSV contract between the data half and everybody who reads images: `train.csv`, `val.csv`, `test.csv`.

| column | meaning |
|---|---|
| `path` | POSIX path of the PNG below the image folder |
| `label` | class index, 0-based |
| `class` | class name, always text |
| `split` | `train`, `val` or `test` |
| `group` | group id or empty |
| `pixel_sha256` | SHA-256 of mode, size and decoded pixels (`hash_pixels`) |
| `width`, `height`, `mode` | pixels, pixels, Pillow mode as stored |
| `source` | where the image came from |
| `shard`, `offset`, `length` | only where the images lie in shards: the tar below the image folder, and which bytes |
| `user:<name>` | the further columns of the user's own table |

Rows are sorted by path. `dataset.json` beside them holds the class names once, in label order, and the number of the
format of all four files.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from imagepipe.core.errors import InputError, list_findings
from imagepipe.core.files import write_csv, write_json
from imagepipe.core.formats import check_format
from imagepipe.core.tables import read_text_table

SPLITS = ("train", "val", "test")
COLUMNS = ("path", "label", "class", "split", "group", "pixel_sha256", "width", "height", "mode", "source")
SHARD_COLUMNS = ("shard", "offset", "length")  # only with `split.layout: shards`
USER = "user:"  # begins the names of the columns that a user's own table brought
FORMAT = 1  # of `dataset.json` and of the manifests beside it

MOST_DIGITS = 4000  # of a class name that is taken for a number; Python makes none of more than 4,300

_INTEGER = re.compile(rf"-?[0-9]{{1,{MOST_DIGITS}}}")
_COUNT = "[0-9]{1,18}"  # fits int64


class ImageInfo(BaseModel):
    """What all images have in common: Pillow mode (`L` or `RGB`), width and height in pixels."""

    mode: Literal["L", "RGB"]
    width: int
    height: int

    @property
    def channels(self) -> int:
        """Values per pixel: 1 for `L`, 3 for `RGB`."""
        return {"L": 1, "RGB": 3}[self.mode]


class LeakInfo(BaseModel):
    """What the leak gate found and did.

    `policy` is `error`, `drop` or `keep`. `duplicates` counts images of val and test whose very pixels stand in another
    split too, `groups` the groups that reach over several splits, `labels` the images whose pixels stand under another
    class too, `dropped` the images left out because of these, `repeated` the images beyond the first of each set of
    equal ones inside one split, `near` the pairs across splits that look alike (None where that was not looked for).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    policy: Literal["error", "drop", "keep"]
    duplicates: int
    groups: int
    labels: int
    dropped: int
    repeated: int
    near: int | None


class DatasetInfo(BaseModel):
    """`dataset.json`: what is true of all splits together.

    `mean` and `std` are per channel over every pixel of the train split, in [0, 1] (population deviation). `counts` is
    split → class → images. `source` repeats `source.json`; `split` says how the splits were made; `leaks` is what the
    leak gate found, and its policy (`LeakInfo`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1]
    classes: Annotated[list[str], Field(min_length=1)]
    image: ImageInfo
    mean: list[float]
    std: list[float]
    counts: dict[str, dict[str, int]]
    source: dict[str, object]
    split: dict[str, object]
    leaks: LeakInfo


def order_classes(names: Iterable[str]) -> list[str]:
    """Distinct class names in label order: numeric when every name is an integer, otherwise by code point."""
    distinct = set(names)
    if all(_INTEGER.fullmatch(name) for name in distinct):
        return sorted(distinct, key=lambda name: (int(name), name))
    return sorted(distinct)


def write_manifests(directory: Path, table: pd.DataFrame, info: DatasetInfo) -> None:
    """Write one CSV for each split and `dataset.json` into an existing folder.

    `table` has every column of COLUMNS, those of SHARD_COLUMNS or none, and those of the user's own.
    """
    shards = SHARD_COLUMNS if "shard" in table.columns else ()
    columns = [*COLUMNS, *shards, *list_user_columns(table)]
    order = np.asarray(table["path"].argsort(), np.int64)
    for split in SPLITS:
        belongs = (table["split"] == split).to_numpy(bool)
        write_csv(directory / f"{split}.csv", table[columns], order[belongs[order]])
    write_json(directory / "dataset.json", info.model_dump(), digits=8)


def list_user_columns(table: pd.DataFrame) -> list[str]:
    """The columns that came with the user's own table, in their order."""
    return [name for name in map(str, table.columns) if name.startswith(USER)]


def read_manifest(path: Path) -> pd.DataFrame:
    """A manifest as a table: text in every column, but int64 in `label`, `width`, `height`, `offset` and `length`.

    Raises InputError for a file that is absent or is not one of our manifests.
    """
    table = read_text_table(path)
    expected = (*COLUMNS, *SHARD_COLUMNS) if "shard" in table.columns else COLUMNS
    missing = [name for name in expected if name not in table.columns]
    if missing:
        raise InputError(f"{path}: the columns {', '.join(missing)} are missing; write it anew with the split stage.")
    for name in table.columns.intersection(["label", "width", "height", "offset", "length"]):
        wrong = table[name][~table[name].str.fullmatch(_COUNT)]
        if len(wrong):
            shown = [f"row {row}: {name} is {value!r}" for row, value in zip(wrong.index + 2, wrong, strict=True)]
            raise InputError(list_findings(f"{path}: expected whole numbers from 0", shown))
        table[name] = table[name].astype("int64")
    return table


def read_dataset_info(path: Path) -> DatasetInfo:
    """`dataset.json`; raises InputError where it is absent, damaged or of a format that this version does not know."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}. Run the split stage first.") from error
    check_format(path, text, FORMAT, "run the split stage again")
    try:
        return DatasetInfo.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) + ": " if first["loc"] else ""
        raise InputError(f"{path}: {where}{first['msg']}; run the split stage again.") from error


def read_split(manifests_dir: Path, split: str, info: DatasetInfo) -> pd.DataFrame:
    """The manifest of one split, as `read_manifest` gives it, its labels checked against `dataset.json`."""
    path = manifests_dir / f"{split}.csv"
    table = read_manifest(path)
    check_labels(path, table, info)
    return table


def check_labels(path: Path, table: pd.DataFrame, info: DatasetInfo) -> None:
    """Raise InputError where a row's label and class name do not belong together in `dataset.json`."""
    named = pd.Series(info.classes, dtype=str).reindex(table["label"])
    labels, classes = table["label"], table["class"]
    wrong: list[int] = np.flatnonzero(named.array != classes.array).tolist()
    if wrong:
        shown = [f"row {row + 2}: label {labels.iat[row]} with class {classes.iat[row]!r}" for row in wrong]
        raise InputError(
            list_findings(f"{path}: label and class disagree with dataset.json", shown, "Run the split stage again.")
        )
