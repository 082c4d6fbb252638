"""Run by every Python that finds this folder on PYTHONPATH: folders are listed in another order.

STRANGE_LISTING is `reversed` or `shuffled`.
"""

import os
import random
from collections.abc import Callable, Iterator
from typing import Any

LISTING = os.environ.get("STRANGE_LISTING", "")

real_listdir, real_scandir = os.listdir, os.scandir


def reorder(entries: list[Any], name: Callable[[Any], Any]) -> list[Any]:
    """Never the order in which the system, or anybody who sorts, has them."""
    entries.sort(key=name, reverse=True)
    if LISTING == "shuffled":
        random.Random(len(entries)).shuffle(entries)
    return entries


class Listing:
    """What `os.scandir` gives, in another order."""

    def __init__(self, entries: list[Any]) -> None:
        self.entries = iter(entries)

    def __iter__(self) -> Iterator[Any]:
        return self.entries

    def __next__(self) -> Any:
        return next(self.entries)

    def __enter__(self) -> "Listing":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self.entries = iter([])


def scandir(path: Any = ".") -> Listing:
    with real_scandir(path) as entries:
        return Listing(reorder(list(entries), lambda entry: entry.name))


if LISTING:
    os.listdir = lambda path=".": reorder(real_listdir(path), lambda name: name)
    os.scandir = scandir
