"""Whether a file that is read here is of this imagepipe's format, or of an older or newer one's.

Files that outlive the code that wrote them carry the number of their format in their JSON, as `format`: `dataset.json`,
which speaks for the manifests beside it, since a CSV has no place for a number; and the description in a model file.
"""

from pathlib import Path

from pydantic import BaseModel, StrictInt, ValidationError

from imagepipe.core.errors import InputError


class Numbered(BaseModel):
    """What every format has in common."""

    format: StrictInt


def check_format(path: Path, description: str | bytes, known: int, remedy: str) -> None:
    """Raise InputError where the JSON `description` of the file `path` has another `format` than `known`.

    JSON that is damaged or has no number passes: its reader says what else is wrong. `remedy` says how to make the file
    anew with this version.
    """
    try:
        found = Numbered.model_validate_json(description).format
    except ValidationError:
        return
    if found > known:
        raise InputError(
            f"{path}: made by a newer imagepipe: format {found}, this one reads up to {known}; update imagepipe, or "
            f"{remedy}."
        )
    if found < known:
        raise InputError(f"{path}: made by an older imagepipe: format {found}, this one reads {known}; {remedy}.")
