"""Units of the split, records that never part, and how they are spread over splits (or folds) by given shares.

A unit's place in the lottery is the SHA-256 of (seed, purpose, its smallest key), so neither a library's random
generator nor the order of a directory listing decides anything.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from operator import attrgetter
from typing import TypeVar

import numpy as np

from imagepipe.core.manifest import order_classes
from imagepipe.sources.records import Record

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Unit:
    """Records that stay together: their keys, sorted, and class → how many of them."""

    keys: tuple[str, ...]
    counts: Mapping[str, int]


# Joining


def find_repeats(items: Sequence[Item], value_of: Callable[[Item], Hashable]) -> list[list[Item]]:
    """The sets of two items or more that have one value; the sets, and the items of each, in the order of `items`.

    Python's hash tells first which few values may be equal, so that a million need not be held side by side.
    """
    hashes = np.fromiter((hash(value_of(item)) for item in items), np.int64, len(items))
    _, numbers, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    sets: dict[Hashable, list[Item]] = defaultdict(list)
    for place in np.flatnonzero(counts[numbers] > 1).tolist():
        sets[value_of(items[place])].append(items[place])
    return [alike for alike in sets.values() if len(alike) > 1]


def join_units(records: Iterable[Record], pixel_sha256: Mapping[str, str]) -> list[Unit]:
    """Records with one group or the same pixels are one unit, and so is what they lead to; sorted by smallest key."""
    ordered = sorted(records, key=attrgetter("key"))
    grouped = [place for place, record in enumerate(ordered) if record.group]
    repeats = find_repeats(grouped, lambda place: ordered[place].group)
    repeats += find_repeats(range(len(ordered)), lambda place: pixel_sha256[ordered[place].key])
    members: dict[int, list[Record]] = defaultdict(list)
    roots = find_roots(repeats)
    for place in sorted(roots):
        members[roots[place]].append(ordered[place])
    # What units count is shared by those of the same classes: a million counters of their own would fill memory.
    alone = {class_name: {class_name: 1} for class_name in {record.class_name for record in ordered}}
    together: dict[tuple[str, ...], Mapping[str, int]] = {}
    return [
        join_members(members[place], together) if place in members else Unit((record.key,), alone[record.class_name])
        for place, record in enumerate(ordered)
        if roots.get(place, place) == place
    ]


def join_members(records: Sequence[Record], counts: dict[tuple[str, ...], Mapping[str, int]]) -> Unit:
    """The unit of records that are sorted by key; what it counts is looked up in `counts`, or put there."""
    classes = tuple([record.class_name for record in records])
    if classes not in counts:
        counts[classes] = Counter(classes)
    return Unit(tuple([record.key for record in records]), counts[classes])


def find_roots(sets: Sequence[Sequence[int]]) -> dict[int, int]:
    """Place → the first place that the sets lead to from it; for the places in the sets alone."""
    parents = {place: place for places in sets for place in places}
    for places in sets:
        for place in places[1:]:
            join(parents, places[0], place)
    for place in parents:
        parents[place] = find_root(parents, place)
    return parents


def join(parents: dict[int, int], one: int, other: int) -> None:
    """Make two trees of a union-find forest one; the root of a tree is its smallest member."""
    one, other = find_root(parents, one), find_root(parents, other)
    parents[max(one, other)] = min(one, other)


def find_root(parents: dict[int, int], place: int) -> int:
    """The root of the tree; each step halves the way for the next who walks it."""
    while parents[place] != place:
        parents[place] = parents[parents[place]]
        place = parents[place]
    return place


# Spreading


def spread_units(units: Iterable[Unit], shares: Mapping[str, float], seed: int, purpose: str) -> dict[str, str]:
    """Key → the name of its share; every class is spread by the shares, which sum to 1.

    Where all units are single records, every count is within one of its share, in each class and in all. Larger units
    go first, each where it is missed most; the single ones then fill up what the large ones left.
    """
    large: list[Unit] = []
    singles: dict[str, list[str]] = defaultdict(list)
    for unit in units:
        if len(unit.keys) > 1:
            large.append(unit)
        else:
            (class_name,) = unit.counts
            singles[class_name] += unit.keys
    missed = set_targets(large, singles, shares)
    chosen = place_large(large, singles, missed, [name for name, share in shares.items() if share > 0], seed, purpose)
    owed = dict.fromkeys(shares, 0.0)
    for class_name in order_classes(singles):
        keys = singles[class_name]
        chosen |= deal(shuffle_keys(keys, seed, purpose), fill_up(len(keys), missed[class_name], owed))
    return chosen


def set_targets(
    large: Iterable[Unit], singles: Mapping[str, Sequence[str]], shares: Mapping[str, float]
) -> dict[str, dict[str, int]]:
    """Class → split → images, each within one of its share; what one class loses by rounding, the next is given."""
    counts = Counter({class_name: len(keys) for class_name, keys in singles.items()})
    for unit in large:
        for class_name, count in unit.counts.items():
            counts[class_name] += count
    targets: dict[str, dict[str, int]] = {}
    owed = dict.fromkeys(shares, 0.0)
    for class_name in order_classes(counts):
        targets[class_name] = apportion(counts[class_name], shares, owed)
        for split, size in targets[class_name].items():
            owed[split] += counts[class_name] * shares[split] - size
    return targets


def place_large(
    large: Sequence[Unit],
    singles: Mapping[str, Sequence[str]],
    missed: dict[str, dict[str, int]],
    splits: Sequence[str],
    seed: int,
    purpose: str,
) -> dict[str, str]:
    """Give each unit of several records to the split that misses it most, and take it off `missed`.

    Greedy, as scikit-learn's StratifiedGroupKFold: what counts is the sum over classes of squared deficits, each as a
    share of its class, and a unit goes where that falls most. A split that lacks a class of the unit goes before,
    where no more units with that class wait than splits lack it. Sizes count by powers of two, the largest first:
    within one power the lottery decides, so that another seed deals groups of like size anew.
    """
    squares = {class_name: sum(row.values()) ** 2 for class_name, row in missed.items()}
    lacking = {class_name: {split for split in splits if row[split] > 0} for class_name, row in missed.items()}
    waiting = Counter({class_name: len(keys) for class_name, keys in singles.items()})
    waiting.update(chain.from_iterable(unit.counts for unit in large))
    room = {split: sum(row[split] for row in missed.values()) for split in splits}

    def weigh(split: str, unit: Unit, scarce: Sequence[str]) -> tuple[int, float, int]:
        last = sum(split in lacking[name] for name in scarce)
        need = sum([count * missed[name][split] / squares[name] for name, count in unit.counts.items()])
        return last, need, room[split]

    chosen: dict[str, str] = {}
    for unit in order_large(large, seed, purpose):
        scarce = [name for name in unit.counts if waiting[name] <= len(lacking[name])]
        split = max(splits, key=lambda split: weigh(split, unit, scarce))
        for class_name, count in unit.counts.items():
            missed[class_name][split] -= count
            lacking[class_name].discard(split)
            waiting[class_name] -= 1
        room[split] -= len(unit.keys)
        for key in unit.keys:
            chosen[key] = split
    return chosen


def order_large(large: Iterable[Unit], seed: int, purpose: str) -> list[Unit]:
    """Units by powers of two of their size, the largest first, then by the lottery."""
    unit_of = {unit.keys[0]: unit for unit in large}
    drawn = [unit_of[key] for key in shuffle_keys(unit_of, seed, purpose)]
    return sorted(drawn, key=lambda unit: len(unit.keys).bit_length(), reverse=True)


def fill_up(count: int, missed: Mapping[str, int], owed: dict[str, float]) -> dict[str, int]:
    """How many of a class's `count` single images go where; exactly what is missed, where no split has too many.

    Otherwise less is there than is missed: each split gets its share of that, and `owed` carries the rounding along.
    """
    gaps = {split: max(0, gap) for split, gap in missed.items()}
    total = sum(gaps.values())
    if total == count:
        return gaps
    shares = {split: gap / total for split, gap in gaps.items()}
    sizes = apportion(count, shares, owed)
    for split, size in sizes.items():
        owed[split] += count * shares[split] - size
    return sizes


def apportion(count: int, shares: Mapping[str, float], owed: Mapping[str, float]) -> dict[str, int]:
    """Whole numbers that sum to `count`, each its share rounded down or up.

    What rounding down leaves goes, one each, to the splits with the largest remainder plus what `owed` says that they
    missed so far (largest-remainder method; the carried part keeps the totals over many classes exact too).
    """
    exact = {split: count * share for split, share in shares.items()}
    sizes = {split: int(value + 1e-9) for split, value in exact.items()}
    fractional = [split for split in shares if exact[split] - sizes[split] > 1e-9]
    fractional.sort(key=lambda split: exact[split] - sizes[split] + owed[split], reverse=True)
    for split in fractional[: count - sum(sizes.values())]:
        sizes[split] += 1
    return sizes


# The lottery


def draw(seed: int, purpose: str, name: str) -> bytes:
    """32 bytes that depend on seed, purpose and name alone."""
    return hashlib.sha256(f"{seed}\0{purpose}\0{name}".encode()).digest()


def shuffle_keys(keys: Iterable[str], seed: int, purpose: str) -> list[str]:
    """The keys in an order that depends on seed, purpose and keys alone."""
    return sorted(keys, key=lambda key: draw(seed, purpose, key))


def deal(keys: Iterable[str], sizes: Mapping[str, int]) -> dict[str, str]:
    """The first keys to the first split, the next to the second, and so on."""
    return dict(zip(keys, chain.from_iterable(map(repeat, sizes, sizes.values())), strict=False))
