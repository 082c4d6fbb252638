import math

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score

from imagepipe.evaluation.metrics import (
    count_confusions,
    describe_accuracy,
    list_predicted_classes,
    measure_accuracy,
    measure_classes,
    measure_predictions,
    measure_split,
)


def make_predictions(pairs: list[tuple[str, str]], classes: str = "abc", split: str = "test") -> pd.DataFrame:
    """Rows of (true, predicted)."""
    table = pd.DataFrame(pairs, columns=["class", "predicted"]).assign(split=split, loss=0.0)
    return table.assign(**{f"logit:{name}": np.float32(0) for name in classes})


PAIRS = [("a", "a"), ("a", "a"), ("a", "b"), ("b", "b"), ("b", "a"), ("c", "c")]


def test_wilson_interval_by_its_formula() -> None:
    z, n, p = 1.959963984540054, 10, 0.9
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    found = measure_accuracy(9, 10, 0.95)
    assert (found.value, found.low, found.high) == pytest.approx((0.9, middle - half, middle + half))


def test_all_right_has_an_interval_below_one() -> None:
    found = measure_accuracy(10, 10, 0.95)
    assert found.high == 1
    assert found.low == pytest.approx(10 / (10 + 1.959963984540054**2))


def test_a_wider_confidence_has_a_wider_interval() -> None:
    assert measure_accuracy(9, 10, 0.99).low < measure_accuracy(9, 10, 0.9).low


def test_confusions_have_true_classes_in_rows() -> None:
    assert count_confusions(make_predictions(PAIRS)).tolist() == [[2, 1, 0], [1, 1, 0], [0, 0, 1]]


def test_classes_keep_the_order_of_the_logit_columns() -> None:
    assert list_predicted_classes(make_predictions(PAIRS, classes="cab")) == ["c", "a", "b"]


def test_figures_of_each_class_by_hand() -> None:
    table = measure_classes(make_predictions(PAIRS))
    assert table["images"].tolist() == [3, 2, 1]
    assert table["predicted"].tolist() == [3, 2, 1]
    assert table["precision"].tolist() == pytest.approx([2 / 3, 1 / 2, 1], abs=1e-6)
    assert table["recall"].tolist() == pytest.approx([2 / 3, 1 / 2, 1], abs=1e-6)


def test_a_class_that_is_never_predicted_has_precision_0() -> None:
    table = measure_classes(make_predictions([("a", "a"), ("b", "a")], classes="ab"))
    assert table["precision"].tolist() == [0.5, 0]
    assert table["f1"].tolist() == pytest.approx([2 / 3, 0], abs=1e-6)


def test_a_class_without_images_is_left_out_of_the_means() -> None:
    pairs = [("a", "a"), ("a", "b"), ("b", "b"), ("b", "b")]
    with_ghost = measure_split(make_predictions(pairs, classes="abz"), 0.95)
    assert with_ghost == measure_split(make_predictions(pairs, classes="ab"), 0.95)
    assert math.isnan(measure_classes(make_predictions(pairs, classes="abz"))["recall"][2])


def test_macro_figures_agree_with_scikit_learn() -> None:
    table = make_predictions(PAIRS)
    found = measure_split(table, 0.95)
    assert found["macro_f1"] == pytest.approx(f1_score(table["class"], table["predicted"], average="macro"), abs=1e-6)
    expected = balanced_accuracy_score(table["class"], table["predicted"])
    assert found["balanced_accuracy"] == pytest.approx(expected, abs=1e-6)


def test_metrics_keep_splits_apart_and_count_what_is_odd() -> None:
    test = make_predictions([("a", "a"), ("a", "a"), ("b", "a"), ("b", "b")])
    val = make_predictions([("c", "a")], split="val")
    metrics = measure_predictions(pd.concat([val, test], ignore_index=True), "b", 0.95)
    assert metrics["test"]["accuracy"] == 0.75
    assert metrics["val"]["accuracy"] == 0
    assert metrics["baseline"]["accuracy"] == 0.5
    assert metrics["test"]["classes_absent"] == 1
    assert metrics["test"]["classes_never_predicted"] == 1


def test_metrics_do_without_val_and_stay_at_fifteen_scalars() -> None:
    test = make_predictions(PAIRS)
    assert "val" not in measure_predictions(test, "a", 0.95)
    both = measure_predictions(pd.concat([test, test.assign(split="val")], ignore_index=True), "a", 0.95)
    assert sum(len(figures) for figures in both.values()) <= 15


def test_one_line_says_accuracy_interval_and_number() -> None:
    metrics = {"accuracy": 0.9917, "accuracy_low": 0.9757, "accuracy_high": 0.9972, "images": 1359}
    assert describe_accuracy(metrics, 0.95) == "test accuracy 99.17 % (95 % interval 97.57 to 99.72 %, 1,359 images)"


def test_counts_are_whole_numbers_even_where_nothing_is_right() -> None:
    found = measure_classes(make_predictions([("a", "b"), ("b", "a")], classes="ab"))
    assert found["images"].tolist() == [1, 1]
    assert found["images"].dtype == np.int64
