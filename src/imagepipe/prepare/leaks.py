"""The leak gate: what the splits share although they must not, and what is done about it.

Looked for are equal pixels in two splits, a group in two splits, and equal pixels under two classes; `split.leaks` in
params.yaml says whether that stops the stage, is left out, or stays. Look-alikes across splits are reported only.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Literal

import pandas as pd

from imagepipe.core.errors import InputError, list_findings
from imagepipe.core.manifest import SPLITS, LeakInfo
from imagepipe.prepare.lookalikes import Lookalikes, find_lookalikes
from imagepipe.prepare.params import SplitParams
from imagepipe.prepare.units import find_repeats
from imagepipe.sources.records import Record

COLUMNS = (
    "kind",
    "distance",
    "action",
    "split",
    "key",
    "class",
    "source",
    "other_split",
    "other_key",
    "other_class",
    "other_source",
)
KINDS = {  # in the order of leaks.csv
    "duplicate": "equal pixels in two splits",
    "group": "groups in several splits",
    "label": "equal pixels under two classes",
}
# Between which splits equal pixels matter, and why: (the one that judges, the other) → what follows.
FLATTERED = {
    ("test", "train"): "accuracy on test flatters",
    ("val", "train"): "accuracy on val flatters",
    ("test", "val"): "what is chosen by val is chosen by test images too",
}

Policy = Literal["error", "drop", "keep"]


@dataclass(frozen=True, slots=True)
class Gate:
    """What `gate_leaks` found and decided.

    `findings` is leaks.csv, text in every column, one row a finding, sorted by kind, distance, key: `kind` is
    `duplicate`, `group`, `label` or `lookalike`; `distance` the bits in which two look-alikes differ, else '';
    `action` what becomes of `key` because of it (`kept`, `dropped`, or `reported` for look-alikes). `dropped` are the
    keys to leave out; `info` counts duplicates, groups and labels before that, repeated and near after it. `notes` are
    lines that the user should read.
    """

    info: LeakInfo
    findings: pd.DataFrame
    dropped: frozenset[str]
    notes: list[str]


@dataclass(frozen=True, slots=True)
class Finding:
    """One row of leaks.csv: `key` leaks with `other`; of two splits, `key` is in the lesser (train < val < test)."""

    kind: str
    key: str
    other: str
    distance: str = ""


def gate_leaks(
    records: Sequence[Record],
    splits: Mapping[str, str],
    pixel_sha256: Mapping[str, str],
    fingerprints: Mapping[str, str],
    params: SplitParams,
    official: Sequence[str],
    published: bool,
) -> Gate:
    """Look for leaks between the `splits` of the `records` (key → split, of just these), and act by `params.leaks`.

    `pixel_sha256` and `fingerprints` are by key; the second may lack images too small for one. `official` are the parts
    that the source itself made val or test, `published` says that others know them.

    Raises InputError where the policy is `error` and a leak is found, or where dropping would leave nothing of a split
    or of a class in train.
    """
    records = sorted(records, key=attrgetter("key"))
    policy = resolve_policy(params.leaks, official, published)
    equal = find_repeats(records, lambda record: pixel_sha256[record.key])
    groups = find_repeats([record for record in records if record.group], attrgetter("group"))
    torn = [images for images in equal if spans_splits(images, splits)]
    torn_groups = [images for images in groups if spans_splits(images, splits)]
    found = [*find_shared("duplicate", torn, splits), *find_shared("group", torn_groups, splits), *find_labels(equal)]
    if found and policy == "error":
        raise InputError(report_leaks(found, pick_records(found, records), splits))
    dropped = frozenset(finding.key for finding in found) if policy == "drop" else frozenset[str]()
    check_rest(records, splits, dropped)
    rest = [record.key for record in records if record.key not in dropped]
    near = find_near(rest, splits, fingerprints, equal, params.near_distance)
    alike = [Finding("lookalike", one, other, str(bits)) for one, other, bits in near.pairs] if near else []
    info = LeakInfo(
        policy=policy,
        duplicates=sum(splits[record.key] != "train" for images in torn for record in images),
        groups=len(torn_groups),
        labels=sum(finding.kind == "label" for finding in found),
        dropped=len(dropped),
        repeated=sum(count_repeated(images, splits, dropped) for images in equal),
        near=len(near.pairs) if near else None,
    )
    notes = write_notes(info, equal, splits, dropped, params, near)
    findings = [*found, *alike]
    return Gate(info, tabulate_findings(findings, pick_records(findings, records), splits, dropped), dropped, notes)


def resolve_policy(leaks: Literal["auto", "error", "drop", "keep"], official: Sequence[str], published: bool) -> Policy:
    """`auto` keeps the own parts of a published set, whose figures are compared, and is `error` otherwise."""
    if leaks == "auto":
        return "keep" if published and official else "error"
    return leaks


def spans_splits(records: Iterable[Record], splits: Mapping[str, str]) -> bool:
    """Whether the records are in more than one split."""
    return len({splits[record.key] for record in records}) > 1


def count_repeated(equal: Sequence[Record], splits: Mapping[str, str], dropped: frozenset[str]) -> int:
    """Of equal images that stay, those beyond the first of each split."""
    rest = [splits[record.key] for record in equal if record.key not in dropped]
    return len(rest) - len(set(rest))


def find_shared(kind: str, sets: Iterable[Sequence[Record]], splits: Mapping[str, str]) -> list[Finding]:
    """Every key of a set that has a higher split too, against the first key that the set has in its highest.

    One finding for each such key, so that many copies do not give the square of their number.
    """
    found: list[Finding] = []
    for records in sets:
        highest = max((splits[record.key] for record in records), key=SPLITS.index)
        first = next(record.key for record in records if splits[record.key] == highest)
        found += [Finding(kind, record.key, first) for record in records if splits[record.key] != highest]
    return found


def find_labels(equal: Iterable[Sequence[Record]]) -> list[Finding]:
    """Every key whose pixels stand under another class too, against the first key of another class."""
    found: list[Finding] = []
    for records in equal:
        first_of: dict[str, str] = {}
        for record in records:
            first_of.setdefault(record.class_name, record.key)
        firsts = list(first_of.items())[:2]
        if len(firsts) == 2:
            (name, first), (_, second) = firsts
            found += [
                Finding("label", record.key, second if record.class_name == name else first) for record in records
            ]
    return found


def find_near(
    keys: Iterable[str],
    splits: Mapping[str, str],
    fingerprints: Mapping[str, str],
    equal: Iterable[Sequence[Record]],
    distance: int,
) -> Lookalikes | None:
    """Look-alikes across splits; None where they are not looked for, or no image is large enough for a fingerprint."""
    present = {key: value for key in keys if (value := fingerprints.get(key))} if distance >= 0 else {}
    if not present:
        return None
    pixels = {record.key: number for number, records in enumerate(equal) for record in records}
    return find_lookalikes(present, splits, distance, pixels)


def pick_records(findings: Iterable[Finding], records: Iterable[Record]) -> dict[str, Record]:
    """By key the records that the findings name."""
    named = {key for finding in findings for key in (finding.key, finding.other)}
    return {record.key: record for record in records if record.key in named}


def report_leaks(found: Sequence[Finding], by_key: Mapping[str, Record], splits: Mapping[str, str]) -> str:
    """The message for `error`: kind by kind, each pair once, each group once, and what can be done."""
    lines: dict[str, dict[object, str]] = {kind: {} for kind in KINDS}
    for finding in found:
        group = by_key[finding.key].group
        pair = group if finding.kind == "group" else frozenset((finding.key, finding.other))
        sides = " and ".join(describe_side(by_key[key], splits[key]) for key in (finding.key, finding.other))
        lines[finding.kind].setdefault(pair, f"{group!r}: {sides}" if finding.kind == "group" else sides)
    reports = [list_findings(KINDS[kind], list(of_kind.values())) for kind, of_kind in lines.items() if of_kind]
    remedy = (
        "Set split.leaks in params.yaml to `drop` (test stays whole, val and train give up what a higher split holds "
        "too; of equal pixels under two classes every image goes) or to `keep` (nothing goes; figures flatter); "
        "leaks.csv then lists all of them."
    )
    if lines["group"]:
        remedy += " Or set split.strategy to `group`, which deals all images anew and keeps each group in one split."
    if lines["label"]:
        remedy += " Or mend the labels in the source."
    return "\n".join([f"the splits leak: {reports[0]}", *reports[1:], remedy])


def describe_side(record: Record, split: str) -> str:
    """One image of a pair, for a message."""
    return f"{record.source} ({split}, class {record.class_name!r})"


def check_rest(records: Sequence[Record], splits: Mapping[str, str], dropped: frozenset[str]) -> None:
    """Raise InputError where a split, or a class of train, had images and has none once `dropped` are out."""
    if not dropped:
        return
    before = Counter((splits[record.key], record.class_name) for record in records)
    after = before - Counter((splits[record.key], record.class_name) for record in records if record.key in dropped)
    gone = {
        f"class {name!r} of train": count
        for (split, name), count in before.items()
        if split == "train" and not after[split, name]
    }
    for empty in {split for split, _ in before} - {split for split, _ in after}:
        gone[f"split {empty}"] = sum(count for (split, _), count in before.items() if split == empty)
    if gone:
        raise InputError(
            list_findings(
                "params.yaml: split.leaks is `drop`, and that leaves nothing of",
                [f"{name}: {count}, all dropped" for name, count in sorted(gone.items())],
                "Bring images that the splits do not share, mend the labels, or set split.leaks to `keep`.",
            )
        )


def tabulate_findings(
    rows: Sequence[Finding], by_key: Mapping[str, Record], splits: Mapping[str, str], dropped: frozenset[str]
) -> pd.DataFrame:
    """leaks.csv (see `Gate`)."""
    order = {kind: place for place, kind in enumerate((*KINDS, "lookalike"))}
    table: list[tuple[str, ...]] = []
    for row in sorted(rows, key=lambda row: (order[row.kind], row.distance, row.key, row.other)):
        done = "dropped" if row.key in dropped else "kept"
        side, other = by_key[row.key], by_key[row.other]
        values = (row.kind, row.distance, "reported" if row.kind == "lookalike" else done)
        sides = (splits[side.key], side.key, side.class_name, side.source)
        others = (splits[other.key], other.key, other.class_name, other.source)
        table.append((*values, *sides, *others))
    return pd.DataFrame(table, columns=list(COLUMNS), dtype=str)


def write_notes(
    info: LeakInfo,
    equal: Sequence[Sequence[Record]],
    splits: Mapping[str, str],
    dropped: frozenset[str],
    params: SplitParams,
    near: Lookalikes | None,
) -> list[str]:
    """What the user should read of it, one line each."""
    notes: list[str] = []
    if info.policy == "keep":
        why = "kept, since split.leaks is keep"
        if params.leaks == "auto":
            why = "kept, since these are a published set's own parts and split.leaks is auto"
        notes += note_kept(info, equal, splits, why)
    if dropped:
        of_split = Counter(splits[key] for key in dropped)
        spread = ", ".join(f"{of_split[split]} of {split}" for split in SPLITS if of_split[split])
        notes.append(f"{count_images(len(dropped))} left out ({spread}), since split.leaks is drop; leaks.csv says why")
    if info.repeated:
        notes.append(f"{count_images(info.repeated)} with the very pixels of another in the same split (kept)")
    if near and (near.pairs or near.capped):
        count = f"at least {len(near.pairs)}" if near.capped else str(len(near.pairs))
        notes.append(
            f"look-alikes across splits: {count} (at most {params.near_distance} of 64 bits differ; reported in "
            "leaks.csv, all kept)"
            + ("; where very many images look alike, not all were compared or listed" if near.capped else "")
        )
    return notes


def note_kept(info: LeakInfo, equal: Sequence[Sequence[Record]], splits: Mapping[str, str], why: str) -> list[str]:
    """What stays although it leaks, and what follows from it."""
    shared: Counter[tuple[str, str]] = Counter()
    for records in equal:
        of_split = Counter(splits[record.key] for record in records)
        shared.update({pair: of_split[pair[0]] for pair in FLATTERED if of_split[pair[0]] and of_split[pair[1]]})
    notes = [
        f"{count_images(shared[pair], pair[0])} with the very pixels of {pair[1]} images ({why}): {result}"
        for pair, result in FLATTERED.items()
        if shared[pair]
    ]
    if info.groups:
        notes.append(f"groups in several splits: {info.groups} ({why}): accuracy on test may flatter")
    if info.labels:
        notes.append(
            f"{count_images(info.labels)} whose pixels stand under another class too ({why}): "
            "no model gets all of them right"
        )
    return notes


def count_images(count: int, of: str = "") -> str:
    """`1 test image`, `3 images`."""
    return " ".join(filter(None, (str(count), of, "image" if count == 1 else "images")))
