"""Run by every Python that finds this folder on PYTHONPATH: folders are listed in another order, on another day.

STRANGE_LISTING is `reversed` or `shuffled`, STRANGE_CLOCK a number of seconds.
"""

import datetime
import os
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

LISTING = os.environ.get("STRANGE_LISTING", "")
CLOCK = int(os.environ.get("STRANGE_CLOCK", "0"))

real_listdir, real_scandir = os.listdir, os.scandir
real_time, real_time_ns = time.time, time.time_ns
real_date, real_datetime = datetime.date, datetime.datetime


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


class OtherDay(type):
    """Dates that C code makes are of the real classes, and are taken for ours."""

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, real_datetime if issubclass(cls, real_datetime) else real_date)


class Date(real_date, metaclass=OtherDay):
    @classmethod
    def today(cls) -> Any:
        return cls.fromtimestamp(time.time())


class Datetime(real_datetime, metaclass=OtherDay):
    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> Any:
        return cls.fromtimestamp(time.time(), tz)

    @classmethod
    def today(cls) -> Any:
        return cls.fromtimestamp(time.time())

    @classmethod
    def utcnow(cls) -> Any:
        return cls.fromtimestamp(time.time(), datetime.UTC).replace(tzinfo=None)


if LISTING:
    os.listdir = lambda path=".": reorder(real_listdir(path), lambda name: name)
    os.scandir = scandir
if CLOCK:
    time.time = lambda: real_time() + CLOCK
    time.time_ns = lambda: real_time_ns() + CLOCK * 10**9
    datetime.date, datetime.datetime = Date, Datetime  # type: ignore[misc]
