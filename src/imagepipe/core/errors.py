"""The errors that imagepipe raises for its users.

    ImagepipeError              never raised itself
    ├── InputError              exit 2: params, data or arguments can be mended by the user
    └── EnvironmentFault        exit 3: network, disk or machine
        └── DiskFault           a file cannot be written

A message names the file and row (or the params key), what was found, what was expected, and the remedy.
"""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

Value = TypeVar("Value")


class ImagepipeError(Exception):
    """Root of the tree; `exit_code` is what a stage or command ends with."""

    exit_code = 1


class InputError(ImagepipeError):
    """Something that the user gave is wrong and can be mended."""

    exit_code = 2


class EnvironmentFault(ImagepipeError):
    """The machine, its disk or its network is in the way."""

    exit_code = 3


class DiskFault(EnvironmentFault):
    """A file cannot be written."""


def list_findings(heading: str, findings: Sequence[str], remedy: str = "", shown: int = 20) -> str:
    """One report for many findings: the heading with the count, the first `shown` findings, the remedy."""
    lines = [f"{heading} ({len(findings)}):"]
    lines += [f"  {finding}" for finding in findings[:shown]]
    if len(findings) > shown:
        lines.append(f"  … and {len(findings) - shown} more")
    if remedy:
        lines.append(remedy)
    return "\n".join(lines)


def find_named(table: Mapping[str, Value], key: str, name: str) -> Value:
    """What a table has under the `name` that params.yaml gives for `key`.

    Raises InputError where it has nothing under that name.
    """
    if name not in table:
        raise InputError(f"params.yaml: {key}: unknown name `{name}`; {suggest_name(name, table)}.")
    return table[name]


def suggest_name(unknown: str, known: Iterable[str], shown: int = 60) -> str:
    """A sentence that lists the known names (the first `shown`) and, where one is near, suggests it."""
    names = sorted(known)
    folded = {name.casefold(): name for name in names}
    near = difflib.get_close_matches(unknown.casefold(), folded, n=1)
    hint = f"did you mean `{folded[near[0]]}`? " if near else ""
    more = f" … and {len(names) - shown} more" if len(names) > shown else ""
    return f"{hint}Known: {', '.join(names[:shown])}{more}"
