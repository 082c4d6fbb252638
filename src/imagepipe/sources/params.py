"""The `fetch:` section of params.yaml."""

from pathlib import PurePosixPath
from typing import Annotated

from pydantic import Field, StringConstraints, field_validator

from imagepipe.core.config import Params, Sha256, read_pairs, refuse_output

NO_FOLDER = "data/source"  # what `fetch.path` names where the source reads nothing on disk

PathText = Annotated[str, StringConstraints(min_length=1)]


class TableParams(Params):
    """`fetch.table`: where the rows are and what their columns mean; '' is recognised by itself."""

    file: str
    images: str
    path: str
    label: str
    split: str
    group: str


class FetchParams(Params):
    """`fetch:` in params.yaml; each key is explained there."""

    source: Annotated[str, StringConstraints(min_length=1)]
    name: str
    options: str
    path: PathText
    url: str
    sha256: Sha256
    max_gigabytes: Annotated[int, Field(ge=1, le=100_000)]
    classes: PathText
    table: TableParams

    @field_validator("path", "classes")
    @classmethod
    def stays_clear(cls, value: str) -> str:
        """A source cannot be what a stage writes, and cannot leave the project through `..`."""
        if ".." in PurePosixPath(value).parts:
            raise ValueError(f"found {value}; expected a path inside the project or an absolute one, without `..`")
        refuse_output(value, around=True)
        return value

    def read_options(self) -> dict[str, str]:
        """`fetch.options` (`name=value name=value`) as a mapping; raises ValueError for a word without `=`."""
        return read_pairs(self.options)
