import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagepipe.core.config import load_section
from imagepipe.core.errors import InputError
from imagepipe.core.manifest import SPLITS
from imagepipe.prepare.params import SplitParams
from imagepipe.prepare.splits import Assignment, alternate_classes, assign_splits, read_number, take_first
from imagepipe.sources.records import Record

PIXEL = np.zeros((1, 1), np.uint8)
BASE = Path(__file__).resolve().parents[2] / "recipes" / "base.yaml"


def list_records(
    counts: Mapping[str, int], part: str = "", first: int = 0, groups: Sequence[str] | None = None
) -> list[Record]:
    """Records of one part with so many images of each class; `groups` are taken in turn."""
    names = [name for name, count in counts.items() for _ in range(count)]
    groups = groups or [""]
    return [
        Record(f"{key:05d}", name, part, groups[(key - first) % len(groups)], "made", PIXEL)
        for key, name in enumerate(names, first)
    ]


@cache
def load_base() -> dict[str, Any]:
    return load_section("split", SplitParams, BASE).model_dump()


def make_params(train: float, val: float, test: float, strategy: str = "stratified", **changes: object) -> SplitParams:
    fractions = {"train": train, "val": val, "test": test}
    return SplitParams.model_validate(load_base() | {"fractions": fractions, "strategy": strategy, "seed": 1} | changes)


def assign_all(records: Sequence[Record], params: SplitParams, pixels: Mapping[str, str] | None = None) -> Assignment:
    """`assign_splits` of images of which no two are equal, but for those that `pixels` (key → hash) makes so."""
    return assign_splits(
        records, {record.key: f"pixels of {record.key}" for record in records} | (pixels or {}), params
    )


def assign(records: Sequence[Record], params: SplitParams, pixels: Mapping[str, str] | None = None) -> dict[str, str]:
    return assign_all(records, params, pixels).splits


def refuse(records: Sequence[Record], params: SplitParams, pixels: Mapping[str, str] | None = None) -> list[str]:
    """The lines of the error."""
    with pytest.raises(InputError) as caught:
        assign_all(records, params, pixels)
    return str(caught.value).splitlines()


def count_splits(chosen: Mapping[str, str]) -> list[int]:
    counts = Counter(chosen.values())
    return [counts[split] for split in SPLITS]


def count_classes(records: Sequence[Record], chosen: Mapping[str, str]) -> Counter[tuple[str, str]]:
    """(split, class) → images."""
    return Counter((chosen[record.key], record.class_name) for record in records if record.key in chosen)


def sum_splits(chosen: Mapping[str, str]) -> str:
    """SHA-256 of the lines `key split`, by key."""
    return hashlib.sha256("".join(f"{key} {chosen[key]}\n" for key in sorted(chosen)).encode()).hexdigest()


TEN = {str(digit): 10 for digit in range(10)}
UNEVEN = {"a": 33, "b": 33, "c": 34}
DIGITS = {str(digit): n for digit, n in enumerate((178, 182, 177, 183, 181, 182, 181, 179, 174, 180))}
EVEN = make_params(0.5, 0.25, 0.25)


# Sizes


@pytest.mark.parametrize("strategy", ["official", "stratified", "random"])
@pytest.mark.parametrize("counts", [TEN, UNEVEN, {"a": 97, "b": 3}, {"a": 100}])
def test_100_at_080_are_80_and_20(strategy: str, counts: dict[str, int]) -> None:
    assert count_splits(assign(list_records(counts), make_params(0.8, 0.0, 0.2, strategy))) == [80, 0, 20]


@pytest.mark.parametrize("strategy", ["official", "stratified", "random", "ordered"])
def test_100_at_070_010_020(strategy: str) -> None:
    found = assign_all(list_records(UNEVEN), make_params(0.7, 0.1, 0.2, strategy))
    assert count_splits(found.splits) == [70, 10, 20]
    assert (found.official, found.notes) == ([], [])


def test_every_class_gets_its_share() -> None:
    records = list_records(TEN)
    counts = count_classes(records, assign(records, make_params(0.7, 0.1, 0.2)))
    assert counts == {(split, name): n for split, n in zip(SPLITS, (7, 1, 2), strict=True) for name in TEN}


def test_the_odd_image_goes_where_most_is_owed() -> None:
    # Each class of 5 owes 3.5 and 1.5: the halves go to train and val in turn, so that the totals are 14 and 6.
    records = list_records({"a": 5, "b": 5, "c": 5, "d": 5})
    counts = count_classes(records, assign(records, make_params(0.7, 0.3, 0.0)))
    assert [counts["train", name] for name in "abcd"] == [4, 3, 4, 3]
    assert [counts["val", name] for name in "abcd"] == [1, 2, 1, 2]


# What was dealt once is dealt so for ever: committed results rest on it


def test_ten_images_are_dealt_as_ever() -> None:
    chosen = assign(list_records({"a": 5, "b": 5}), make_params(0.6, 0.2, 0.2))
    assert {split: sorted(key for key in chosen if chosen[key] == split) for split in SPLITS} == {
        "train": ["00000", "00002", "00003", "00005", "00007", "00008"],
        "val": ["00004", "00006"],
        "test": ["00001", "00009"],
    }


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"strategy": "stratified"}, "331fe0ac6407382fc9b789b1d46f933d9781d7e4e0ee7c19d9f8f562c8edafee"),
        ({"strategy": "official"}, "331fe0ac6407382fc9b789b1d46f933d9781d7e4e0ee7c19d9f8f562c8edafee"),
        ({"seed": 2}, "bfa2d0bce6228c367b0bd93f67d83789bc4dc5ef7b3f13fc32edc73d879d8f85"),
        ({"strategy": "random"}, "d2a4670fa6b506d47af50ec10aac7fca2c739819079704ed95a4e95f3cdeebda"),
        ({"limit_per_split": 25}, "364d5b306ebcea6732e3384cdecd757f69bd49c811f8764ffb01240ee8514f86"),
    ],
)
def test_single_images_are_dealt_as_ever(changes: dict[str, object], expected: str) -> None:
    chosen = assign(list_records(DIGITS), make_params(0.7, 0.1, 0.2, **changes))  # type: ignore[arg-type]
    assert sum_splits(chosen) == expected


def test_val_is_cut_from_an_official_train_part_as_ever() -> None:
    records = [*list_records(DIGITS, "train"), *list_records({"0": 9, "7": 4}, "test", 1797)]
    chosen = assign(records, make_params(0.7, 0.1, 0.2, "official"))
    assert sum_splits(chosen) == "02f61ace1a606db24599ab58cc623426a55bd47cdcd3ee2da33b0e8bb511db5e"


# What always holds

CLASS_COUNTS = st.dictionaries(st.text(max_size=4), st.integers(10, 40), min_size=1, max_size=6)
WEIGHTS = st.tuples(st.integers(1, 5), st.integers(0, 3), st.integers(0, 2))
SEEDS = st.integers(0, 2**63 - 1)
COUNTING = st.sampled_from(["official", "stratified", "random"])
ALL = ["official", "stratified", "group", "hash", "kfold", "random", "ordered"]
always = settings(max_examples=60)


def make_shares(weights: tuple[int, int, int]) -> tuple[float, float, float]:
    train, val, test = (weight / sum(weights) for weight in weights)
    return train, val, test


@st.composite
def draw_tangle(draw: st.DrawFn) -> tuple[list[Record], dict[str, str]]:
    """100 to 160 records of three classes and two parts, some in groups and some with equal pixels."""
    size = draw(st.integers(100, 160))
    random = Random(draw(st.integers(0, 2**32)))  # not hypothesis' own, which makes all images equal when it can
    records = [
        Record(
            f"{number:03d}",
            "abc"[number % 3],
            random.choice(["train", "test"]) if number < 20 else "train",
            random.choice(["", "", f"g{random.randrange(60)}"]),
            "made",
            PIXEL,
            {"time": str(random.randrange(30))},
        )
        for number in range(size)
    ]
    return records, {record.key: f"p{random.randrange(8 * size)}" for record in records}


@always
@given(tangle=draw_tangle(), seed=SEEDS, strategy=st.sampled_from(ALL), random=st.randoms(use_true_random=False))
def test_every_record_is_in_one_split_whatever_the_order(
    tangle: tuple[list[Record], dict[str, str]], seed: int, strategy: str, random: Random
) -> None:
    records, pixels = tangle
    params = make_params(0.5, 0.25, 0.25, strategy, seed=seed, order_column="time")
    expected = assign_all(records, params, pixels)
    assert list(expected.splits) == [record.key for record in records]
    random.shuffle(records)
    found = assign_all(records, params, pixels)
    assert found == expected
    assert list(found.splits) == list(expected.splits)


@always
@given(tangle=draw_tangle(), seed=SEEDS, strategy=st.sampled_from(["stratified", "group", "random", "kfold", "hash"]))
def test_no_group_and_no_picture_is_torn(tangle: tuple[list[Record], dict[str, str]], seed: int, strategy: str) -> None:
    records, pixels = tangle
    chosen = assign(records, make_params(0.5, 0.25, 0.25, strategy, seed=seed), pixels)
    places: dict[tuple[str, str], set[str]] = defaultdict(set)
    for record in records:
        if record.group:
            places["group", record.group].add(chosen[record.key])
        if strategy != "hash" or not record.group:
            places["pixels", pixels[record.key]].add(chosen[record.key])
    assert all(len(splits) == 1 for splits in places.values())


@always
@given(counts=CLASS_COUNTS, weights=WEIGHTS, seed=SEEDS, strategy=COUNTING)
def test_totals_are_within_one(counts: dict[str, int], weights: tuple[int, int, int], seed: int, strategy: str) -> None:
    records = list_records(counts)
    chosen = assign(records, make_params(*make_shares(weights), strategy, seed=seed))
    for share, found in zip(make_shares(weights), count_splits(chosen), strict=True):
        assert abs(found - share * len(records)) < 1
        assert (found > 0) == (share > 0)


@always
@given(counts=CLASS_COUNTS, weights=WEIGHTS, seed=SEEDS)
def test_stratified_is_within_one_of_the_share_in_every_class(
    counts: dict[str, int], weights: tuple[int, int, int], seed: int
) -> None:
    records = list_records(counts)
    found = count_classes(records, assign(records, make_params(*make_shares(weights), seed=seed)))
    for name, count in counts.items():
        for split, share in zip(SPLITS, make_shares(weights), strict=True):
            assert abs(found[split, name] - share * count) < 1


@always
@given(
    counts=CLASS_COUNTS,
    weights=WEIGHTS,
    strategy=COUNTING,
    limit=st.integers(1, 12),
    choice=st.sampled_from(["balanced", "random"]),
    random=st.randoms(use_true_random=False),
)
def test_the_order_of_the_records_decides_no_limit(
    counts: dict[str, int], weights: tuple[int, int, int], strategy: str, limit: int, choice: str, random: Random
) -> None:
    records = list_records(counts)
    params = make_params(*make_shares(weights), strategy, limit_per_split=limit, limit_choice=choice)
    expected = assign(records, params)
    random.shuffle(records)
    assert assign(records, params) == expected


@always
@given(counts=CLASS_COUNTS, limit=st.integers(1, 30), choice=st.sampled_from(["balanced", "random"]))
def test_a_limit_keeps_records_where_they_were(counts: dict[str, int], limit: int, choice: str) -> None:
    records = list_records(counts)
    whole = assign(records, make_params(0.6, 0.2, 0.2))
    kept = assign(records, make_params(0.6, 0.2, 0.2, limit_per_split=limit, limit_choice=choice))
    assert kept.items() <= whole.items()
    assert count_splits(kept) == [min(limit, found) for found in count_splits(whole)]


# Seeds


@pytest.mark.parametrize("strategy", ["official", "stratified", "random", "hash", "kfold"])
def test_a_seed_gives_one_split_and_another_seed_another(strategy: str) -> None:
    records = list_records(TEN)
    one, again, other = (assign(records, make_params(0.7, 0.1, 0.2, strategy, seed=seed)) for seed in (1, 1, 2))
    assert one == again
    assert one != other


# Official parts


def test_an_official_test_part_stays_and_val_is_cut_from_train() -> None:
    train, test = list_records({"a": 40, "b": 40}, "train"), list_records({"a": 3, "b": 5}, "test", first=80)
    found = assign_all([*train, *test], make_params(0.7, 0.1, 0.2, "official"))
    # train : val is 7 : 1, so that 80 become 70 and 10.
    assert count_splits(found.splits) == [70, 10, 8]
    assert (found.official, found.notes) == (["test"], [])
    assert {record.key for record in test} == {key for key, split in found.splits.items() if split == "test"}
    assert count_classes(train, found.splits) == {
        ("train", "a"): 35,
        ("train", "b"): 35,
        ("val", "a"): 5,
        ("val", "b"): 5,
    }


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_no_seed_moves_an_official_test_image(seed: int) -> None:
    train, test = list_records({"a": 20}, "train"), list_records({"a": 10}, "test", first=20)
    chosen = assign([*train, *test], make_params(0.5, 0.5, 0.0, "official", seed=seed))
    assert {key for key, split in chosen.items() if split == "test"} == {record.key for record in test}


def test_all_official_parts_stay() -> None:
    records = [
        *list_records({"a": 5}, "train"),
        *list_records({"a": 4}, "val", first=5),
        *list_records({"a": 3}, "test", first=9),
    ]
    found = assign_all(records, make_params(0.1, 0.8, 0.1, "official"))
    assert found.splits == {record.key: record.part for record in records}
    assert (found.official, found.notes) == (["test", "val"], [])


def test_an_official_val_part_becomes_test_and_a_new_val_is_cut() -> None:
    train, val = list_records({"a": 80}, "train"), list_records({"a": 4}, "val", first=80)
    found = assign_all([*train, *val], make_params(0.7, 0.1, 0.2, "official", val_as_test=True))
    assert count_splits(found.splits) == [70, 10, 4]
    assert {key for key, split in found.splits.items() if split == "test"} == {record.key for record in val}
    assert found.official == ["test"]
    assert found.notes == [
        "the source has a val part but no test part: its val is test here, and val is cut from its train part, because "
        "test is what nobody has chosen by. split.val_as_test: false keeps its val."
    ]


def test_val_as_test_cuts_no_val_where_none_is_asked_for() -> None:
    train, val = list_records({"a": 80}, "train"), list_records({"a": 4}, "val", first=80)
    found = assign_all([*train, *val], make_params(0.8, 0.0, 0.2, "official", val_as_test=True))
    assert count_splits(found.splits) == [80, 0, 4]
    assert "its val is test here, and there is no val, since split.fractions.val is 0" in found.notes[0]


def test_an_official_val_part_can_stay_and_test_is_cut_from_train() -> None:
    train, val = list_records({"a": 90}, "train"), list_records({"a": 4}, "val", first=90)
    found = assign_all([*train, *val], make_params(0.7, 0.1, 0.2, "official", val_as_test=False))
    assert count_splits(found.splits) == [70, 4, 20]
    assert {key for key, split in found.splits.items() if split == "val"} == {record.key for record in val}
    assert found.official == ["val"]
    assert found.notes == [
        "the source has a val part but no test part: its val stays (split.val_as_test is false), and test is cut from "
        "its train part."
    ]


def test_val_as_test_means_nothing_where_the_source_has_a_test_part() -> None:
    records = [list_records({"a": 5}, part, first)[0] for first, part in enumerate(["train", "val", "test"])]
    for choice in (True, False):
        found = assign_all(records, make_params(0.7, 0.1, 0.2, "official", val_as_test=choice))
        assert (list(found.splits.values()), found.notes) == (["train", "val", "test"], [])


def test_records_without_a_part_are_cut_like_those_of_train() -> None:
    records = [*list_records({"a": 60}, "train"), *list_records({"a": 20}, "", 60), *list_records({"a": 5}, "test", 80)]
    chosen = assign(records, make_params(0.7, 0.1, 0.2, "official"))
    assert count_splits(chosen) == [70, 10, 5]


def test_an_official_train_part_alone_is_cut_in_three() -> None:
    found = assign_all(list_records({"a": 100}, "train"), make_params(0.7, 0.1, 0.2, "official"))
    assert count_splits(found.splits) == [70, 10, 20]
    assert (found.official, found.notes) == ([], [])


def test_equal_images_of_what_is_cut_stay_together_and_official_parts_stay_what_they_are() -> None:
    records = [*list_records({"a": 20}, "train"), *list_records({"a": 5}, "test", first=20)]
    pixels = {"00003": "x", "00007": "x", "00022": "x"}
    for seed in range(20):
        chosen = assign(records, make_params(0.5, 0.5, 0.0, "official", seed=seed), pixels)
        assert chosen["00003"] == chosen["00007"] != chosen["00022"] == "test"
        assert count_splits(chosen) == [10, 10, 5]


@pytest.mark.parametrize("strategy", ["stratified", "group", "hash", "kfold", "random", "ordered"])
def test_the_others_deal_the_parts_anew_and_say_so(strategy: str) -> None:
    groups = [f"g{number}" for number in range(30)]
    train = list_records({"a": 20, "b": 20}, "train", 0, groups)
    test = list_records({"a": 10, "b": 10}, "test", 40, groups)
    found = assign_all([*train, *test], make_params(0.5, 0.25, 0.25, strategy))
    assert found.official == []
    assert found.notes[0] == (
        f"split.strategy `{strategy}` deals the source's own parts anew (40 train, 20 test): figures cannot be "
        "compared with those of others on these parts; `official` keeps them."
    )
    assert {found.splits[record.key] for record in test} != {"test"}


def test_nothing_is_dealt_anew_where_the_source_has_a_train_part_alone() -> None:
    assert assign_all(list_records({"a": 20}, "train"), EVEN).notes == []


# Units


def test_a_group_counts_as_one_and_the_classes_stay_even() -> None:
    # Ten groups of ten a class: the shares are whole groups.
    names = [f"g{number // 10}" for number in range(200)]
    records = list_records({"a": 100, "b": 100}, groups=names)
    found = assign_all(records, make_params(0.7, 0.1, 0.2, "group"))
    counts = count_classes(records, found.splits)
    assert counts == {(split, name): n for split, n in zip(SPLITS, (70, 10, 20), strict=True) for name in "ab"}
    assert found.notes == []


def test_equal_pixels_under_two_labels_stay_together_and_count_for_both() -> None:
    records = list_records({"a": 10, "b": 10})
    for seed in range(20):
        chosen = assign(records, make_params(0.5, 0.0, 0.5, seed=seed), {"00000": "x", "00019": "x"})
        assert chosen["00000"] == chosen["00019"]
        assert count_classes(records, chosen) == {(split, name): 5 for split in ("train", "test") for name in "ab"}


def test_random_comes_as_near_to_the_sizes_as_whole_groups_allow() -> None:
    # 32 in groups of 4 at 0.5, 0.25, 0.25 are 4, 2 and 2 groups; of 30 in groups of 10 each split gets one.
    eight = list_records({"a": 32}, groups=[f"g{number // 4}" for number in range(32)])
    assert count_splits(assign(eight, make_params(0.5, 0.25, 0.25, "random"))) == [16, 8, 8]
    three = list_records({"a": 30}, groups=[f"g{number // 10}" for number in range(30)])
    found = assign_all(three, make_params(0.5, 0.25, 0.25, "random"))
    assert count_splits(found.splits) == [10, 10, 10]
    assert found.notes == [
        "split.strategy `random` dealt 30 images: train 33.3% (asked for 50.0%), val 33.3% (asked for 25.0%), "
        "test 33.3% (asked for 25.0%); groups and equal images stay together."
    ]


def test_random_does_not_look_at_classes() -> None:
    records = list_records({"a": 30, "b": 30})
    counts = [count_classes(records, assign(records, make_params(0.5, 0, 0.5, "random", seed=n))) for n in range(10)]
    assert len({found["test", "a"] for found in counts}) > 1


def test_images_without_group_are_counted() -> None:
    records = list_records({"a": 12}, groups=["g", "h", "", "i", "j", ""])
    assert assign_all(records, make_params(0.5, 0.25, 0.25, "group")).notes == [
        "4 of 12 images have no group; each of them is dealt alone."
    ]


# kfold


@always
@given(tangle=draw_tangle(), folds=st.integers(2, 6), seed=SEEDS)
def test_every_record_is_tested_in_one_fold(tangle: tuple[list[Record], dict[str, str]], folds: int, seed: int) -> None:
    records, pixels = tangle
    tested: list[str] = []
    for fold in range(folds):
        params = make_params(0.8, 0.2, 0.0, "kfold", folds=folds, fold=fold, seed=seed)
        tested += [key for key, split in assign(records, params, pixels).items() if split == "test"]
    assert sorted(tested) == [record.key for record in records]


def test_folds_are_even_in_every_class_and_val_is_cut_from_the_rest() -> None:
    # Of 20 a class, a fifth is test; of the other 16, val is 0.2 / (0.6 + 0.2), a quarter. The 0.2 of test is not used.
    records = list_records({"a": 20, "b": 20})
    for fold in range(5):
        found = assign_all(records, make_params(0.6, 0.2, 0.2, "kfold", folds=5, fold=fold))
        counts = count_classes(records, found.splits)
        assert counts == {(split, name): n for split, n in zip(SPLITS, (12, 4, 4), strict=True) for name in "ab"}
        assert found.notes == []


def test_folds_need_no_test_fraction_and_no_val() -> None:
    assert count_splits(assign(list_records({"a": 9}), make_params(1, 0, 0, "kfold", folds=3))) == [6, 0, 3]


def test_a_class_with_fewer_images_than_folds_is_named() -> None:
    assert refuse(list_records({"a": 9, "NA": 3}), make_params(1, 0, 0, "kfold", folds=4)) == [
        "classes with fewer than 4 images cannot be dealt into 4 folds (1):",
        "  'NA': 3",
        "Bring more images of them, leave them out, or lower split.folds.",
    ]


def test_folds_count_units() -> None:
    lines = refuse(list_records({"a": 4}), make_params(1, 0, 0, "kfold", folds=4), {"00001": "x", "00003": "x"})
    assert lines[0] == "classes with fewer than 4 different images cannot be dealt into 4 folds (1):"
    assert lines[1] == "  'a': 3"


def test_a_class_with_one_image_beside_the_test_fold_cannot_have_val() -> None:
    records = list_records({"a": 8, "b": 2})
    assert refuse(records, make_params(0.5, 0.5, 0, "kfold", folds=2)) == [
        "classes with fewer than 2 images outside the test fold cannot be spread over train and val (1):",
        "  'b': 1",
        "Bring more images of them, leave them out, or set split.fractions.val to 0.",
    ]
    assert count_splits(assign(records, make_params(1, 0, 0, "kfold", folds=2))) == [5, 0, 5]


# hash


@always
@given(tangle=draw_tangle(), seed=SEEDS, kept=st.integers(60, 99))
def test_adding_images_moves_no_old_one(tangle: tuple[list[Record], dict[str, str]], seed: int, kept: int) -> None:
    records, pixels = tangle
    params = make_params(0.5, 0.25, 0.25, "hash", seed=seed)
    assert assign(records[:kept], params, pixels).items() <= assign(records, params, pixels).items()


def test_the_hash_is_cut_at_the_cumulated_fractions() -> None:
    # printf '1\0hash\0a' | sha256sum begins with 30, b with 75, d with b3, e with e3, j with 86; 0x86 / 256 is 0.52,
    # and the cuts lie at 0.5 and 0.625.
    records = list_records({"x": 5})
    pixels = dict(zip([record.key for record in records], "abdej", strict=True))
    chosen = assign(records, make_params(0.5, 0.125, 0.375, "hash"), pixels)
    assert list(chosen.values()) == ["train", "train", "test", "test", "val"]


def test_the_hash_looks_at_the_group_before_the_pixels_and_never_at_the_key() -> None:
    records = list_records({"a": 200}, groups=[f"g{number}" for number in range(100)])
    chosen = assign(records, make_params(0.5, 0.25, 0.25, "hash"))
    renamed = [replace(record, key=f"x{record.key}") for record in records]
    assert assign(renamed, make_params(0.5, 0.25, 0.25, "hash")) == {f"x{key}": chosen[key] for key in chosen}


def test_the_hash_says_what_came_out() -> None:
    records = list_records({"a": 1000})
    found = assign_all(records, make_params(0.7, 0.0, 0.3, "hash"))
    train, val, test = count_splits(found.splits)
    assert abs(train - 700) < 60  # four standard deviations
    assert val == 0
    assert found.notes == [
        f"split.strategy `hash` dealt 1000 images: train {train / 10:.1f}% (asked for 70.0%), val 0.0% (asked for "
        f"0.0%), test {test / 10:.1f}% (asked for 30.0%); the hash knows no counts."
    ]


# ordered


def make_column(values: Sequence[str]) -> list[Record]:
    """A record for each value of the column `time`."""
    records = list_records({"a": len(values)})
    return [replace(record, columns={"time": value}) for record, value in zip(records, values, strict=True)]


def list_columns(records: Sequence[Record], chosen: Mapping[str, str]) -> list[list[str]]:
    """The values in train, in val and in test, by key."""
    return [[next(iter(r.columns.values())) for r in records if chosen[r.key] == split] for split in SPLITS]


def test_ordered_takes_train_first_and_test_last_by_key() -> None:
    records = list_records({"a": 5, "b": 5})
    chosen = assign(records[::-1], make_params(0.5, 0.2, 0.3, "ordered", seed=7))
    assert [chosen[record.key] for record in records] == ["train"] * 5 + ["val"] * 2 + ["test"] * 3


def test_ordered_goes_by_numbers() -> None:
    records = make_column(["10", "9", "-1.5", "1e1", " 2 ", "11"])
    found = assign_all(records, make_params(0.5, 1 / 6, 1 / 3, "ordered", order_column="time"))
    assert list_columns(records, found.splits) == [["9", "-1.5", " 2 "], ["10"], ["1e1", "11"]]
    assert found.notes == ["ordered by 'time', read as numbers: from -1.5 to 11"]


def test_the_column_may_be_called_as_in_the_manifests() -> None:
    records = make_column(["2", "1"])
    chosen = assign(records, make_params(0.5, 0, 0.5, "ordered", order_column="user:time"))
    assert list(chosen.values()) == ["test", "train"]


def test_ordered_goes_by_dates() -> None:
    records = make_column(["2021-05-01T08:00", "2020-12-31", "2021-04-30T23:59:59", "20190101"])
    found = assign_all(records, make_params(0.5, 0.25, 0.25, "ordered", order_column="time"))
    assert list_columns(records, found.splits) == [
        ["2020-12-31", "20190101"],
        ["2021-04-30T23:59:59"],
        ["2021-05-01T08:00"],
    ]
    assert found.notes == ["ordered by 'time', read as dates: from 20190101 to 2021-05-01T08:00"]


def test_ordered_goes_by_text() -> None:
    records = make_column(["spring", "autumn", "winter", "summer"])
    found = assign_all(records, make_params(0.5, 0.25, 0.25, "ordered", order_column="time"))
    assert list_columns(records, found.splits) == [["spring", "autumn"], ["summer"], ["winter"]]
    assert found.notes == ["ordered by 'time', read as text: from autumn to winter"]


@pytest.mark.parametrize(
    "values", [["v1.2.3", "v1.1.9"], ["10.0.0.2", "10.0.0.1"], ["scan-01-02-004", "scan-01-02-003"]]
)
def test_text_that_holds_what_looks_like_a_date_is_text(values: list[str]) -> None:
    found = assign_all(make_column(values), make_params(0.5, 0, 0.5, "ordered", order_column="time"))
    assert list(found.splits.values()) == ["test", "train"]
    assert found.notes == [f"ordered by 'time', read as text: from {values[1]} to {values[0]}"]


@pytest.mark.parametrize(
    ("values", "odd"),
    [
        (["01/15/2024", "03/15/2023"], "00000: '01/15/2024'"),
        (["2024-1-9", "2024-10-01"], "00000: '2024-1-9'"),
        (["15.03.2024", "x"], "00000: '15.03.2024'"),
        ([" 1/15/2024, 9:30 PM", "x"], "00000: ' 1/15/2024, 9:30 PM'"),
        (["15.03.2024 09:30", "x"], "00000: '15.03.2024 09:30'"),
        (["2024-01-09", "soon"], "00001: 'soon'"),
        (["2024-01-09T10:00Z", "2024-01-09T10:00"], "some have a time zone, others have none"),
    ],
)
def test_dates_that_do_not_sort_are_refused(values: list[str], odd: str) -> None:
    lines = refuse(make_column(values), make_params(0.5, 0, 0.5, "ordered", order_column="time"))
    assert lines[0].startswith(
        "params.yaml: split.order_column: not all values of 'time' are dates that can be compared ("
    )
    assert lines[1] == f"  {odd}"
    assert lines[-1] == "Write all of them as 2024-03-09 or 2024-03-09T18:30, or as numbers."


def test_a_value_that_is_no_number_makes_a_column_text_and_is_named() -> None:
    records = make_column(["9", "10", "nan", "11"])
    found = assign_all(records, make_params(0.5, 0.25, 0.25, "ordered", order_column="time"))
    assert list_columns(records, found.splits) == [["10", "11"], ["9"], ["nan"]]
    assert found.notes == [
        "ordered by 'time', read as text, since 1 of 4 values are no numbers, such as 'nan': from 10 to nan"
    ]


def test_long_numbers_are_compared_exactly() -> None:
    # Both are 1700000000000000000 as floats.
    records = make_column(["1700000000000000002", "1700000000000000001"])
    chosen = assign(records, make_params(0.5, 0, 0.5, "ordered", order_column="time"))
    assert list(chosen.values()) == ["test", "train"]


@pytest.mark.parametrize("text", ["", "nan", "inf", "-Infinity", "1_000", "0x10", "1,5", "1e99999999999999999999"])
def test_no_finite_number(text: str) -> None:
    assert read_number(text) is None


def test_ties_go_by_key() -> None:
    records = make_column(["1"] * 4)
    chosen = assign(records[::-1], make_params(0.5, 0.25, 0.25, "ordered", order_column="time"))
    assert list(chosen.values()) == ["train", "train", "val", "test"]


@always
@given(tangle=draw_tangle(), weights=WEIGHTS)
def test_ordered_never_puts_val_or_test_before_train(
    tangle: tuple[list[Record], dict[str, str]], weights: tuple[int, int, int]
) -> None:
    records, pixels = tangle
    chosen = assign(records, make_params(*make_shares(weights), "ordered", order_column="time"), pixels)
    times = [[int(record.columns["time"]) for record in records if chosen[record.key] == split] for split in SPLITS]
    filled = [found for found in times if found]
    for earlier, later in pairwise(filled):
        assert max(earlier) <= min(later)
    for share, found in zip(make_shares(weights), times, strict=True):
        assert abs(len(found) - share * len(records)) < 1


def test_a_missing_column_is_named_with_those_that_are_there() -> None:
    records = [replace(record, columns={"time": "1", "place": "x"}) for record in list_records({"a": 4})]
    assert refuse(records, make_params(0.5, 0.25, 0.25, "ordered", order_column="tine")) == [
        "params.yaml: split.order_column: there is no column 'tine'. did you mean `time`? Known: place, time."
    ]
    assert refuse(list_records({"a": 4}), make_params(0.5, 0.25, 0.25, "ordered", order_column="time")) == [
        "params.yaml: split.order_column: there is no column 'time'. the source brings no columns; '' goes by the key."
    ]


def test_images_without_a_value_are_listed() -> None:
    records = [*make_column(["1", " ", "3"]), *list_records({"a": 1}, first=3)]
    assert refuse(records, make_params(0.5, 0.25, 0.25, "ordered", order_column="time")) == [
        "params.yaml: split.order_column: images without a value in column 'time' (2):",
        "  00001 (made)",
        "  00003 (made)",
        "Fill them in, leave those images out, or name another column.",
    ]


# Limits


def test_256_over_ten_classes_are_25_or_26_each() -> None:
    records = list_records({str(digit): 900 for digit in range(10)})
    chosen = assign(records, make_params(0.4, 0.3, 0.3, limit_per_split=256))
    assert count_splits(chosen) == [256, 256, 256]
    counts = count_classes(records, chosen)
    for split in SPLITS:
        assert sorted(counts[split, str(digit)] for digit in range(10)) == [25] * 4 + [26] * 6


def test_a_rare_class_gives_all_it_has() -> None:
    train, test = list_records({"a": 50, "b": 3, "c": 50}, "train"), list_records({"a": 1}, "test", first=103)
    records = [*train, *test]
    counts = count_classes(records, assign(records, make_params(1.0, 0.0, 0.0, "official", limit_per_split=13)))
    assert [counts["train", name] for name in "abc"] == [5, 3, 5]
    assert counts["test", "a"] == 1


def test_a_random_limit_does_not_look_at_classes() -> None:
    records = list_records({"a": 900, "b": 100})
    chosen = assign(records, make_params(1.0, 0.0, 0.0, limit_per_split=500, limit_choice="random"))
    assert count_splits(chosen) == [500, 0, 0]
    assert count_classes(records, chosen)["train", "b"] < 100


def test_a_limit_above_the_size_keeps_all() -> None:
    assert count_splits(assign(list_records(TEN), make_params(0.7, 0.1, 0.2, limit_per_split=71))) == [70, 10, 20]


def test_another_seed_limits_to_other_images() -> None:
    records = [*list_records({"a": 100}, "test"), *list_records({"a": 2}, "train", first=100)]
    one, other = (
        sorted(set(assign(records, make_params(0.5, 0.5, 0.0, "official", seed=seed, limit_per_split=10))))[:-2]
        for seed in (1, 2)
    )
    assert len(one) == len(other) == 10
    assert one != other


def test_classes_take_turns() -> None:
    class_of = {"p": "10", "q": "9", "r": "10", "s": "10", "t": "9"}
    assert alternate_classes(["r", "p", "q", "s", "t"], class_of) == ["r", "q", "p", "t", "s"]


def test_a_balanced_limit_below_the_number_of_classes_favours_no_class(
    make_records: Callable[..., list[Record]],
) -> None:
    records = make_records(dict.fromkeys("abcdefgh", 6))
    kept = {
        record.class_name
        for seed in range(20)
        for record in records
        if assign(records, make_params(0.5, 0.25, 0.25, limit_per_split=2, seed=seed)).get(record.key) == "train"
    }
    assert kept == set("abcdefgh")


def test_take_first_goes_by_key_and_0_takes_all() -> None:
    records = list_records({"a": 5})
    assert take_first(records[::-1], 2) == records[:2]
    assert take_first(records[::-1], 0) == records
    assert take_first(records, 9) == records


# What is refused


def test_classes_too_small_to_be_spread_are_named_with_their_counts() -> None:
    assert refuse(list_records({"cat": 2, "NA": 1, "dog": 3}), make_params(0.6, 0.2, 0.2)) == [
        "classes with fewer than 3 images cannot be spread over 3 splits (2):",
        "  'NA': 1",
        "  'cat': 2",
        "Bring more images of them, leave them out, or set split.strategy to `random`.",
    ]


def test_a_class_too_small_for_what_is_cut_is_not_sent_to_random_where_parts_are_kept() -> None:
    records = [*list_records({"a": 9, "b": 1}, "train"), *list_records({"a": 1}, "test", first=10)]
    assert refuse(records, make_params(0.7, 0.1, 0.2, "official")) == [
        "classes with fewer than 2 images cannot be spread over 2 splits (1):",
        "  'b': 1",
        "Bring more images of them, or leave them out.",
    ]


def test_two_splits_need_two_images_a_class() -> None:
    params = make_params(0.5, 0.0, 0.5)
    assert count_splits(assign(list_records({"a": 2, "b": 2}), params)) == [2, 0, 2]
    assert refuse(list_records({"a": 2, "b": 1}), params)[:2] == [
        "classes with fewer than 2 images cannot be spread over 2 splits (1):",
        "  'b': 1",
    ]


def test_equal_images_count_as_one_where_a_class_is_too_small() -> None:
    lines = refuse(list_records({"a": 3, "b": 4}), make_params(0.6, 0.2, 0.2), {"00000": "x", "00001": "x"})
    assert lines == [
        "classes with fewer than 3 different images cannot be spread over 3 splits (1):",
        "  'a': 2",
        "Bring more images of them, or leave them out.",
    ]


def test_groups_and_equal_images_count_as_units_where_a_class_is_too_small() -> None:
    records = list_records({"a": 4, "b": 4}, groups=["p1", "", "", ""])
    assert refuse(records, make_params(0.6, 0.2, 0.2), dict.fromkeys(["00001", "00002", "00003"], "x")) == [
        "classes with fewer than 3 units (groups or sets of equal images) cannot be spread over 3 splits (1):",
        "  'a': 2",
        "Bring more groups of them, or leave them out.",
    ]


@pytest.mark.parametrize(
    ("strategy", "problem", "remedy"),
    [
        ("stratified", "spread over 3 splits", "or leave them out."),
        ("kfold", "dealt into 3 folds", "leave them out, or lower split.folds."),
    ],
)
def test_a_class_too_small_since_its_pixels_stand_under_another_is_said_so(
    strategy: str, problem: str, remedy: str
) -> None:
    records = list_records({"Kreise": 5, "Eins": 1})
    records = [replace(record, source=f"{record.class_name}/{record.key}.png") for record in records]
    params = make_params(0.6, 0.2, 0.2, strategy, folds=3)
    assert refuse(records, params, {"00002": "x", "00005": "x"}) == [
        f"classes with fewer than 3 different images cannot be {problem} (1):",
        "  'Eins': 1; Eins/00005.png has the very pixels of Kreise/00002.png (class 'Kreise')",
        f"Mend the labels of equal pixels in the source, bring more images of them, {remedy}",
    ]


def test_group_counts_groups_where_a_class_is_too_small() -> None:
    groups = ["p1", "p1", "p2", "p2", "p2", *(f"q{number}" for number in range(5))]
    assert refuse(list_records({"a": 5, "b": 5}, groups=groups), make_params(0.6, 0.2, 0.2, "group")) == [
        "classes with fewer than 3 groups cannot be spread over 3 splits (1):",
        "  'a': 2",
        "Bring more groups of them, or leave them out.",
    ]


def test_group_is_refused_where_no_image_has_one() -> None:
    assert refuse(list_records(TEN), make_params(0.7, 0.1, 0.2, "group")) == [
        "params.yaml: split.strategy: `group` needs groups, and no image has one; name their column in "
        "fetch.table.group, or set `stratified`."
    ]


def test_a_class_that_the_official_train_part_lacks_is_refused() -> None:
    records = [*list_records({"cat": 10}, "train"), *list_records({"cats": 1}, "test", first=10)]
    assert refuse(records, make_params(0.8, 0.2, 0.0, "official")) == [
        "classes in val or test that train lacks, so that no model can learn them (1):",
        "  'cats': 1 images; did you mean `cat`? Known: cat",
        "Mend their names, or map them to others or leave them out in fetch.classes.",
    ]


def test_a_class_that_chance_kept_from_train_is_noted() -> None:
    records = [*list_records({"a": 8}), *list_records({"b": 2}, first=8)]
    found = assign_all(records, make_params(0.8, 0.0, 0.2, "ordered"))
    assert found.notes == [
        "classes in val or test that train lacks, so that no model can learn them (1):\n  'b': 2 images; Known: a"
    ]


def test_random_takes_small_classes() -> None:
    assert count_splits(assign(list_records({"a": 9, "b": 1}), make_params(0.8, 0.0, 0.2, "random"))) == [8, 0, 2]


def test_doubled_keys_are_listed() -> None:
    records = [*list_records({"a": 3}), *list_records({"b": 2})]
    assert refuse(records, make_params(0.8, 0.0, 0.2)) == ["two images share one key (2):", "  00000", "  00001"]


def test_many_doubled_keys_are_counted_and_the_first_20_shown() -> None:
    records = list_records({"a": 25})
    lines = refuse(records + records, make_params(0.8, 0.0, 0.2))
    assert lines[0] == "two images share one key (25):"
    assert lines[20:] == ["  00019", "  … and 5 more"]


def test_a_source_without_images_is_refused() -> None:
    assert refuse([], make_params(0.8, 0.0, 0.2)) == ["the source holds no images; nothing to split."]


@pytest.mark.parametrize("strategy", ["official", "stratified", "random", "ordered"])
def test_a_split_left_empty_is_named(strategy: str) -> None:
    assert refuse(list_records({"a": 10}), make_params(0.98, 0.01, 0.01, strategy)) == [
        "params.yaml: split.fractions: 10 images leave val and test empty; raise the fraction or bring more images."
    ]


@pytest.mark.parametrize(
    ("groups", "strategy", "remedy"),
    [
        (["all"], "random", "(units: 1); bring more groups."),
        (["all"], "hash", "(units: 1); bring more groups."),
        (["all", "all", "one", "two"], "random", "(units: 3); raise the fraction or bring more groups."),
    ],
)
def test_groups_that_leave_a_split_empty_are_counted(groups: list[str], strategy: str, remedy: str) -> None:
    (line,) = refuse(list_records({"a": 12}, groups=groups), make_params(0.98, 0.01, 0.01, strategy))
    assert line == (
        "params.yaml: split.fractions: 12 images leave val and test empty, since groups and equal images stay "
        f"together {remedy}"
    )


def test_equal_images_that_leave_a_split_empty_are_counted() -> None:
    pixels = {f"{number:05d}": "x" for number in range(12)}
    (line,) = refuse(list_records({"a": 12}), make_params(0.98, 0.01, 0.01, "random"), pixels)
    assert line == (
        "params.yaml: split.fractions: 12 images leave val and test empty, since groups and equal images stay "
        "together (units: 1); bring more different images."
    )


def test_fewer_images_than_splits_cannot_fill_them() -> None:
    (line,) = refuse(list_records({"a": 2}), make_params(0.6, 0.2, 0.2, "ordered"))
    assert line.endswith("empty; bring more images.")


def test_a_hash_that_leaves_a_split_empty_is_refused() -> None:
    (line,) = refuse(list_records({"a": 3}), make_params(0.98, 0.01, 0.01, "hash"))
    assert "3 images leave val and test empty" in line


def test_a_source_with_a_test_part_alone_has_no_train_split() -> None:
    (line,) = refuse(list_records({"a": 10}, "test"), make_params(1.0, 0.0, 0.0, "official"))
    assert line == "the source's own parts leave nothing for train; mark the images to learn from as train."
