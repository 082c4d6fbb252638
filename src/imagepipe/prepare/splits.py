"""Which record goes to which split: seeded, exact in size, and independent of the order in which records arrive.

A record's place in the lottery is the SHA-256 of (seed, purpose, key), so neither a library's random generator nor the
order of a directory listing decides anything.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from imagepipe.core.errors import InputError, list_findings
from imagepipe.core.manifest import SPLITS, order_classes
from imagepipe.prepare.params import SplitParams
from imagepipe.sources.records import Record


def assign_splits(records: Sequence[Record], params: SplitParams) -> dict[str, str]:
    """Key → `train`, `val` or `test`, for every record that stays after `first` and `limit_per_split`.

    Official parts are kept. A part that the source lacks is cut from the rest: val from the official train part in the
    proportion train : val, everything by the fractions where the source has no parts.

    Raises InputError where a class is too small to be spread, or a split that was asked for would be empty.
    """
    check_records(records)
    if params.first:
        records = sorted(records, key=lambda record: record.key)[: params.first]
    shares = choose_shares(records, params)
    chosen = {record.key: record.part for record in records if record.part in ("val", "test")}
    pool = [record for record in records if record.key not in chosen]
    if params.strategy == "stratified":
        chosen |= split_stratified(pool, shares, params.seed)
    else:
        keys = sorted(record.key for record in pool)
        if params.strategy == "random":
            keys = shuffle_keys(keys, params.seed, "split")
        chosen |= deal(keys, apportion(len(keys), shares, dict.fromkeys(shares, 0.0)))
    if params.limit_per_split:
        chosen = limit_splits(records, chosen, params)
    empty = [split for split in SPLITS if shares.get(split) and split not in chosen.values()]
    if empty:
        raise InputError(
            f"params.yaml: split.fractions: {len(records)} images leave {' and '.join(empty)} empty; "
            "raise the fraction or bring more images."
        )
    return chosen


def check_records(records: Sequence[Record]) -> None:
    """Raise InputError where there is nothing to split, or two records share a key."""
    if not records:
        raise InputError("the source holds no images; nothing to split.")
    doubled = [key for key, count in Counter(record.key for record in records).items() if count > 1]
    if doubled:
        raise InputError(list_findings("two images share one key", sorted(doubled)))


def choose_shares(records: Sequence[Record], params: SplitParams) -> dict[str, float]:
    """The share of each split among the records that the source itself gave no place in val or test; they sum to 1."""
    official = {record.part for record in records}
    wanted = {split: getattr(params.fractions, split) for split in SPLITS}
    shares = {split: share for split, share in wanted.items() if split == "train" or split not in official}
    total = sum(shares.values())
    return {split: share / total for split, share in shares.items()}


def split_stratified(records: Sequence[Record], shares: dict[str, float], seed: int) -> dict[str, str]:
    """Every class spread by the shares, each count within one image of its share."""
    by_class: dict[str, list[str]] = defaultdict(list)
    for record in records:
        by_class[record.class_name].append(record.key)
    needed = sum(share > 0 for share in shares.values())
    small = [f"{name!r}: {len(keys)}" for name, keys in sorted(by_class.items()) if len(keys) < needed]
    if small:
        raise InputError(
            list_findings(
                f"classes with fewer than {needed} images cannot be spread over {needed} splits",
                small,
                "Bring more images of them, leave them out, or set split.strategy to `random`.",
            )
        )
    chosen: dict[str, str] = {}
    owed = dict.fromkeys(shares, 0.0)
    for name in order_classes(by_class):
        keys = by_class[name]
        sizes = apportion(len(keys), shares, owed)
        for split, size in sizes.items():
            owed[split] += len(keys) * shares[split] - size
        chosen |= deal(shuffle_keys(keys, seed, "split"), sizes)
    return chosen


def apportion(count: int, shares: dict[str, float], owed: dict[str, float]) -> dict[str, int]:
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


def shuffle_keys(keys: Iterable[str], seed: int, purpose: str) -> list[str]:
    """The keys in an order that depends on seed, purpose and keys alone."""
    return sorted(keys, key=lambda key: hashlib.sha256(f"{seed}\0{purpose}\0{key}".encode()).digest())


def deal(keys: Sequence[str], sizes: dict[str, int]) -> dict[str, str]:
    """The first keys to the first split, the next to the second, and so on."""
    dealt: dict[str, str] = {}
    first = 0
    for split, size in sizes.items():
        dealt |= dict.fromkeys(keys[first : first + size], split)
        first += size
    return dealt


def limit_splits(records: Sequence[Record], chosen: dict[str, str], params: SplitParams) -> dict[str, str]:
    """At most `limit_per_split` records of each split: at random, or as evenly over the classes as they allow."""
    class_of = {record.key: record.class_name for record in records}
    kept: dict[str, str] = {}
    for split in SPLITS:
        keys = shuffle_keys((key for key, name in chosen.items() if name == split), params.seed, "limit")
        if params.limit_choice == "balanced":
            keys = alternate_classes(keys, class_of)
        kept |= dict.fromkeys(keys[: params.limit_per_split], split)
    return kept


def alternate_classes(keys: Sequence[str], class_of: dict[str, str]) -> list[str]:
    """The keys reordered so that the classes take turns: any beginning of it is as even as the classes allow.

    Within a turn the classes come in the order of `keys`, so that a limit below their number favours none.
    """
    seen: Counter[str] = Counter()
    turns: list[tuple[int, int]] = []
    for position, key in enumerate(keys):
        turns.append((seen[class_of[key]], position))
        seen[class_of[key]] += 1
    return [keys[position] for _, position in sorted(turns)]
