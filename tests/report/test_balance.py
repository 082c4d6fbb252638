import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from imagepipe.core.config import load_section
from imagepipe.core.errors import InputError
from imagepipe.core.manifest import COLUMNS, SPLITS, write_manifests
from imagepipe.report.balance import (
    BalanceParams,
    Counts,
    count_classes,
    find_minority,
    list_violations,
    measure_balance,
    measure_drift,
    quote_names,
    recommend_measure,
    report_balance,
    summarise,
    tabulate_classes,
    tabulate_counts,
    tabulate_splits,
)
from imagepipe.report.plots import draw_balance
from imagepipe.sources.idx import read_idx
from tests.conftest import ROOT
from tests.made import make_dataset, make_dataset_info

CLASS_COUNTS = st.lists(st.integers(0, 1000), min_size=2, max_size=8).filter(any)


def make_params(on_violation: str = "warn", max_ratio: float = 1.5, max_drift: float = 0.1) -> BalanceParams:
    return BalanceParams.model_validate({"on_violation": on_violation, "max_ratio": max_ratio, "max_drift": max_drift})


def name_counts(counts: list[int]) -> dict[str, int]:
    return {f"class {number}": count for number, count in enumerate(counts)}


def find_violations(counts: Counts, **limits: float) -> list[str]:
    drifts = {split: measure_drift(counts[split], counts["train"]) for split in counts if split != "train"}
    return list_violations(counts, drifts, make_params(**limits))  # type: ignore[arg-type]


def test_spread_of_three_to_one_by_hand() -> None:
    found = measure_balance({"a": 3, "b": 1}, "a")
    assert (found.images, found.imbalance_ratio, found.majority_baseline) == (4, 3, 0.75)
    assert found.evenness == pytest.approx(-(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25)))


def test_even_classes_have_ratio_1_and_evenness_1() -> None:
    found = measure_balance({"a": 5, "b": 5, "c": 5}, "a")
    assert found.imbalance_ratio == 1
    assert found.evenness == pytest.approx(1)
    assert found.majority_baseline == pytest.approx(1 / 3)


def test_an_empty_class_has_no_ratio() -> None:
    found = measure_balance({"a": 5, "b": 0}, "a")
    assert found.imbalance_ratio is None
    assert found.evenness == 0


def test_one_class_alone_has_no_evenness() -> None:
    assert measure_balance({"a": 5}, "a").evenness is None


def test_the_baseline_answers_what_is_most_frequent_in_train() -> None:
    assert measure_balance({"a": 1, "b": 3}, "a").majority_baseline == 0.25


def test_the_minority_has_images() -> None:
    assert find_minority({"a": 3, "b": 0, "c": 2, "d": 2}) == "c"


def test_missing_classes_are_named() -> None:
    assert measure_balance({"a": 5, "b": 0, "NA": 0}, "a").missing == ["b", "NA"]


def test_chi_square_of_two_by_two_by_hand() -> None:
    found = measure_drift({"a": 20, "b": 10}, {"a": 10, "b": 20})  # 15 expected in each cell: 4 · 25 / 15
    assert found.chi2 == pytest.approx(20 / 3)
    assert (found.dof, found.low_expected) == (1, 0)
    assert found.p == pytest.approx(0.00982, abs=1e-5)
    assert found.total_variation == 0.333333


def test_total_variation_by_hand() -> None:
    assert measure_drift({"a": 3, "b": 1}, {"a": 50, "b": 50}).total_variation == pytest.approx(0.25)


def test_cells_that_expect_fewer_than_five_are_counted() -> None:
    found = measure_drift({"a": 4, "b": 6}, {"a": 50, "b": 50})  # val expects 54 / 11 and 56 / 11
    assert found.low_expected == 1


def test_a_class_empty_in_both_is_left_out_and_one_that_train_lacks_is_not() -> None:
    both = measure_drift({"a": 20, "b": 10, "c": 0}, {"a": 10, "b": 20, "c": 0})
    assert both == measure_drift({"a": 20, "b": 10}, {"a": 10, "b": 20})
    assert measure_drift({"a": 0, "b": 10}, {"a": 10, "b": 0}).chi2 == pytest.approx(20)  # every image is elsewhere
    assert measure_drift({"a": 0, "b": 10}, {"a": 10, "b": 0}).total_variation == 1


def test_one_class_alone_cannot_drift() -> None:
    found = measure_drift({"a": 5}, {"a": 9})
    assert (found.total_variation, found.chi2, found.dof, found.p) == (0, 0, 0, 1)


@given(CLASS_COUNTS, st.integers(1, 5))
def test_equal_proportions_are_no_drift(counts: list[int], times: int) -> None:
    found = measure_drift(name_counts([times * count for count in counts]), name_counts(counts))
    assert found.total_variation == pytest.approx(0, abs=1e-12)
    assert found.chi2 == pytest.approx(0, abs=1e-9)
    assert found.p == pytest.approx(1)


@given(st.lists(st.tuples(st.integers(0, 100), st.integers(1, 100)), min_size=2, max_size=6))
def test_drift_is_the_same_both_ways_and_chi_square_grows_with_the_images(pairs: list[tuple[int, int]]) -> None:
    train = name_counts([second for _, second in pairs])
    split = name_counts([first + 1 for first, _ in pairs])
    there, back = measure_drift(split, train), measure_drift(train, split)
    assert 0 <= there.total_variation <= 1
    assert there.total_variation == pytest.approx(back.total_variation)
    assert there.chi2 == pytest.approx(back.chi2)
    double = measure_drift({k: 2 * n for k, n in split.items()}, {k: 2 * n for k, n in train.items()})
    assert double.chi2 == pytest.approx(2 * there.chi2)


def test_a_class_that_a_split_lacks_is_a_violation() -> None:
    train = {"a": 9, "b": 9, "NA": 9}
    assert find_violations({"train": train, "val": {"a": 4, "b": 0, "NA": 0}, "test": train}) == [
        "val: no image of 2 classes of train ('b', 'NA'), of which val can say nothing; "
        "add images or raise val's share."
    ]


def test_a_class_that_train_lacks_is_one_violation_not_three() -> None:
    counts = {"a": 9, "b": 9, "007": 0}
    assert find_violations({"train": counts, "val": counts, "test": {"a": 8, "b": 8, "007": 1}}, max_ratio=9) == [
        "train: no image of 1 class ('007'), which no model can learn; add images or leave them out."
    ]


def test_the_ratio_is_a_violation_above_its_limit_not_at_it() -> None:
    counts = {"train": {"a": 3, "b": 2, "c": 0}}
    assert len(find_violations(counts, max_ratio=1.5)) == 1  # the missing class
    assert find_violations(counts, max_ratio=1.4)[1] == (
        "train: 3 images of 'a' against 2 of 'b', more than balance.max_ratio (1.4) allows; "
        "accuracy alone will flatter."
    )


def test_a_ratio_of_just_the_limit_is_within_it_whatever_a_product_rounds_to() -> None:
    counts = {"a": 115, "b": 100}
    assert 1.15 * 100 < 115
    assert find_violations({"train": counts}, max_ratio=1.15) == []
    assert recommend_measure(counts, 1.15).startswith(
        "train's largest class is 1.15 times its smallest: train as it is"
    )
    assert len(find_violations({"train": {"a": 116, "b": 100}}, max_ratio=1.15)) == 1


def test_rounding_makes_no_split_uneven_and_train_is_told_once() -> None:
    even = {"a": 15, "b": 15}
    assert not find_violations({"train": even, "val": {"a": 2, "b": 1}}, max_ratio=1.5)
    (found,) = find_violations({"train": even, "val": {"a": 4, "b": 2}}, max_ratio=1.5)
    assert found.startswith("val: 4 images of 'a' against 2 of 'b'")
    (found,) = find_violations({"train": {"a": 40, "b": 20}, "val": {"a": 4, "b": 2}}, max_ratio=1.5)
    assert found.startswith("train: 40 images of 'a' against 20 of 'b'")


def test_drift_is_a_violation_where_chance_cannot_explain_it() -> None:
    train = {"a": 500, "b": 500}
    assert not find_violations({"train": train, "val": {"a": 16, "b": 4}}, max_ratio=9)  # p 0.008
    assert find_violations({"train": train, "val": {"a": 160, "b": 40}}, max_ratio=9) == [
        "val: 30.0 % of the images would have to change class to have train's proportions (chi-square 60.6, p 7e-15), "
        "more than balance.max_drift (0.1) allows; most of it 'a', +30.0 points. "
        "Deal the splits anew (split.strategy: stratified), or read accuracy class by class."
    ]
    assert not find_violations({"train": train, "val": {"a": 160, "b": 40}}, max_ratio=9, max_drift=0.3)


def test_a_certain_but_tiny_drift_is_no_violation() -> None:
    counts = {"train": {"a": 10_000, "b": 10_000}, "test": {"a": 10_400, "b": 9_600}}
    assert measure_drift(counts["test"], counts["train"]).p < 0.0001
    assert not find_violations(counts)


def test_a_rough_p_is_called_rough() -> None:
    (found,) = find_violations({"train": {"a": 97, "b": 3}, "val": {"a": 10, "b": 10}}, max_ratio=99)
    # 13 of 120 images are b's: the 20 of val expect 2.2
    assert ", roughly, for some cells of its table expect fewer than 5 images)" in found


def test_many_and_long_names_stay_readable() -> None:
    assert quote_names(["x" * 300]) == repr("x" * 39 + "…")
    assert quote_names(list("abcdefg")) == "'a', 'b', 'c', 'd', 'e' and 2 more"


def test_recommends_nothing_up_to_the_ratio() -> None:
    assert recommend_measure({"a": 30, "b": 20}, 1.5) == (
        "train's largest class is 1.5 times its smallest: train as it is, without weights."
    )


def test_recommends_weights_for_a_moderate_ratio() -> None:
    found = recommend_measure({"a": 199, "b": 20}, 1.5)
    assert "9.95 times its smallest: weight the classes in the loss" in found
    assert "sampler" not in found
    assert "Caution" not in found


def test_recommends_a_sampler_from_ten_on() -> None:
    assert "10 times its smallest: draw rare classes more often with a weighted sampler, or use focal loss" in (
        recommend_measure({"a": 200, "b": 20, "c": 0}, 1.5)
    )


def test_cautions_where_a_class_has_too_few_images() -> None:
    found = recommend_measure({"a": 20, "b": 19, "c": 18, "d": 0}, 1.5)
    assert found.startswith(
        "no weight helps 'd', of which train has no image; of the others, train's largest class is 1.11 times its "
        "smallest: train as it is"
    )
    assert "Caution: 2 classes have fewer than 20 train images (fewest: 18 of 'c')" in found
    assert "Caution: 1 class has fewer than 20 train images (fewest: 1 of 'b')" in recommend_measure(
        {"a": 100, "b": 1}, 1.5
    )


def test_counts_table_has_shares_of_each_split_and_points_from_train() -> None:
    table = tabulate_counts({"train": {"a": 3, "b": 1}, "val": {"a": 0, "b": 0}, "test": {"a": 1, "b": 2}})
    assert table.columns.tolist() == ["split", "class", "count", "percent", "points"]
    assert table["percent"].tolist() == [75, 25, 0, 0, 33.3333, 66.6667]
    assert table["points"].tolist()[:2] + table["points"].tolist()[4:] == [0, 0, -41.6667, 41.6667]
    assert table["points"].isna().tolist() == [False, False, True, True, False, False]


def test_classes_table_leaves_cells_empty_where_there_is_no_image() -> None:
    table = tabulate_classes({"a": 2, "b": 1, "c": 1, "d": 0})
    assert table.to_csv(index=False, lineterminator="\n") == (
        "class,train_images,effective_number,weight_balanced,weight_effective\n"
        "a,2,1.75,0.666667,0.666667\nb,1,1.0,1.333333,1.166667\nc,1,1.0,1.333333,1.166667\nd,0,0.0,,\n"
    )


def test_splits_table_has_a_row_for_each_split_with_images() -> None:
    train, val = {"a,b": 20, "c": 10, "d": 0}, {"a,b": 10, "c": 20, "d": 0}
    table = tabulate_splits(
        {"train": measure_balance(train, "a,b"), "val": measure_balance(val, "a,b")}, {"val": measure_drift(val, train)}
    )
    assert table["split"].tolist() == ["train", "val"]
    assert table.iloc[0][["chi2", "dof", "p", "low_expected", "total_variation"]].isna().all()
    row = table.iloc[1].to_dict()
    assert (row["images"], row["classes_missing"], row["imbalance_ratio"]) == (30, 1, None)
    assert (row["chi2"], row["dof"], row["p"]) == (6.66667, 1, 0.00982327)
    assert (row["low_expected"], row["total_variation"], row["majority_baseline"]) == (0, 0.333333, 0.333333)
    assert row["missing"] == '["d"]'


def test_the_summary_of_splits_that_lack_classes_has_nulls_and_stays_within_fifteen_numbers() -> None:
    counts = {"train": {"a": 3, "b": 0}, "val": {"a": 1, "b": 0}, "test": {"a": 0, "b": 1}}
    balances = {split: measure_balance(classes, "a") for split, classes in counts.items()}
    drifts = {split: measure_drift(counts[split], counts["train"]) for split in ("val", "test")}
    figures = summarise(balances, drifts, 3)
    assert figures["violations"] == 3
    assert figures["train"] == {"images": 3, "imbalance_ratio": None, "majority_baseline": 1, "evenness": 0}
    assert sum(len(value) if isinstance(value, dict) else 1 for value in figures.values()) == 15
    assert not math.isnan(json.loads(json.dumps(figures, allow_nan=False))["test"]["p"])


def test_report_warns_above_the_ratio_and_names_both_ends(tmp_path: Path) -> None:
    make_dataset(tmp_path, {"train": 4, "val": 3, "test": 3})  # train: cat 2, dog 1, NA 1
    verdict = report_balance(tmp_path, tmp_path / "balance", make_params(max_ratio=1.5))
    assert verdict.violations == [
        "train: 2 images of 'cat' against 1 of 'dog', more than balance.max_ratio (1.5) allows; "
        "accuracy alone will flatter."
    ]
    assert (tmp_path / "balance" / "recommendation.txt").read_text("utf-8") == verdict.recommendation + "\n"
    assert report_balance(tmp_path, tmp_path / "balance", make_params(max_ratio=2.0)).violations == []


def test_report_that_may_fail_raises_with_all_violations_and_leaves_what_was_there(tmp_path: Path) -> None:
    make_dataset(tmp_path, {"train": 6, "val": 2, "test": 0})
    report_balance(tmp_path, tmp_path / "balance", make_params(max_ratio=9))
    before = {path.name: path.read_bytes() for path in (tmp_path / "balance").iterdir()}
    with pytest.raises(InputError) as caught:
        report_balance(tmp_path, tmp_path / "balance", make_params("fail"))
    assert str(caught.value) == (
        f"{tmp_path}: unbalanced, and balance.on_violation is fail (1):\n"
        "  val: no image of 1 class of train ('NA'), of which val can say nothing; add images or raise val's share.\n"
        "Mend the split, raise the limits under `balance:` in params.yaml, or set balance.on_violation: warn."
    )
    assert {path.name: path.read_bytes() for path in (tmp_path / "balance").iterdir()} == before


def test_report_that_may_fail_is_written_where_all_is_well(tmp_path: Path) -> None:
    make_dataset(tmp_path, {"train": 6, "val": 3, "test": 3})
    assert report_balance(tmp_path, tmp_path / "balance", make_params("fail")).violations == []
    assert {path.name for path in (tmp_path / "balance").iterdir()} == {
        *("balance.json", "balance.png", "classes.csv", "counts.csv", "recommendation.txt", "splits.csv")
    }


def test_report_writes_figures_that_agree_with_the_manifests(tmp_path: Path) -> None:
    info = make_dataset(tmp_path, {"train": 4, "val": 3, "test": 0})
    report_balance(tmp_path, tmp_path / "balance", make_params(max_ratio=9))
    figures = json.loads((tmp_path / "balance" / "balance.json").read_text())
    assert figures["train"] == {
        "images": 4,
        "imbalance_ratio": 2,
        "majority_baseline": 0.5,
        "evenness": round(1.5 / math.log2(3), 6),
    }
    assert figures["val"]["total_variation"] == round(1 / 6, 6)  # 2, 1, 1 of 4 and 1, 1, 1 of 3
    assert "test" not in figures
    table = pd.read_csv(tmp_path / "balance" / "counts.csv", keep_default_na=False)
    assert {split: dict(zip(rows["class"], rows["count"], strict=True)) for split, rows in table.groupby("split")} == (
        info.counts
    )


def test_the_same_manifests_give_the_same_bytes(tmp_path: Path) -> None:
    make_dataset(tmp_path, {"train": 7, "val": 3, "test": 4})
    for name in ("one", "two"):
        report_balance(tmp_path, tmp_path / name, make_params())
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def run_balance(folder: Path, on_violation: str) -> subprocess.CompletedProcess[str]:
    section = f"balance:\n  on_violation: {on_violation}\n  max_ratio: 1.5\n  max_drift: 0.1\n"
    (folder / "params.yaml").write_text(section, "utf-8")
    command = [sys.executable, str(ROOT / "stages" / "balance.py"), ".", "balance"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.mark.slow
def test_the_stage_warns_or_fails_as_its_params_say(tmp_path: Path) -> None:
    make_dataset(tmp_path, {"train": 6, "val": 2, "test": 3})
    failed = run_balance(tmp_path, "fail")
    assert (failed.returncode, failed.stdout) == (2, "")
    assert failed.stderr.startswith("error: .: unbalanced, and balance.on_violation is fail (1):\n  val: no image of")
    assert not (tmp_path / "balance").exists()
    warned = run_balance(tmp_path, "warn")
    assert warned.returncode == 0
    assert warned.stderr.startswith("balance: warning: val: no image of 1 class of train ('NA')")
    assert warned.stdout.startswith("balance: train's classes are of one size: train as it is")
    assert warned.stdout.endswith("balance: uneven, see balance/balance.png\n")


def test_the_bars_start_at_zero(tmp_path: Path) -> None:
    draw_balance({"train": {"a": 1000, "b": 990}}, tmp_path / "b.png")
    with Image.open(tmp_path / "b.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    blue = (pixels == (0x00, 0x72, 0xB2)).all(axis=2)
    heights = np.sort(np.unique(blue.sum(axis=0)))[-2:]
    assert 0.97 < heights[0] / heights[1] < 1  # 990 / 1000; an axis from 985 would give a third


def test_refuses_an_empty_train_split(tmp_path: Path) -> None:
    make_dataset(tmp_path, {"train": 0, "val": 3, "test": 3})
    with pytest.raises(InputError, match=r"train\.csv: the train split is empty"):
        report_balance(tmp_path, tmp_path / "balance", make_params(max_ratio=9))
    assert not (tmp_path / "balance").exists()


def test_refuses_a_ratio_below_1(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("balance:\n  on_violation: warn\n  max_ratio: 0.5\n  max_drift: 0.1\n")
    with pytest.raises(InputError, match=r"params\.yaml:3: balance\.max_ratio: found 0\.5; expected greater than"):
        load_section("balance", BalanceParams, tmp_path / "params.yaml")


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("max_drift", "-0.1", "found -0.1; expected greater than or equal to 0"),
        ("max_drift", "1.5", "found 1.5; expected less than or equal to 1"),
        ("on_violation", "error", "found error; expected 'warn' or 'fail'"),
    ],
)
def test_refuses_limits_out_of_range(tmp_path: Path, key: str, value: str, expected: str) -> None:
    values = {"on_violation": "warn", "max_ratio": "1.5", "max_drift": "0.1", key: value}
    lines = "".join(f"  {name}: {text}\n" for name, text in values.items())
    (tmp_path / "params.yaml").write_text(f"balance:\n{lines}")
    with pytest.raises(InputError) as caught:
        load_section("balance", BalanceParams, tmp_path / "params.yaml")
    assert f"balance.{key}: {expected}" in str(caught.value)


@pytest.mark.slow
def test_mnist_train_has_the_published_counts(tmp_path: Path, mnist_dir: Path) -> None:
    labels = read_idx(mnist_dir / "train-labels-idx1-ubyte.gz")
    digits = [str(digit) for digit in range(10)]
    table = pd.DataFrame(0, index=range(len(labels)), columns=list(COLUMNS))
    table = table.assign(label=labels, **{"class": [digits[label] for label in labels], "split": "train"})
    info = make_dataset_info().model_copy(update={"classes": digits})
    write_manifests(tmp_path, table, info)
    counts = count_classes(tmp_path, info)["train"]
    assert list(counts.values()) == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert round(100 * counts["1"] / 60000, 2) == 11.24


def test_the_figure_is_a_readable_picture(tmp_path: Path) -> None:
    make_dataset(tmp_path, {"train": 4, "val": 3, "test": 3})
    report_balance(tmp_path, tmp_path / "balance", make_params(max_ratio=9))
    with Image.open(tmp_path / "balance" / "balance.png") as picture:
        picture.load()
        assert picture.width > 500
        assert len(np.unique(np.asarray(picture))) > 3


def test_every_split_is_counted(tmp_path: Path) -> None:
    info = make_dataset(tmp_path, {"train": 6, "val": 3, "test": 3})
    assert tuple(count_classes(tmp_path, info)) == SPLITS
