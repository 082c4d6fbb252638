from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagepipe.core.errors import InputError
from imagepipe.core.manifest import SPLITS
from imagepipe.prepare.params import Fractions, SplitParams
from imagepipe.prepare.splits import alternate_classes, apportion, assign_splits, shuffle_keys
from imagepipe.sources.records import Record

PIXEL = np.zeros((1, 1), np.uint8)


def list_records(counts: Mapping[str, int], part: str = "", first: int = 0) -> list[Record]:
    """Records of one part with so many images of each class."""
    names = [name for name, count in counts.items() for _ in range(count)]
    return [Record(f"{key:05d}", name, part, "", "made", PIXEL) for key, name in enumerate(names, first)]


def make_params(
    train: float,
    val: float,
    test: float,
    *,
    strategy: str = "stratified",
    seed: int = 1,
    limit: int = 0,
    choice: str = "balanced",
    first: int = 0,
) -> SplitParams:
    return SplitParams.model_validate(
        {
            "first": first,
            "strategy": strategy,
            "fractions": Fractions(train=train, val=val, test=test),
            "seed": seed,
            "limit_per_split": limit,
            "limit_choice": choice,
            "layout": "single",
        }
    )


def count_splits(chosen: Mapping[str, str]) -> list[int]:
    counts = Counter(chosen.values())
    return [counts[split] for split in SPLITS]


def count_classes(records: Sequence[Record], chosen: Mapping[str, str]) -> Counter[tuple[str, str]]:
    """(split, class) → images."""
    return Counter((chosen[record.key], record.class_name) for record in records if record.key in chosen)


TEN = {str(digit): 10 for digit in range(10)}
UNEVEN = {"a": 33, "b": 33, "c": 34}


# Sizes


@pytest.mark.parametrize("strategy", ["stratified", "random"])
@pytest.mark.parametrize("counts", [TEN, UNEVEN, {"a": 97, "b": 3}, {"a": 100}])
def test_100_at_080_are_80_and_20(strategy: str, counts: dict[str, int]) -> None:
    chosen = assign_splits(list_records(counts), make_params(0.8, 0.0, 0.2, strategy=strategy))
    assert count_splits(chosen) == [80, 0, 20]


@pytest.mark.parametrize("strategy", ["stratified", "random"])
def test_100_at_070_010_020(strategy: str) -> None:
    chosen = assign_splits(list_records(UNEVEN), make_params(0.7, 0.1, 0.2, strategy=strategy))
    assert count_splits(chosen) == [70, 10, 20]


def test_every_class_gets_its_share() -> None:
    records = list_records(TEN)
    counts = count_classes(records, assign_splits(records, make_params(0.7, 0.1, 0.2)))
    assert counts == {(split, name): n for split, n in zip(SPLITS, (7, 1, 2), strict=True) for name in TEN}


def test_the_odd_image_goes_where_most_is_owed() -> None:
    # Each class of 5 owes 3.5 and 1.5: the halves go to train and val in turn, so that the totals are 14 and 6.
    records = list_records({"a": 5, "b": 5, "c": 5, "d": 5})
    counts = count_classes(records, assign_splits(records, make_params(0.7, 0.3, 0.0)))
    assert [counts["train", name] for name in "abcd"] == [4, 3, 4, 3]
    assert [counts["val", name] for name in "abcd"] == [1, 2, 1, 2]


def test_apportion_by_hand() -> None:
    # 7 at 0.5, 0.3, 0.2 is 3.5, 2.1, 1.4: rounded down 3 + 2 + 1, and the one left has the largest remainder, 0.5.
    shares = {"train": 0.5, "val": 0.3, "test": 0.2}
    assert apportion(7, shares, dict.fromkeys(shares, 0.0)) == {"train": 4, "val": 2, "test": 1}
    assert apportion(7, shares, {"train": 0.0, "val": 0.0, "test": 0.2}) == {"train": 3, "val": 2, "test": 2}


def test_apportion_gives_nothing_to_a_share_of_0() -> None:
    shares = {"train": 0.5, "val": 0.0, "test": 0.5}
    assert apportion(3, shares, {"train": 0.0, "val": 9.0, "test": 0.0})["val"] == 0


def test_apportion_is_not_misled_by_binary_fractions() -> None:
    # 0.1 * 30 is 3.0000000000000004 and 0.7 * 10 is 7.000000000000001 in binary; 0.29 * 100 is 28.999999999999996.
    shares = {"train": 0.71, "val": 0.29, "test": 0.0}
    assert apportion(100, shares, dict.fromkeys(shares, 0.0)) == {"train": 71, "val": 29, "test": 0}


# What always holds

CLASS_COUNTS = st.dictionaries(st.text(max_size=4), st.integers(10, 40), min_size=1, max_size=6)
WEIGHTS = st.tuples(st.integers(1, 5), st.integers(0, 3), st.integers(0, 2))
SEEDS = st.integers(0, 2**63 - 1)
STRATEGIES = st.sampled_from(["stratified", "random"])
always = settings(deadline=None, derandomize=True, max_examples=60)


def make_shares(weights: tuple[int, int, int]) -> tuple[float, float, float]:
    train, val, test = (weight / sum(weights) for weight in weights)
    return train, val, test


@always
@given(counts=CLASS_COUNTS, weights=WEIGHTS, seed=SEEDS, strategy=STRATEGIES)
def test_every_record_is_in_one_split_and_totals_are_within_one(
    counts: dict[str, int], weights: tuple[int, int, int], seed: int, strategy: str
) -> None:
    records = list_records(counts)
    chosen = assign_splits(records, make_params(*make_shares(weights), seed=seed, strategy=strategy))
    assert sorted(chosen) == [record.key for record in records]
    for share, found in zip(make_shares(weights), count_splits(chosen), strict=True):
        assert abs(found - share * len(records)) < 1
        assert (found > 0) == (share > 0)


@always
@given(counts=CLASS_COUNTS, weights=WEIGHTS, seed=SEEDS)
def test_stratified_is_within_one_of_the_share_in_every_class(
    counts: dict[str, int], weights: tuple[int, int, int], seed: int
) -> None:
    records = list_records(counts)
    found = count_classes(records, assign_splits(records, make_params(*make_shares(weights), seed=seed)))
    for name, count in counts.items():
        for split, share in zip(SPLITS, make_shares(weights), strict=True):
            assert abs(found[split, name] - share * count) < 1


@always
@given(
    counts=CLASS_COUNTS,
    weights=WEIGHTS,
    strategy=STRATEGIES,
    limit=st.integers(0, 12),
    choice=st.sampled_from(["balanced", "random"]),
    random=st.randoms(use_true_random=False),
)
def test_the_order_of_the_records_decides_nothing(
    counts: dict[str, int],
    weights: tuple[int, int, int],
    strategy: str,
    limit: int,
    choice: str,
    random: Random,
) -> None:
    records = list_records(counts)
    params = make_params(*make_shares(weights), strategy=strategy, limit=limit, choice=choice)
    expected = assign_splits(records, params)
    random.shuffle(records)
    assert assign_splits(records, params) == expected


@always
@given(counts=CLASS_COUNTS, limit=st.integers(1, 30), choice=st.sampled_from(["balanced", "random"]))
def test_a_limit_keeps_records_where_they_were(counts: dict[str, int], limit: int, choice: str) -> None:
    records = list_records(counts)
    whole = assign_splits(records, make_params(0.6, 0.2, 0.2))
    kept = assign_splits(records, make_params(0.6, 0.2, 0.2, limit=limit, choice=choice))
    assert kept.items() <= whole.items()
    assert count_splits(kept) == [min(limit, found) for found in count_splits(whole)]


# Seeds


@pytest.mark.parametrize("strategy", ["stratified", "random"])
def test_a_seed_gives_one_split_and_another_seed_another(strategy: str) -> None:
    records = list_records(TEN)
    one, again, other = (
        assign_splits(records, make_params(0.8, 0.0, 0.2, seed=seed, strategy=strategy)) for seed in (1, 1, 2)
    )
    assert one == again
    assert one != other


def test_the_order_is_that_of_the_sha256_of_seed_purpose_and_key() -> None:
    # printf '1\0split\0a' | sha256sum, and so on
    assert shuffle_keys("abcd", 1, "split") == ["c", "a", "d", "b"]
    assert shuffle_keys("abcd", 2, "split") == ["d", "c", "a", "b"]


def test_purposes_do_not_share_an_order() -> None:
    keys = [f"{key:05d}" for key in range(20)]
    assert shuffle_keys(keys, 1, "split") != shuffle_keys(keys, 1, "limit")


# Official parts


def test_an_official_test_part_stays_and_val_is_cut_from_train() -> None:
    train, test = list_records({"a": 40, "b": 40}, "train"), list_records({"a": 3, "b": 5}, "test", first=80)
    chosen = assign_splits([*train, *test], make_params(0.7, 0.1, 0.2))
    # train : val is 7 : 1, so that 80 become 70 and 10.
    assert count_splits(chosen) == [70, 10, 8]
    assert {record.key for record in test} == {key for key, split in chosen.items() if split == "test"}
    assert count_classes(train, chosen) == {
        ("train", "a"): 35,
        ("train", "b"): 35,
        ("val", "a"): 5,
        ("val", "b"): 5,
    }


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_no_seed_moves_an_official_test_image(seed: int) -> None:
    train, test = list_records({"a": 20}, "train"), list_records({"a": 10}, "test", first=20)
    chosen = assign_splits([*train, *test], make_params(0.5, 0.5, 0.0, seed=seed))
    assert {key for key, split in chosen.items() if split == "test"} == {record.key for record in test}


def test_all_official_parts_stay() -> None:
    records = [
        *list_records({"a": 5}, "train"),
        *list_records({"a": 4}, "val", first=5),
        *list_records({"a": 3}, "test", first=9),
    ]
    chosen = assign_splits(records, make_params(0.1, 0.8, 0.1))
    assert chosen == {record.key: record.part for record in records}


def test_an_official_val_part_stays_and_test_is_cut_from_train() -> None:
    train, val = list_records({"a": 90}, "train"), list_records({"a": 4}, "val", first=90)
    chosen = assign_splits([*train, *val], make_params(0.7, 0.1, 0.2))
    assert count_splits(chosen) == [70, 4, 20]
    assert {key for key, split in chosen.items() if split == "val"} == {record.key for record in val}


def test_an_official_train_part_alone_is_cut_in_three() -> None:
    assert count_splits(assign_splits(list_records({"a": 100}, "train"), make_params(0.7, 0.1, 0.2))) == [70, 10, 20]


# Limits


def test_256_over_ten_classes_are_25_or_26_each() -> None:
    records = list_records({str(digit): 900 for digit in range(10)})
    chosen = assign_splits(records, make_params(0.4, 0.3, 0.3, limit=256))
    assert count_splits(chosen) == [256, 256, 256]
    counts = count_classes(records, chosen)
    for split in SPLITS:
        assert sorted(counts[split, str(digit)] for digit in range(10)) == [25] * 4 + [26] * 6


def test_a_rare_class_gives_all_it_has() -> None:
    train, test = list_records({"a": 50, "b": 3, "c": 50}, "train"), list_records({"a": 1}, "test", first=103)
    records = [*train, *test]
    counts = count_classes(records, assign_splits(records, make_params(1.0, 0.0, 0.0, limit=13)))
    assert [counts["train", name] for name in "abc"] == [5, 3, 5]
    assert counts["test", "a"] == 1


def test_a_random_limit_does_not_look_at_classes() -> None:
    records = list_records({"a": 900, "b": 100}, "train")
    chosen = assign_splits(records, make_params(1.0, 0.0, 0.0, limit=500, choice="random"))
    assert count_splits(chosen) == [500, 0, 0]
    assert count_classes(records, chosen)["train", "b"] < 100


def test_a_limit_above_the_size_keeps_all() -> None:
    assert count_splits(assign_splits(list_records(TEN), make_params(0.7, 0.1, 0.2, limit=71))) == [70, 10, 20]


def test_another_seed_limits_to_other_images() -> None:
    records = list_records({"a": 100}, "test")
    records += list_records({"a": 2}, "train", first=100)
    one, other = (
        sorted(set(assign_splits(records, make_params(0.5, 0.5, 0.0, seed=seed, limit=10))) - {"00100", "00101"})
        for seed in (1, 2)
    )
    assert len(one) == len(other) == 10
    assert one != other


def test_classes_take_turns() -> None:
    class_of = {"p": "10", "q": "9", "r": "10", "s": "10", "t": "9"}
    assert alternate_classes(["r", "p", "q", "s", "t"], class_of) == ["r", "q", "p", "t", "s"]


# What is refused


def test_classes_too_small_to_be_spread_are_named_with_their_counts() -> None:
    with pytest.raises(InputError) as caught:
        assign_splits(list_records({"cat": 2, "NA": 1, "dog": 3}), make_params(0.6, 0.2, 0.2))
    assert str(caught.value).splitlines() == [
        "classes with fewer than 3 images cannot be spread over 3 splits (2):",
        "  'NA': 1",
        "  'cat': 2",
        "Bring more images of them, leave them out, or set split.strategy to `random`.",
    ]


def test_two_splits_need_two_images_a_class() -> None:
    params = make_params(0.5, 0.0, 0.5)
    assert count_splits(assign_splits(list_records({"a": 2, "b": 2}), params)) == [2, 0, 2]
    with pytest.raises(InputError, match=r"fewer than 2 images cannot be spread over 2 splits \(1\):\n  'b': 1\n"):
        assign_splits(list_records({"a": 2, "b": 1}), params)


def test_a_class_of_the_official_test_part_alone_is_not_too_small() -> None:
    records = [*list_records({"a": 10}, "train"), *list_records({"b": 1}, "test", first=10)]
    assert count_splits(assign_splits(records, make_params(0.8, 0.2, 0.0))) == [8, 2, 1]


def test_random_takes_small_classes() -> None:
    chosen = assign_splits(list_records({"a": 9, "b": 1}), make_params(0.8, 0.0, 0.2, strategy="random"))
    assert count_splits(chosen) == [8, 0, 2]


def test_doubled_keys_are_listed() -> None:
    records = [*list_records({"a": 3}), *list_records({"b": 2})]
    with pytest.raises(InputError, match=r"^two images share one key \(2\):\n  00000\n  00001$"):
        assign_splits(records, make_params(0.8, 0.0, 0.2))


def test_many_doubled_keys_are_counted_and_the_first_20_shown() -> None:
    records = list_records({"a": 25})
    with pytest.raises(InputError) as caught:
        assign_splits(records + records, make_params(0.8, 0.0, 0.2))
    lines = str(caught.value).splitlines()
    assert lines[0] == "two images share one key (25):"
    assert lines[20:] == ["  00019", "  … and 5 more"]


def test_a_source_without_images_is_refused() -> None:
    with pytest.raises(InputError, match=r"^the source holds no images; nothing to split\.$"):
        assign_splits([], make_params(0.8, 0.0, 0.2))


@pytest.mark.parametrize("strategy", ["stratified", "random"])
def test_a_split_left_empty_is_named(strategy: str) -> None:
    with pytest.raises(InputError) as caught:
        assign_splits(list_records({"a": 10}), make_params(0.98, 0.01, 0.01, strategy=strategy))
    message = "10 images leave val and test empty; raise the fraction or bring more images."
    assert str(caught.value) == f"params.yaml: split.fractions: {message}"


def test_a_source_with_a_test_part_alone_has_no_train_split() -> None:
    with pytest.raises(InputError, match=r"split\.fractions: 10 images leave train empty"):
        assign_splits(list_records({"a": 10}, "test"), make_params(1.0, 0.0, 0.0))


def test_ordered_takes_train_first_and_test_last_by_key(make_records: Callable[..., list[Record]]) -> None:
    records = make_records({"a": 5, "b": 5})
    chosen = assign_splits(records[::-1], make_params(0.5, 0.2, 0.3, strategy="ordered", seed=7))
    assert [chosen[record.key] for record in records] == ["train"] * 5 + ["val"] * 2 + ["test"] * 3


def test_first_takes_the_first_by_key_before_anything_else(make_records: Callable[..., list[Record]]) -> None:
    records = make_records({"a": 12}, part="train") + make_records({"a": 6}, part="test", first=12)
    third = 0.333333333333
    chosen = assign_splits(records[::-1], make_params(third, third, 1 - 2 * third, strategy="ordered", first=6))
    assert chosen == dict(
        zip((f"{n:05d}" for n in range(6)), ["train", "train", "val", "val", "test", "test"], strict=True)
    )


def test_a_balanced_limit_below_the_number_of_classes_favours_no_class(
    make_records: Callable[..., list[Record]],
) -> None:
    records = make_records(dict.fromkeys("abcdefgh", 6))
    kept = {
        record.class_name
        for seed in range(20)
        for record in records
        if assign_splits(records, make_params(0.5, 0.25, 0.25, limit=2, seed=seed)).get(record.key) == "train"
    }
    assert kept == set("abcdefgh")
