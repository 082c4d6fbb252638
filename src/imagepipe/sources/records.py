"""Record: one labelled image on its way from a source to the split; SourceInfo: what is known of all of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from imagepipe.core.errors import InputError
from imagepipe.core.files import write_json
from imagepipe.core.manifest import order_classes
from imagepipe.core.slices import FileSlice

NO_COLUMNS: Mapping[str, str] = {}  # one for all records


@dataclass(frozen=True, slots=True)
class Record:
    """One labelled image.

    `key` is unique, POSIX and relative: the image becomes `<key>.png`. `part` is the split that the source itself gave
    it (`train`, `val`, `test`) or ''; records of one `group` belong together ('' is none). `source` says where it came
    from. `image` is uint8 pixels, (H, W) grey or (H, W, 3) RGB, or the file that holds them, undecoded. `columns` are
    the further columns of the user's own table.
    """

    key: str
    class_name: str
    part: str
    group: str
    source: str
    image: NDArray[np.uint8] | FileSlice
    columns: Mapping[str, str] = field(default_factory=lambda: NO_COLUMNS)


@dataclass(frozen=True, slots=True)
class ArrayPart:
    """One part of a source that ships arrays.

    `images` is uint8 (N, H, W) or (N, H, W, 3); `labels` (N,) are integers that index the source's class names; `file`
    is named in each record's `source`.
    """

    part: str
    file: str
    images: NDArray[np.uint8]
    labels: NDArray[np.integer]


class SourceInfo(BaseModel):
    """`source.json`.

    `files` maps each file of `data/raw` to its SHA-256. `classes` are the source's names in its own order, and
    `empty_classes` those for which it has a place and no image. `chosen` are the pairs of `fetch.classes` (the source's
    name, the name here) in their order; empty takes all. `table` is `fetch.table` where a table was read. `published`
    says that the set and its parts are known to others, who compare figures on them. `notes` are what a reader of the
    data should know, such as files that were left out.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    name: str
    options: dict[str, str]
    licence: str
    citation: str
    homepage: str
    classes: list[str]
    files: dict[str, str]
    chosen: list[tuple[str, str]] = []
    table: dict[str, str] = {}
    published: bool = False
    empty_classes: list[str] = []
    notes: list[str] = []

    def list_classes(self) -> list[str]:
        """The class names in label order: as chosen, else as `order_classes` has them."""
        return list(dict.fromkeys(name for _, name in self.chosen)) if self.chosen else order_classes(self.classes)


def make_array_records(parts: Sequence[ArrayPart], classes: Sequence[str], raw_dir: Path) -> list[Record]:
    """Records of array parts, numbered through all of them (`00017`; at least five digits).

    Raises InputError where a part's labels and images differ in number or a label has no class name.
    """
    total = sum(len(part.images) for part in parts)
    digits = max(5, len(str(total - 1)))
    records: list[Record] = []
    for part in parts:
        path = raw_dir / part.file
        if len(part.images) != len(part.labels):
            raise InputError(f"{path}: {len(part.images)} images but {len(part.labels)} labels; fetch it again.")
        if len(part.labels) and not 0 <= int(part.labels.min()) <= int(part.labels.max()) < len(classes):
            raise InputError(
                f"{path}: labels from {part.labels.min()} to {part.labels.max()}, expected 0 to {len(classes) - 1}."
            )
        first = len(records)
        records += [
            Record(f"{first + index:0{digits}d}", classes[label], part.part, "", f"{part.file}#{index}", image)
            for index, (image, label) in enumerate(
                zip(part.images, cast("list[int]", part.labels.tolist()), strict=True)
            )
        ]
    return records


def write_source_info(raw_dir: Path, info: SourceInfo) -> None:
    """Write `source.json`."""
    write_json(raw_dir / "source.json", info.model_dump())


def read_source_info(raw_dir: Path) -> SourceInfo:
    """Read `source.json`; raises InputError where it is absent or damaged."""
    path = raw_dir / "source.json"
    try:
        return SourceInfo.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}. Run the fetch stage first.") from error
    except ValidationError as error:
        raise InputError(f"{path}: not a source description: {error.errors()[0]['msg']}. Fetch it again.") from error
