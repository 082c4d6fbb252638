import math
from collections.abc import Sequence
from dataclasses import astuple

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    brier_score_loss,
    f1_score,
    log_loss,
    matthews_corrcoef,
    precision_score,
    roc_auc_score,
    top_k_accuracy_score,
)

from imagepipe.evaluation.calibration import find_log_probabilities
from imagepipe.evaluation.metrics import (
    METRICS,
    Measured,
    count_confusions,
    describe_accuracy,
    find_log_odds,
    list_confusions,
    list_predicted_classes,
    measure_predictions,
    measure_split,
    read_outcomes,
    summarise,
    tabulate_ranking,
    tabulate_scores,
)

CONFIDENCE = 0.95
PAIRS = [("a", "a"), ("a", "a"), ("a", "b"), ("b", "b"), ("b", "a"), ("c", "c")]


def make_predictions(
    pairs: Sequence[tuple[str, str]], classes: str = "abc", split: str = "test", groups: str = ""
) -> pd.DataFrame:
    """Rows of (true, predicted), with a logit of 2 for what is predicted and 0 for the others."""
    table = pd.DataFrame(pairs, columns=["class", "predicted"]).assign(split=split, loss=0.0)
    table["group"] = list(groups) or ""
    logits = {f"logit:{name}": np.where(table["predicted"] == name, 2.0, 0.0).astype(np.float32) for name in classes}
    return table.assign(**logits)


def make_random(count: int = 200, classes: int = 4, seed: int = 0) -> pd.DataFrame:
    """Predictions whose logits lean towards the true class."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, count)
    logits = generator.normal(size=(count, classes)) + 1.5 * np.eye(classes)[labels]
    names = np.array(list("abcdefgh"[:classes]))
    table = pd.DataFrame({"class": names[labels], "predicted": names[logits.argmax(axis=1)], "split": "test"})
    return table.assign(**{f"logit:{name}": logits[:, index] for index, name in enumerate(names)})


def measure(table: pd.DataFrame, temperature: float = 1.0, top_k: int = 2, resamples: int = 200) -> Measured:
    return measure_split(read_outcomes(table), temperature, top_k, CONFIDENCE, resamples)


def test_confusions_have_true_classes_in_rows() -> None:
    assert count_confusions(make_predictions(PAIRS)).tolist() == [[2, 1, 0], [1, 1, 0], [0, 0, 1]]


def test_the_most_frequent_mistakes_come_first() -> None:
    counts = np.array([[5, 1, 3], [1, 5, 0], [0, 0, 5]])
    assert list_confusions(counts, ["a", "b", "c"], 2) == [("a", "c", 3), ("a", "b", 1)]
    assert list_confusions(np.eye(3, dtype=np.int64), ["a", "b", "c"], 2) == []


def test_classes_keep_the_order_of_the_logit_columns() -> None:
    assert list_predicted_classes(make_predictions(PAIRS, classes="cab")) == ["c", "a", "b"]


def test_figures_of_each_class_by_hand() -> None:
    table = measure(make_predictions(PAIRS)).classes
    assert table["images"].tolist() == [3, 2, 1]
    assert table["predicted"].tolist() == [3, 2, 1]
    assert table["precision"].tolist() == pytest.approx([2 / 3, 1 / 2, 1], abs=1e-6)
    assert table["recall"].tolist() == pytest.approx([2 / 3, 1 / 2, 1], abs=1e-6)
    assert table["f1"].tolist() == pytest.approx([2 / 3, 1 / 2, 1], abs=1e-6)


def test_precision_and_recall_of_a_class_have_wilsons_interval() -> None:
    """One right of one: 1 / (1 + z²) is the lower bound."""
    table = measure(make_predictions(PAIRS)).classes
    assert table["recall_low"].iloc[2] == pytest.approx(1 / (1 + 1.959963984540054**2), abs=1e-6)
    assert table["precision_high"].iloc[2] == 1


def test_a_class_that_is_never_predicted_has_precision_0_and_no_interval_for_it() -> None:
    table = measure(make_predictions([("a", "a"), ("b", "a")], classes="ab")).classes
    assert table["precision"].tolist() == [0.5, 0]
    assert table["f1"].tolist() == pytest.approx([2 / 3, 0], abs=1e-6)
    assert math.isnan(table["precision_low"].iloc[1])


def test_a_class_without_images_is_left_out_of_the_means() -> None:
    pairs = [("a", "a"), ("a", "b"), ("b", "b"), ("b", "b")]
    ghost, plain = (measure(make_predictions(pairs, classes=classes)) for classes in ("abz", "ab"))
    for name in ("accuracy", "macro_precision", "macro_f1", "balanced_accuracy", "matthews", "roc_auc"):
        assert ghost.scores[name] == plain.scores[name]
    assert ghost.classes.loc[2, ["recall", "f1", "recall_low", "f1_high", "roc_auc"]].isna().all()


def test_every_figure_agrees_with_scikit_learn() -> None:
    table = make_random()
    found = {name: score.value for name, score in measure(table).scores.items()}
    truth, predicted = table["class"], table["predicted"]
    labels = truth.map({name: index for index, name in enumerate("abcd")}).to_numpy()
    logits = table[[f"logit:{name}" for name in "abcd"]].to_numpy()
    probabilities = np.exp(find_log_probabilities(logits))
    expected = {
        "accuracy": (truth == predicted).mean(),
        "macro_precision": precision_score(truth, predicted, average="macro"),
        "macro_f1": f1_score(truth, predicted, average="macro"),
        "balanced_accuracy": balanced_accuracy_score(truth, predicted),
        "matthews": matthews_corrcoef(truth, predicted),
        "log_loss": log_loss(labels, probabilities),
        "brier": brier_score_loss(labels, probabilities, scale_by_half=False),
        "top_2_accuracy": top_k_accuracy_score(labels, logits, k=2),
        "roc_auc": roc_auc_score(labels, probabilities, multi_class="ovr"),
        "average_precision": average_precision_score(np.eye(4)[labels], probabilities),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-6)


def test_intervals_hold_their_figure_and_differ_with_the_confidence() -> None:
    scores = measure(make_random()).scores
    for name in ("accuracy", "macro_precision", "macro_f1", "balanced_accuracy", "matthews", "log_loss", "brier"):
        assert scores[name].low < scores[name].value < scores[name].high
    narrow = measure_split(read_outcomes(make_random()), 1.0, 2, 0.5, 200).scores
    assert narrow["macro_f1"].high - narrow["macro_f1"].low < scores["macro_f1"].high - scores["macro_f1"].low


def test_images_of_a_group_count_as_one_draw() -> None:
    """Ten groups of twenty that are right or wrong together tell as much as ten images, not as two hundred."""
    outcomes = [("a", "a")] * 160 + [("a", "b")] * 40
    alone = measure(make_predictions(outcomes, "ab")).scores["accuracy"]
    names = "".join(letter * 20 for letter in "qrstuvwxyz")
    together = measure(make_predictions(outcomes, "ab", groups=names)).scores["accuracy"]
    assert together.value == alone.value == 0.8
    assert together.high - together.low > 3 * (alone.high - alone.low)
    assert together.low == pytest.approx(0.45, abs=0.11)  # four or five of ten groups right have a chance of 0.9 %


def test_top_k_of_groups_has_their_interval_and_groups_of_one_image_change_nothing() -> None:
    outcomes = [("a", "a")] * 160 + [("a", "b")] * 40
    found = measure(make_predictions(outcomes, groups="".join(letter * 20 for letter in "qrstuvwxyz"))).scores
    assert astuple(found["top_2_accuracy"]) == pytest.approx((1.0, 1 - 3.841459 / 13.841459, 1.0))  # no group differs
    plain = measure(make_predictions(outcomes))
    own = make_predictions(outcomes).assign(group=[f"patient {number}" for number in range(200)])
    named = measure(own)
    assert repr(named.scores) == repr(plain.scores)  # where NaN equals NaN
    pd.testing.assert_frame_equal(named.classes, plain.classes)


def test_groups_without_a_mistake_have_an_accuracy_with_an_interval_and_figures_without_one() -> None:
    """Wilson's for four of four is 1.96² / (4 + 1.96²) wide."""
    found = measure(make_predictions([("a", "a")] * 8 + [("b", "b")] * 8, groups="wwwwxxxxyyyyzzzz")).scores
    assert astuple(found["accuracy"]) == pytest.approx((1.0, 1 - 3.841459 / 7.841459, 1.0))
    for name in ("macro_f1", "macro_precision", "balanced_accuracy"):
        assert (found[name].value, np.isnan(found[name].low), np.isnan(found[name].high)) == (1.0, True, True)


def test_one_group_alone_says_nothing_of_others() -> None:
    found = measure(make_predictions([("a", "a")] * 8 + [("b", "a")] * 2, groups="x" * 10))
    accuracy = found.scores["accuracy"]
    assert (accuracy.value, accuracy.low, accuracy.high) == (0.8, 0.0, 1.0)
    assert found.scores["macro_f1"].value == pytest.approx((8 / 9 + 0) / 2)
    assert np.isnan([found.scores["macro_f1"].low, found.scores["macro_f1"].high]).all()
    assert astuple(found.scores["top_2_accuracy"]) == (1.0, 0.0, 1.0)
    assert found.classes[["recall_low", "f1_high"]].isna().all(axis=None)


def test_images_rank_by_their_odds_where_probabilities_are_1_to_the_last_digit() -> None:
    """The logits of two classes; b's images are told from a's by all but one pair of six, for both classes alike."""
    logits = np.array([(0, 60), (0, 50), (0, 45), (45, 0), (0, 48), (60, 0)], np.float64)
    table = pd.DataFrame({"class": list("bbbaaa"), "predicted": list("bbbaba"), "split": "test"})
    table = table.assign(**{f"logit:{name}": logits[:, index] for index, name in enumerate("ab")})
    classes = measure(table, top_k=1).classes
    assert classes["roc_auc"].tolist() == [round(8 / 9, 6)] * 2
    odds = find_log_odds(logits)
    assert odds.T.tolist() == [[-60, -50, -45, 45, -48, 60], [60, 50, 45, -45, 48, -60]]
    assert find_log_odds(np.zeros((1, 4))).tolist() == [pytest.approx([-math.log(3)] * 4)]


def test_a_metric_of_ones_own_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """The share of the images that are predicted to be of the first class: three of six."""
    monkeypatch.setitem(METRICS, "first", lambda counts: counts.predicted[0] / counts.images.sum())
    table = tabulate_scores({"test": measure(make_predictions(PAIRS))}).set_index("metric")
    assert table.loc["first", "value"] == 0.5
    assert table.loc["first", "low"] < 0.5 < table.loc["first", "high"]


def test_there_is_no_top_k_where_there_are_no_more_classes() -> None:
    assert "top_3_accuracy" not in measure(make_predictions(PAIRS), top_k=3).scores
    assert measure(make_predictions(PAIRS), top_k=2).scores["top_2_accuracy"].value == pytest.approx(1.0)


def test_of_equal_logits_the_lowest_class_is_first() -> None:
    table = make_predictions([("a", "a"), ("b", "a"), ("c", "a")]).assign(
        **{f"logit:{name}": np.float32(0) for name in "abc"}
    )
    assert measure(table, top_k=2).scores["top_2_accuracy"].value == pytest.approx(2 / 3)


def test_scaled_figures_are_those_of_the_divided_logits() -> None:
    table = make_random()
    halved = table.assign(**{f"logit:{name}": table[f"logit:{name}"] / 2 for name in "abcd"})
    scaled, plain = measure(table, temperature=2.0).scores, measure(halved).scores
    for name in ("log_loss", "brier", "calibration_error"):
        assert scaled[f"{name}_scaled"].value == pytest.approx(plain[name].value)


def test_a_split_of_one_class_has_no_ranking_and_no_nan_where_it_is_written() -> None:
    table = make_predictions([("a", "a"), ("a", "b")], classes="ab")
    measured = measure(table)
    assert math.isnan(measured.scores["roc_auc"].value)
    assert measured.scores["matthews"].value == 0
    assert tabulate_ranking(read_outcomes(table)).empty
    summarise({"test": measured}, 1.0, 0.5)


def test_curves_have_the_areas_that_scikit_learn_finds() -> None:
    table = make_random(400)
    ranking, scores = tabulate_ranking(read_outcomes(table)), measure(table).scores
    assert np.trapezoid(ranking["true_positive_rate"], ranking["share"]) == pytest.approx(
        scores["roc_auc"].value, abs=0.01
    )
    assert ranking["precision"].mean() == pytest.approx(scores["average_precision"].value, abs=0.02)
    assert ranking["true_positive_rate"].is_monotonic_increasing
    assert ranking["precision"].is_monotonic_decreasing


def test_the_temperature_is_fitted_on_val_and_used_on_test() -> None:
    test, val = make_random(300), make_random(300, seed=1).assign(split="val")
    measured, temperature = measure_predictions(pd.concat([val, test], ignore_index=True), 2, CONFIDENCE, 100)
    assert temperature != 1
    assert measured["val"].scores["log_loss_scaled"].value <= measured["val"].scores["log_loss"].value
    assert list(measured) == ["val", "test"]
    assert measure_predictions(test, 2, CONFIDENCE, 100)[1] == 1


def test_metrics_keep_splits_apart_and_count_what_is_odd() -> None:
    test = make_predictions([("a", "a"), ("a", "a"), ("b", "a"), ("b", "b")])
    val = make_predictions([("c", "a"), ("a", "a")], split="val")
    measured, temperature = measure_predictions(pd.concat([val, test], ignore_index=True), 5, CONFIDENCE, 100)
    metrics = summarise(measured, temperature, 0.5)
    assert metrics["test"]["accuracy"] == 0.75
    assert metrics["val"]["accuracy"] == 0.5
    assert metrics["baseline"]["accuracy"] == 0.5
    assert dict(metrics["test"]).keys() == {
        *("images", "accuracy", "accuracy_low", "accuracy_high", "balanced_accuracy", "macro_f1", "matthews"),
        *("log_loss", "calibration_error", "classes_absent", "classes_never_predicted"),
    }
    assert metrics["test"]["classes_absent"] == 1
    assert metrics["test"]["classes_never_predicted"] == 1
    scores = tabulate_scores(measured).set_index(["split", "metric"])["value"]
    assert (scores["val", "accuracy"], scores["test", "accuracy"]) == (0.5, 0.75)


def test_metrics_do_without_val_and_stay_at_fifteen_scalars() -> None:
    test = make_predictions(PAIRS)
    assert "val" not in summarise(measure_predictions(test, 5, CONFIDENCE, 100)[0], 1.0, 0.5)
    both = pd.concat([test, test.assign(split="val")], ignore_index=True)
    metrics = summarise(*measure_predictions(both, 5, CONFIDENCE, 100), 0.5)
    assert sum(len(part) if isinstance(part, dict) else 1 for part in metrics.values()) <= 15


def test_one_line_says_accuracy_interval_and_number() -> None:
    metrics = {"accuracy": 0.9917, "accuracy_low": 0.9757, "accuracy_high": 0.9972, "images": 1359}
    assert describe_accuracy(metrics, 0.95) == "test accuracy 99.17 % (95 % interval 97.57 to 99.72 %, 1,359 images)"


def test_counts_are_whole_numbers_even_where_nothing_is_right() -> None:
    found = measure(make_predictions([("a", "b"), ("b", "a")], classes="ab")).classes
    assert found["images"].tolist() == [1, 1]
    assert found["images"].dtype == np.int64
