from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from imagepipe.core.errors import InputError
from imagepipe.evaluation.compare import Comparison, compare
from imagepipe.evaluation.intervals import measure_proportion
from tests.evaluation.made import make_table, split_right, write_params, write_run


def compare_counts(folder: Path, both: int, lost: int, won: int, neither: int, confidence: float = 0.95) -> Comparison:
    first, second = split_right(both, lost, won, neither)
    return compare(
        [write_run(folder / "a", make_table(first)), write_run(folder / "b", make_table(second))], confidence
    )


def test_a_pair_by_hand(tmp_path: Path) -> None:
    """The published example of Cavo 2012: p of mid-p McNemar 0.034690, exact 0.052479, Newcombe 0.0046 to 0.1186."""
    found = compare_counts(tmp_path, 59, 6, 16, 80)
    (pair,) = found.pairs
    assert (pair.both_right, pair.lost, pair.won, pair.both_wrong, pair.groups) == (59, 6, 16, 80, None)
    assert (pair.exact, pair.mid, pair.p) == pytest.approx((0.052479, 0.034690, 0.034690), abs=1e-6)
    assert (pair.difference.value, pair.difference.low) == pytest.approx((10 / 161, 0.0046), abs=5e-5)
    assert [run.accuracy for run in found.runs] == [measure_proportion(right, 161, 0.95) for right in (65, 75)]
    a, b = tmp_path / "a", tmp_path / "b"
    assert found.list_verdicts() == [
        f"{b} is better than {a} by 6.21 points (95 % interval 0.46 to 11.86), p = 0.0347."
    ]
    assert not found.is_worse


def test_worse_is_said_in_points_above_0(tmp_path: Path) -> None:
    found = compare_counts(tmp_path, 59, 16, 6, 80)
    assert (
        f"{tmp_path / 'b'} is worse than {tmp_path / 'a'} by 6.21 points (95 % interval 0.46 to 11.86), p = 0.0347."
        in (found.list_verdicts())
    )
    assert found.is_worse


def test_what_is_significant_goes_by_the_confidence(tmp_path: Path) -> None:
    found = compare_counts(tmp_path, 59, 16, 6, 80, confidence=0.99)
    assert not found.is_worse
    assert found.list_verdicts()[0].startswith("no evidence of a difference between ")
    assert "-6.21 points (99 % interval -13.56 to +1.31), p = 0.0347." in found.list_verdicts()[0]


def test_a_run_is_no_better_than_itself(tmp_path: Path) -> None:
    name = write_run(tmp_path, make_table([True, False]), write_params())
    (pair,) = compare([name, name], 0.95).pairs
    assert (pair.p, pair.verdict, pair.changed, pair.params) == (1, "no evidence", [], [])
    assert pair.notes == ["The predictions are the same on every image.", "The params of both runs are the same."]


def test_the_order_of_classes_and_rows_does_not_matter(tmp_path: Path) -> None:
    table = make_table([True, False, True, True, False])
    turned = table.iloc[::-1][[*table.columns[:9], "logit:NA", "logit:cat", "logit:dog"]]
    (pair,) = compare([write_run(tmp_path / "a", table), write_run(tmp_path / "b", turned)], 0.95).pairs
    assert (pair.lost, pair.won, pair.both_right) == (0, 0, 3)


def test_several_runs_are_corrected_for_their_number(tmp_path: Path) -> None:
    first, second = split_right(59, 6, 16, 80)
    names = [write_run(tmp_path / "a", make_table(first))]
    names += [write_run(tmp_path / name, make_table(second)) for name in "bc"]
    found = compare(names, 0.95)
    assert [pair.p for pair in found.pairs] == pytest.approx([2 * 0.034690] * 2, abs=2e-6)
    assert [pair.verdict for pair in found.pairs] == ["no evidence"] * 2
    assert all(line.endswith(", p = 0.0694 (corrected for 2 comparisons).") for line in found.list_verdicts())


def test_images_of_a_group_count_as_one(tmp_path: Path) -> None:
    """Ten images won, five each in two groups: of the four ways to turn two signs, two are as far from 0."""
    first, second = split_right(10, 0, 10, 10)
    groups = ["", *["calm"] * 10, *["p"] * 5, *["q"] * 5, *[""] * 10]
    tables = [make_table(right).assign(group=groups) for right in (first, second)]
    found = compare([write_run(tmp_path / name, table) for name, table in zip("ab", tables, strict=True)], 0.95)
    (pair,) = found.pairs
    assert (pair.groups, pair.exact, pair.mid) == (13, 0.5, 0.25)
    assert pair.difference.value == pytest.approx(1 / 3)
    assert pair.difference.low < 0.02
    assert (
        "The 30 images come in 13 groups, each of which counts as one: the interval is a bootstrap over groups."
        in (found.list_verdicts()[0])
    )
    assert pair.classes[0].p == 0.25


def test_groups_that_one_run_alone_knows_count_in_either_order(tmp_path: Path) -> None:
    """Nineteen images won in three groups; a run's own accuracy has the interval of its own groups."""
    first, second = split_right(0, 0, 19, 11)
    groups = ["", *["p"] * 7, *["q"] * 7, *["r"] * 5, *["s"] * 11]
    tables = [make_table(first), make_table(second).assign(group=groups)]
    names = [write_run(tmp_path / name, table) for name, table in zip("ab", tables, strict=True)]
    found = [compare(order, 0.95) for order in (names, names[::-1])]
    assert [(one.pairs[0].groups, one.pairs[0].exact, one.pairs[0].verdict) for one in found] == [
        (4, 0.25, "no evidence")
    ] * 2
    plain, grouped = (run.accuracy for run in found[0].runs)
    assert plain == measure_proportion(0, 30, 0.95)
    assert (grouped.value, grouped.low, grouped.high) == (pytest.approx(19 / 30), 0, 1)
    assert found[0].pairs[0].test == "Randomisation test over groups"


def test_groups_of_one_image_each_change_nothing(tmp_path: Path) -> None:
    first, second = split_right(59, 6, 16, 80)
    names = [f"g{number}" for number in range(162)]
    tables = [make_table(right).assign(group=names) for right in (first, second)]
    (pair,) = compare([write_run(tmp_path / name, table) for name, table in zip("ab", tables, strict=True)], 0.95).pairs
    assert (pair.groups, pair.exact) == (None, pytest.approx(0.052479, abs=1e-6))


def test_classes_change_by_their_own_counts_and_are_corrected_together(tmp_path: Path) -> None:
    """Images go round three classes; all five of class dog that b has right are won."""
    first = [number % 3 != 1 for number in range(15)]
    (pair,) = compare(
        [write_run(tmp_path / "a", make_table(first)), write_run(tmp_path / "b", make_table([True] * 15))], 0.95
    ).pairs
    dog, *others = pair.classes
    assert (dog.name, dog.images, dog.base, dog.other, dog.lost, dog.won) == ("dog", 5, 0, 1, 0, 5)
    assert (dog.p, dog.corrected) == pytest.approx((1 / 32, 3 / 32))
    assert [(change.name, change.p) for change in others] == [("NA", 1), ("cat", 1)]


def test_a_class_without_test_images_is_left_out(tmp_path: Path) -> None:
    table = make_table([True] * 4, classes=["a", "b"]).assign(**{"logit:ghost": np.float32(0)})
    (pair,) = compare([write_run(tmp_path, table)] * 2, 0.95).pairs
    assert [change.name for change in pair.classes] == ["a", "b"]


def test_images_that_changed_sides_come_by_how_much_their_loss_changed(tmp_path: Path) -> None:
    first, second = split_right(1, 2, 2, 1)
    (pair,) = compare(
        [write_run(tmp_path / "a", make_table(first)), write_run(tmp_path / "b", make_table(second))], 0.95
    ).pairs
    assert [(image.key, image.won, image.loss_change) for image in pair.changed] == [
        ("00004", True, -1.94),
        ("00003", True, -1.93),
        ("00002", False, 1.92),
        ("00001", False, 1.91),
    ]
    lost = pair.changed[-1]
    assert (lost.true, lost.base, lost.other) == ("dog", "dog", "NA")


def test_params_that_differ_are_listed_but_for_the_machines_own(tmp_path: Path) -> None:
    table = make_table([True])
    names = [
        write_run(tmp_path / name, table, params)
        for name, params in (
            ("a", "train:\n  lr: 1\n  on: true\nrun:\n  jobs: 1\n"),
            ("b", "train:\n  lr: 1.0\n  x: 2\n"),
        )
    ]
    (pair,) = compare(names, 0.95).pairs
    assert [(change.name, change.base, change.other) for change in pair.params] == [
        ("train.lr", "1", "1.0"),
        ("train.on", "True", "(absent)"),
        ("train.x", "(absent)", "2"),
    ]


def test_two_seeds_are_called_what_they_are(tmp_path: Path) -> None:
    names = [write_run(tmp_path / str(seed), make_table([True]), write_params(seed=seed)) for seed in (1, 2)]
    notes = compare(names, 0.95).pairs[0].notes
    assert notes[1] == "The runs differ in their seed alone: what lies between them is the spread between seeds."
    other = write_run(tmp_path / "b", make_table([True]), write_params(lr=0.2))
    assert "is for several seeds of each to say" in compare([names[0], other], 0.95).pairs[0].notes[1]


def refuse(tmp_path: Path, one: pd.DataFrame, two: pd.DataFrame) -> str:
    """What is said against comparing two tables, with the folders' names cut to a and b."""
    names = [write_run(tmp_path / name, table) for name, table in zip("ab", (one, two), strict=True)]
    with pytest.raises(InputError) as caught:
        compare(names, 0.95)
    return str(caught.value).replace(f"{tmp_path}/", "")


def test_keys_of_one_run_alone_are_counted_and_the_first_listed(tmp_path: Path) -> None:
    lines = refuse(tmp_path, make_table([True] * 30), make_table([True] * 3).replace("00002", "x")).splitlines()
    assert lines[0] == "a and b have different test sets: their accuracies cannot be compared."
    assert lines[1:3] == ["test images only in a (28):", "  00002"]
    assert lines[21:25] == ["  00021", "  … and 8 more", "test images only in b (1):", "  x"]
    assert lines[25] == "Compare runs of the same images, classes and split."


@pytest.mark.parametrize(
    ("column", "what"),
    [("pixel_sha256", "the same key with other pixels"), ("class", "the same key with another class")],
)
def test_the_same_key_has_to_be_the_same_image(tmp_path: Path, column: str, what: str) -> None:
    table = make_table([True] * 3)
    other = table.copy()
    other.loc[2, column] = "dog" if column == "class" else "0" * 64
    other.loc[2, column] = "NA" if column == "class" else "0" * 64
    assert f"{what} (1):\n  00001\n" in refuse(tmp_path, table, other)


def test_the_same_key_has_to_be_in_the_same_group(tmp_path: Path) -> None:
    tables = [make_table([True] * 3).assign(group=["", *names]) for names in ("ppq", "pqq")]
    assert "the same key in another group (1):\n  00001\n" in refuse(tmp_path, *tables)


def test_class_lists_are_compared_by_name(tmp_path: Path) -> None:
    one, two = make_table([True] * 2), make_table([True] * 2).rename(columns={"logit:NA": "logit:fox"})
    assert "classes only in a (1):\n  'NA'\nclasses only in b (1):\n  'fox'\n" in refuse(tmp_path, one, two)


def test_params_of_the_data_say_why(tmp_path: Path) -> None:
    names = [
        write_run(tmp_path / str(fold), make_table([True]).assign(key=str(fold)), write_params(fold=fold, lr=fold))
        for fold in (0, 1)
    ]
    with pytest.raises(InputError, match=r"params of the data that differ \(1\):\n  split\.fold is 0 and 1\nCompare"):
        compare(names, 0.95)
