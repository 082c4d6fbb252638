from collections import Counter
from collections.abc import Sequence
from random import Random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from imagepipe.core.manifest import SPLITS
from imagepipe.prepare.units import (
    Unit,
    apportion,
    deal,
    draw,
    fill_up,
    find_repeats,
    join_units,
    shuffle_keys,
    spread_units,
)
from imagepipe.sources.records import Record

PIXEL = np.zeros((1, 1), np.uint8)
SHARES = {"train": 0.7, "val": 0.1, "test": 0.2}
always = settings(max_examples=60)


def make_record(key: str, class_name: str = "a", group: str = "") -> Record:
    return Record(key, class_name, "", group, "made", PIXEL)


def make_units(*sizes: int, class_name: str = "a") -> list[Unit]:
    """Units of one class with so many records each."""
    return [
        Unit(tuple(f"{class_name}{number:03d}-{place}" for place in range(size)), {class_name: size})
        for number, size in enumerate(sizes)
    ]


def count_classes(units: Sequence[Unit], chosen: dict[str, str]) -> Counter[tuple[str, str]]:
    """(split, class) → images."""
    counts: Counter[tuple[str, str]] = Counter()
    for unit in units:
        for class_name, count in unit.counts.items():
            counts[chosen[unit.keys[0]], class_name] += count
    return counts


# Joining


def test_what_has_one_value_is_found_in_its_order() -> None:
    value_of = {"a": 1, "b": 2, "c": 3, "d": 2, "e": 1, "f": 2}
    assert find_repeats("abcdef", value_of.__getitem__) == [["a", "e"], ["b", "d", "f"]]
    assert find_repeats("fedcba", value_of.__getitem__) == [["f", "d", "b"], ["e", "a"]]
    assert find_repeats("abc", value_of.__getitem__) == find_repeats("", value_of.__getitem__) == []


def test_one_hash_of_two_values_is_no_repeat() -> None:
    assert hash(-1) == hash(-2)
    assert find_repeats([-1, -2, 5], int) == []
    assert find_repeats([-1, -2, 5, -2, -1], int) == [[-1, -1], [-2, -2]]


def test_records_without_group_and_twin_are_units_of_one() -> None:
    units = join_units([make_record("b", "x"), make_record("a", "y")], {"a": "1", "b": "2"})
    assert units == [Unit(("a",), {"y": 1}), Unit(("b",), {"x": 1})]


def test_a_group_is_one_unit_and_so_are_equal_pixels() -> None:
    records = [make_record("a", group="g"), make_record("b"), make_record("c", group="g"), make_record("d", "x")]
    units = join_units(records, {"a": "1", "b": "2", "c": "3", "d": "2"})
    assert units == [Unit(("a", "c"), {"a": 2}), Unit(("b", "d"), {"a": 1, "x": 1})]


def test_units_of_the_same_classes_share_their_counts() -> None:
    groups = {"a": "", "b": "", "c": "g", "d": "g", "e": "h", "f": "h"}
    records = [make_record(key, group=group) for key, group in groups.items()]
    one, two, three, four = join_units(records, {key: key for key in groups})
    assert one.counts is two.counts
    assert three.counts is four.counts
    assert (one.counts, three.counts) == ({"a": 1}, {"a": 2})


def test_a_twin_in_another_group_joins_both_groups() -> None:
    # a and d are g, e and b are h, and d looks like e: all four stay together. c is alone.
    records = [make_record(key, group=group) for key, group in zip("abcde", ["g", "h", "", "g", "h"], strict=True)]
    units = join_units(records, {"a": "1", "b": "2", "c": "3", "d": "4", "e": "4"})
    assert [unit.keys for unit in units] == [("a", "b", "d", "e"), ("c",)]


def test_a_group_named_like_a_pixel_hash_joins_nothing() -> None:
    units = join_units([make_record("a", group="1"), make_record("b")], {"a": "2", "b": "1"})
    assert [unit.keys for unit in units] == [("a",), ("b",)]


def test_a_long_chain_is_one_unit() -> None:
    # Neighbours share a group or a picture in turn.
    records = [make_record(f"{number:04d}", group=f"g{number // 2}") for number in range(5000)]
    pixels = {f"{number:04d}": f"p{(number + 1) // 2}" for number in range(5000)}
    (unit,) = join_units(records, pixels)
    assert len(unit.keys) == unit.counts["a"] == 5000


@always
@given(
    made=st.lists(st.tuples(st.sampled_from(["", "g", "h", "i", "j"]), st.integers(0, 20)), max_size=25),
    random=st.randoms(use_true_random=False),
)
def test_units_are_the_connected_components(made: list[tuple[str, int]], random: Random) -> None:
    records = [make_record(f"{number:02d}", group=group) for number, (group, _) in enumerate(made)]
    pixels = {f"{number:02d}": f"p{pixel}" for number, (_, pixel) in enumerate(made)}
    component = {record.key: record.key for record in records}
    for _ in records:  # each round hands the smallest key on to the neighbours
        for one in records:
            for other in records:
                if pixels[one.key] == pixels[other.key] or (one.group and one.group == other.group):
                    component[other.key] = min(component[one.key], component[other.key])
    expected = sorted(tuple(key for key in component if component[key] == root) for root in set(component.values()))
    random.shuffle(records)
    assert [unit.keys for unit in join_units(records, pixels)] == expected


# Spreading


def test_single_records_fill_the_shares_exactly() -> None:
    chosen = spread_units(make_units(*[1] * 10), SHARES, 1, "split")
    assert Counter(chosen.values()) == {"train": 7, "val": 1, "test": 2}


def test_large_units_go_where_most_is_missed_and_single_ones_fill_up() -> None:
    # Of 20, 14, 2 and 4 are wanted. 8 goes to train, which then misses 6; so does 4 and leaves 2, 2 and 4; the 3 goes
    # to test, and the five single ones fill the 2, 2 and 1 that are left.
    units = make_units(8, 4, 3, 1, 1, 1, 1, 1)
    chosen = spread_units(units, SHARES, 1, "split")
    assert [chosen[unit.keys[0]] for unit in units[:3]] == ["train", "train", "test"]
    assert Counter(chosen.values()) == {"train": 14, "val": 2, "test": 4}


def test_what_a_large_unit_takes_too_much_is_missed_by_the_others_in_proportion() -> None:
    # Of 12, 6 and 6 are wanted; 9 in one half leaves 3 for the other.
    chosen = spread_units(make_units(9, 1, 1, 1), {"train": 0.5, "test": 0.5}, 1, "split")
    assert Counter(chosen.values()) == {"train": 9, "test": 3}


def test_fill_up_by_hand() -> None:
    owed = dict.fromkeys(SPLITS, 0.0)
    assert fill_up(6, {"train": 3, "val": 2, "test": 1}, owed) == {"train": 3, "val": 2, "test": 1}
    # 6 and 2 are missed and 4 are there: half of each. Next, 1 for 1 and 1: the tie goes to train, and then to val.
    assert fill_up(4, {"train": 6, "val": 2, "test": -4}, owed) == {"train": 3, "val": 1, "test": 0}
    assert fill_up(1, {"train": 1, "val": 1, "test": -1}, owed) == {"train": 1, "val": 0, "test": 0}
    assert fill_up(1, {"train": 1, "val": 1, "test": -1}, owed) == {"train": 0, "val": 1, "test": 0}


def test_as_many_units_as_splits_leave_no_split_without_one() -> None:
    chosen = spread_units(make_units(100, 100, 100), {"train": 0.8, "val": 0.1, "test": 0.1}, 1, "split")
    assert Counter(chosen.values()) == dict.fromkeys(SPLITS, 100)


def test_no_split_lacks_a_class_that_has_units_enough() -> None:
    units = make_units(*[20] * 5, class_name="a") + make_units(*[20] * 5, class_name="b")
    counts = count_classes(units, spread_units(units, SHARES, 1, "split"))
    assert counts == {(split, name): size for split, size in zip(SPLITS, (60, 20, 20), strict=True) for name in "ab"}


def test_a_share_of_0_gets_nothing_even_from_units_too_large_for_the_others() -> None:
    chosen = spread_units(make_units(9, 9), {"train": 0.5, "val": 0.0, "test": 0.5}, 1, "split")
    assert Counter(chosen.values()) == {"train": 9, "test": 9}


def test_units_of_several_classes_are_weighed_by_class() -> None:
    # Each unit has 3 of one class and 1 of the other. By halves, each side must get one unit of either kind.
    kinds = [{"a": 3, "b": 1}, {"a": 3, "b": 1}, {"a": 1, "b": 3}, {"a": 1, "b": 3}]
    units = [Unit(tuple(f"{n}-{place}" for place in range(4)), kind) for n, kind in enumerate(kinds)]
    for seed in range(10):
        counts = count_classes(units, spread_units(units, {"train": 0.5, "test": 0.5}, seed, "split"))
        assert counts == {(split, name): 4 for split in ("train", "test") for name in "ab"}


def test_another_seed_deals_large_units_of_like_size_anew() -> None:
    units = make_units(20, 21, 22, 23, 24, 25, 26, 27, 28, 29)
    found = {tuple(sorted(spread_units(units, SHARES, seed, "split").items())) for seed in range(10)}
    assert len(found) == 10


@st.composite
def draw_units(draw: st.DrawFn) -> list[Unit]:
    """Units of 1 to 6 records out of three classes."""
    made = draw(st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=6), min_size=1, max_size=40))
    return [
        Unit(tuple(f"{number:02d}-{place}" for place in range(len(classes))), Counter(classes))
        for number, classes in enumerate(made)
    ]


@always
@given(units=draw_units(), seed=st.integers(0, 2**63 - 1), random=st.randoms(use_true_random=False))
def test_units_stay_whole_and_their_order_decides_nothing(units: list[Unit], seed: int, random: Random) -> None:
    chosen = spread_units(units, SHARES, seed, "split")
    assert sorted(chosen) == sorted(key for unit in units for key in unit.keys)
    assert all(len({chosen[key] for key in unit.keys}) == 1 for unit in units)
    random.shuffle(units)
    assert spread_units(units, SHARES, seed, "split") == chosen


@always
@given(sizes=st.lists(st.integers(2, 6), max_size=20), seed=st.integers(0, 99))
def test_single_records_enough_make_the_shares_exact_whatever_the_large_units(sizes: list[int], seed: int) -> None:
    # 20 units of up to 6 are at most 120 of 1000, and none of them exceeds what a split misses.
    units = make_units(*sizes, *[1] * (1000 - sum(sizes)))
    assert Counter(spread_units(units, SHARES, seed, "split").values()) == {"train": 700, "val": 100, "test": 200}


# Sizes


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


# The lottery


def test_the_order_is_that_of_the_sha256_of_seed_purpose_and_key() -> None:
    # printf '1\0split\0a' | sha256sum, and so on
    assert shuffle_keys("abcd", 1, "split") == ["c", "a", "d", "b"]
    assert shuffle_keys("abcd", 2, "split") == ["d", "c", "a", "b"]
    assert sorted("abcd", key=lambda key: draw(1, "split", key)) == ["c", "a", "d", "b"]


def test_purposes_do_not_share_an_order() -> None:
    keys = [f"{key:05d}" for key in range(20)]
    assert shuffle_keys(keys, 1, "split") != shuffle_keys(keys, 1, "limit")


def test_the_place_of_a_large_unit_is_that_of_its_smallest_key() -> None:
    # The order of a to d with seed 1 is c, a, d, b; two halves take turns in it.
    units = [Unit((key, f"{key}2"), {"x": 2}) for key in "abcd"]
    chosen = spread_units(units, {"train": 0.5, "test": 0.5}, 1, "split")
    assert [chosen[key] for key in "cadb"] == ["train", "test", "train", "test"]


def test_deal_goes_through_the_splits_in_turn() -> None:
    assert deal("abc", {"train": 2, "val": 0, "test": 1}) == {"a": "train", "b": "train", "c": "test"}
