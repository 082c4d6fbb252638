"""Units of the split, records that never part, and how they are spread over splits (or folds) by given shares.

A unit's place in the lottery is the SHA-256 of (seed, purpose, its smallest key), so neither a library's random
generator nor the order of a directory listing decides anything.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from imagepipe.core.manifest import order_classes
from imagepipe.sources.records import Record


@dataclass(frozen=True, slots=True)
class Unit:
    """Records that stay together: their keys, sorted, and class → how many of them."""

    keys: tuple[str, ...]
    counts: Mapping[str, int]


# Joining


def join_units(records: Iterable[Record], pixel_sha256: Mapping[str, str]) -> list[Unit]:
    """Records with one group or the same pixels are one unit, and so is what they lead to; sorted by smallest key."""
    ordered = sorted(records, key=lambda record: record.key)
    parents = list(range(len(ordered)))
    groups: dict[str, int] = {}
    pixels: dict[str, int] = {}
    for index, record in enumerate(ordered):
        for name, seen in ((record.group, groups), (pixel_sha256[record.key], pixels)):
            if name:
                join(parents, seen.setdefault(name, index), index)
    members: dict[int, list[Record]] = defaultdict(list)
    for index, record in enumerate(ordered):
        members[find_root(parents, index)].append(record)
    return [
        Unit(tuple(record.key for record in unit), Counter(record.class_name for record in unit))
        for unit in members.values()
    ]


def join(parents: list[int], one: int, other: int) -> None:
    """Make two trees of a union-find forest one; the root of a tree is its smallest member."""
    one, other = find_root(parents, one), find_root(parents, other)
    parents[max(one, other)] = min(one, other)


def find_root(parents: list[int], index: int) -> int:
    """The root of the tree; each step halves the way for the next who walks it."""
    while parents[index] != index:
        parents[index] = parents[parents[index]]
        index = parents[index]
    return index


# Spreading


def spread_units(units: Sequence[Unit], shares: Mapping[str, float], seed: int, purpose: str) -> dict[str, str]:
    """Key → the name of its share; every class is spread by the shares, which sum to 1.

    Where all units are single records, every count is within one of its share, in each class and in all. Larger units
    go first, each where it is missed most; the single ones then fill up what the large ones left.
    """
    missed = set_targets(units, shares)
    chosen = place_large(units, missed, [name for name, share in shares.items() if share > 0], seed, purpose)
    singles: dict[str, list[str]] = defaultdict(list)
    for unit in units:
        if len(unit.keys) == 1:
            (class_name,) = unit.counts
            singles[class_name] += unit.keys
    owed = dict.fromkeys(shares, 0.0)
    for class_name in order_classes(singles):
        keys = singles[class_name]
        chosen |= deal(shuffle_keys(keys, seed, purpose), fill_up(len(keys), missed[class_name], owed))
    return chosen


def set_targets(units: Iterable[Unit], shares: Mapping[str, float]) -> dict[str, dict[str, int]]:
    """Class → split → images, each within one of its share; what one class loses by rounding, the next is given."""
    counts: Counter[str] = Counter()
    for unit in units:
        counts.update(unit.counts)
    targets: dict[str, dict[str, int]] = {}
    owed = dict.fromkeys(shares, 0.0)
    for class_name in order_classes(counts):
        targets[class_name] = apportion(counts[class_name], shares, owed)
        for split, size in targets[class_name].items():
            owed[split] += counts[class_name] * shares[split] - size
    return targets


def place_large(
    units: Iterable[Unit], missed: dict[str, dict[str, int]], splits: Sequence[str], seed: int, purpose: str
) -> dict[str, str]:
    """Give each unit of several records to the split that misses it most, and take it off `missed`.

    Greedy, as scikit-learn's StratifiedGroupKFold: what counts is the sum over classes of squared deficits, each as a
    share of its class, and a unit goes where that falls most. A split that lacks a class of the unit goes before,
    where no more units with that class wait than splits lack it. Sizes count by powers of two, the largest first:
    within one power the lottery decides, so that another seed deals groups of like size anew.
    """
    images = {class_name: sum(row.values()) for class_name, row in missed.items()}
    lacking = {class_name: {split for split in splits if row[split] > 0} for class_name, row in missed.items()}
    waiting = Counter(class_name for unit in units for class_name in unit.counts)
    room = {split: sum(row[split] for row in missed.values()) for split in splits}

    def weigh(split: str, unit: Unit) -> tuple[int, float, int]:
        last = sum(split in lacking[name] and waiting[name] <= len(lacking[name]) for name in unit.counts)
        need = sum(count * missed[name][split] / images[name] ** 2 for name, count in unit.counts.items())
        return last, need, room[split]

    chosen: dict[str, str] = {}
    for unit in order_large(units, seed, purpose):
        split = max(splits, key=lambda split: weigh(split, unit))
        for class_name, count in unit.counts.items():
            missed[class_name][split] -= count
            lacking[class_name].discard(split)
            waiting[class_name] -= 1
        room[split] -= len(unit.keys)
        chosen |= dict.fromkeys(unit.keys, split)
    return chosen


def order_large(units: Iterable[Unit], seed: int, purpose: str) -> list[Unit]:
    """The units of several records: by powers of two of their size, the largest first, then by the lottery."""
    large = {unit.keys[0]: unit for unit in units if len(unit.keys) > 1}
    drawn = [large[key] for key in shuffle_keys(large, seed, purpose)]
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


def deal(keys: Sequence[str], sizes: Mapping[str, int]) -> dict[str, str]:
    """The first keys to the first split, the next to the second, and so on."""
    dealt: dict[str, str] = {}
    first = 0
    for split, size in sizes.items():
        dealt |= dict.fromkeys(keys[first : first + size], split)
        first += size
    return dealt
