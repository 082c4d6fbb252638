"""The `fetch:` section of params.yaml."""

from pathlib import Path, PurePosixPath
from typing import Annotated

from pydantic import StringConstraints, field_validator

from imagepipe.core.config import Params

NO_FOLDER = "data/source"  # what `fetch.path` names where the source reads no folder
OUTPUT_FOLDERS = ("data/raw", "data/images", "data/manifests", "models", "reports")


class FetchParams(Params):
    """`fetch:` in params.yaml; each key is explained there."""

    source: Annotated[str, StringConstraints(min_length=1)]
    name: str
    options: str
    path: Annotated[str, StringConstraints(min_length=1, pattern=r"^[^\"$`\\\n]*$")]

    @field_validator("path")
    @classmethod
    def stays_clear(cls, value: str) -> str:
        """A source cannot be what a stage writes, and cannot leave the project through `..`."""
        path = PurePosixPath(value)
        if ".." in path.parts:
            raise ValueError(f"found {value}; expected a folder inside the project or an absolute path, without `..`")
        if path.is_relative_to(Path.cwd().as_posix()):
            path = path.relative_to(Path.cwd().as_posix())
        for output in map(PurePosixPath, OUTPUT_FOLDERS):
            if path == output or output in path.parents or path in output.parents:
                raise ValueError(f"found {value}; expected a folder that no stage writes ({output} is an output)")
        return value

    def read_options(self) -> dict[str, str]:
        """`fetch.options` (`name=value name=value`) as a mapping; raises ValueError for a word without `=`."""
        pairs: dict[str, str] = {}
        for word in self.options.split():
            name, equals, value = word.partition("=")
            if not (name and equals and value) or name in pairs:
                raise ValueError(f"found {word!r}; expected words of the form name=value, each name once")
            pairs[name] = value
        return pairs
