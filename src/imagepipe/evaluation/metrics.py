"""Figures from the predictions table, with an interval where there is one; scikit-learn and SciPy do the statistics.

Classes that a split has no image of are left out of all means over classes; a class that is never predicted has a
precision of 0. Where a predictions table names groups, the images of a group count as one draw, and all intervals are
the bootstrap's over groups.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import logsumexp
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.metrics import (
    average_precision_score,
    confusion_matrix,
    precision_recall_curve,
    roc_auc_score,
    roc_curve,
)

from imagepipe.evaluation.calibration import (
    find_calibration_error,
    find_log_loss,
    find_log_probabilities,
    fit_temperature,
    tabulate_calibration,
)
from imagepipe.evaluation.intervals import (
    Interval,
    bound_groups,
    is_grouped,
    measure_proportion,
    number_groups,
    resample,
    take_percentiles,
)
from imagepipe.evaluation.predictions import LOGIT

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Outcomes:
    """What the predictions of one split are measured by.

    `labels` and `predicted` (N,) are class indices, `logits` (N, classes) float64, and `units` (N,) say which images
    are drawn together (`number_groups`).
    """

    classes: list[str]
    labels: NDArray[np.int64]
    predicted: NDArray[np.int64]
    logits: Array
    units: NDArray[np.int64]


def list_predicted_classes(predictions: pd.DataFrame) -> list[str]:
    """The class names in label order, as the logit columns give them."""
    return [name.removeprefix(LOGIT) for name in predictions.columns if name.startswith(LOGIT)]


def number_classes(predictions: pd.DataFrame, column: str) -> NDArray[np.int64]:
    """The labels (N,) of the classes in a column; scikit-learn needs twenty times as long for names."""
    codes = pd.Categorical(predictions[column], categories=list_predicted_classes(predictions)).codes
    return np.asarray(codes, np.int64)


def read_outcomes(predictions: pd.DataFrame) -> Outcomes:
    """The outcomes that a predictions table (`read_predictions`), or the part of a split, holds."""
    classes = list_predicted_classes(predictions)
    groups = predictions["group"].tolist() if "group" in predictions.columns else [""] * len(predictions)
    return Outcomes(
        classes,
        number_classes(predictions, "class"),
        number_classes(predictions, "predicted"),
        predictions[[f"{LOGIT}{name}" for name in classes]].to_numpy(np.float64),
        number_groups(groups),
    )


def count_confusions(predictions: pd.DataFrame) -> NDArray[np.int64]:
    """Counts (classes, classes): row the true class, column the predicted one."""
    truth, predicted = (number_classes(predictions, column) for column in ("class", "predicted"))
    labels = np.arange(len(list_predicted_classes(predictions)))
    return np.asarray(confusion_matrix(truth, predicted, labels=labels), np.int64)


@dataclass(frozen=True, slots=True)
class Counts:
    """Of each class (classes,), weighted by how often an image is drawn: images, predictions, and right ones; and the
    sums of log losses (nats) and Brier scores over all images."""

    images: Array
    predicted: Array
    right: Array
    losses: float
    squares: float


def count_classes(outcomes: Outcomes, losses: Array, squares: Array, weights: Array) -> Counts:
    """The counts with `weights` (N,); `losses` and `squares` (N,) are each image's log loss and Brier score."""
    size, right = len(outcomes.classes), outcomes.labels == outcomes.predicted
    return Counts(
        np.bincount(outcomes.labels, weights, size).astype(np.float64),
        np.bincount(outcomes.predicted, weights, size).astype(np.float64),
        np.bincount(outcomes.labels[right], weights[right], size).astype(np.float64),  # whole numbers, if none is
        float(losses @ weights),
        float(squares @ weights),
    )


def find_precisions(counts: Counts) -> Array:
    """Of each class (classes,); 0 where it is never predicted."""
    return np.divide(counts.right, counts.predicted, out=np.zeros_like(counts.right), where=counts.predicted > 0)


def find_recalls(counts: Counts) -> Array:
    """Of each class (classes,); NaN where it has no image."""
    return np.divide(counts.right, counts.images, out=np.full_like(counts.right, np.nan), where=counts.images > 0)


def find_f1(counts: Counts) -> Array:
    """The harmonic mean of precision and recall of each class (classes,); NaN where it has no image."""
    total = counts.images + counts.predicted
    return np.divide(2 * counts.right, total, out=np.full_like(total, np.nan), where=counts.images > 0)


def find_matthews(counts: Counts) -> float:
    """Matthews correlation, -1 to 1, for any number of classes (Gorodkin, Computational Biology and Chemistry 28,
    2004); 0 where all images, or all predictions, are of one class."""
    total, right = counts.images.sum(), counts.right.sum()
    spread = (total**2 - (counts.predicted**2).sum()) * (total**2 - (counts.images**2).sum())
    return float((right * total - counts.images @ counts.predicted) / np.sqrt(spread)) if spread > 0 else 0.0


# What is counted or averaged over images: in `scores.csv`, `metrics.json` and on the page, with the bootstrap's
# interval. A metric of one's own is one line here. Accuracy and recalls have other intervals where no images are drawn
# together.
METRICS: dict[str, Callable[[Counts], float]] = {
    "accuracy": lambda counts: counts.right.sum() / counts.images.sum(),
    "macro_precision": lambda counts: find_precisions(counts)[counts.images > 0].mean(),
    "macro_f1": lambda counts: find_f1(counts)[counts.images > 0].mean(),
    "balanced_accuracy": lambda counts: find_recalls(counts)[counts.images > 0].mean(),
    "matthews": find_matthews,
    "log_loss": lambda counts: counts.losses / counts.images.sum(),
    "brier": lambda counts: counts.squares / counts.images.sum(),
}


UNCOMPARED = ("accuracy", "macro_precision", "brier")  # not in `metrics.json`, or there in another place


@dataclass(frozen=True, slots=True)
class Measured:
    """What is said of one split: `scores` by metric, and one row a class (see `measure_split`).

    `reliability` are the tables of `tabulate_calibration`, of the probabilities as they are and scaled.
    """

    scores: dict[str, Interval]
    classes: pd.DataFrame
    reliability: tuple[pd.DataFrame, pd.DataFrame]


def measure_split(outcomes: Outcomes, temperature: float, top_k: int, confidence: float, resamples: int) -> Measured:
    """All figures of one split.

    Scores: `accuracy`, `macro_precision`, `macro_f1`, `balanced_accuracy` (the mean recall), `matthews`, `log_loss`
    (nats), `brier` (the sum over classes of squared differences, 0 to 2), `top_k_accuracy` where there are more than
    `top_k` classes, `roc_auc` and `average_precision` (one class against the rest, mean over classes),
    `calibration_error`, and the last three of what probabilities decide once more with the logits divided by
    `temperature` (`…_scaled`).

    Accuracies are proportions, with Wilson's interval where there are no groups; what is counted or averaged has the
    bootstrap's, over groups where there are any; the others have none (NaN), and nothing has one in which all resamples
    agree, but for accuracies (`bound_groups`).

    The table has a row a class: `class`, `images`, `predicted`, `precision`, `recall`, `f1` with `_low` and `_high`,
    `roc_auc`, `average_precision`. Precision and recall are proportions too, with Wilson's interval.
    """
    logarithms = find_log_probabilities(outcomes.logits)
    probabilities = np.exp(logarithms)
    rows = np.arange(len(outcomes.labels))
    losses = -logarithms[rows, outcomes.labels]
    squares = find_squares(probabilities, outcomes.labels)
    ones = np.ones(len(rows))
    counts = count_classes(outcomes, losses, squares, ones)
    hits = find_hits(outcomes, top_k)
    draws, class_draws = [], []
    for weights in resample(outcomes.units, resamples):
        drawn = count_classes(outcomes, losses, squares, weights)
        draws.append([*(measure(drawn) for measure in METRICS.values()), hits @ weights / weights.sum()])
        shares = [find_precisions(drawn), find_recalls(drawn), find_f1(drawn)]
        class_draws.append(np.concatenate(shares))
    bounds = take_percentiles(np.array(draws), outcomes.units, confidence)
    class_bounds = take_percentiles(np.array(class_draws), outcomes.units, confidence)
    ranked = f"top_{top_k}_accuracy"
    values = {name: float(measure(counts)) for name, measure in METRICS.items()} | {ranked: float(hits.mean())}
    scores = {name: Interval(value, *row) for (name, value), *row in zip(values.items(), *bounds, strict=True)}
    for name, right in (("accuracy", counts.right.sum()), (ranked, hits.sum())):
        if not is_grouped(outcomes.units):
            scores[name] = measure_proportion(int(right), len(rows), confidence)
        elif np.isnan(scores[name].low):
            scores[name] = bound_groups(scores[name].value, outcomes.units, confidence)
    if len(outcomes.classes) <= top_k:
        del scores[ranked]
    classes = tabulate_classes(outcomes, counts, class_bounds, confidence)
    for name in ("roc_auc", "average_precision"):
        scores[name] = state(float(classes.loc[classes["images"] > 0, name].mean()))
    scaled = find_log_probabilities(outcomes.logits, temperature)
    tables = (
        tabulate_calibration(probabilities, outcomes.labels),
        tabulate_calibration(np.exp(scaled), outcomes.labels),
    )
    scores |= measure_probabilities(outcomes.labels, scaled, tables)
    return Measured(scores, classes, tables)


def find_squares(probabilities: Array, labels: NDArray[np.int64]) -> Array:
    """Each sample's Brier score (N,): the sum over classes of squared differences to 0 or 1 (Brier, 1950)."""
    right = probabilities[np.arange(len(labels)), labels]
    return (probabilities**2).sum(axis=1) - right**2 + (1 - right) ** 2


def find_hits(outcomes: Outcomes, top_k: int) -> NDArray[np.bool_]:
    """Whether each sample's class (N,) is among the `top_k` first; of a tie, the lowest class is first."""
    own = outcomes.logits[np.arange(len(outcomes.labels)), outcomes.labels][:, None]
    earlier = np.arange(len(outcomes.classes)) < outcomes.labels[:, None]
    ranks = (outcomes.logits > own).sum(axis=1) + ((outcomes.logits == own) & earlier).sum(axis=1)
    return ranks < top_k


def find_log_odds(logits: Array) -> Array:
    """Logarithms of p / (1 - p) of each class against all others, (N, classes) for two classes or more.

    They rank images as the probabilities do, also those whose probability is 1 or 0 to the last digit of a float.
    """
    rows, first = np.arange(len(logits)), logits.argmax(axis=1)
    others = logits.copy()
    others[rows, first] = -np.inf
    logarithms = find_log_probabilities(logits)
    logarithms[rows, first] = -np.inf  # of all but the first, 1 - p is 1/2 or more, and exact enough
    odds = logarithms - np.log1p(-np.exp(logarithms))
    odds[rows, first] = logits[rows, first] - logsumexp(others, axis=1)
    return odds


def measure_probabilities(
    labels: NDArray[np.int64], scaled: Array, tables: tuple[pd.DataFrame, pd.DataFrame]
) -> dict[str, Interval]:
    """How well the probabilities are calibrated, as they are and scaled.

    `scaled` (N, classes) are logarithms of the scaled ones, and `tables` the reliability tables of both.
    """
    before, after = map(find_calibration_error, tables)
    return {
        "calibration_error": state(before),
        "calibration_error_scaled": state(after),
        "log_loss_scaled": state(find_log_loss(scaled, labels)),
        "brier_scaled": state(float(find_squares(np.exp(scaled), labels).mean())),
    }


def state(value: float) -> Interval:
    """A figure that has no interval."""
    return Interval(value, np.nan, np.nan)


def tabulate_classes(outcomes: Outcomes, counts: Counts, resampled: Sequence[Array], confidence: float) -> pd.DataFrame:
    """The table of `measure_split`; `resampled` are the bootstrap's low and high bounds (3 · classes,) of precision,
    recall and F1."""
    absent = counts.images == 0
    columns: dict[str, Any] = {
        "class": outcomes.classes,
        "images": counts.images.astype(np.int64),
        "predicted": counts.predicted.astype(np.int64),
    }
    values = {"precision": find_precisions(counts), "recall": find_recalls(counts), "f1": find_f1(counts)}
    bounds = zip(*(np.split(bound, 3) for bound in resampled), strict=True)
    trials = {"precision": counts.predicted, "recall": counts.images}
    for (name, value), (low, high) in zip(values.items(), bounds, strict=True):
        if name in trials and not is_grouped(outcomes.units):
            low, high = bound_proportions(counts.right, trials[name], confidence)
        columns |= {name: value, f"{name}_low": low, f"{name}_high": high}
        for column in (name, f"{name}_low", f"{name}_high"):
            columns[column] = np.where(absent & (name != "precision"), np.nan, columns[column]).round(6)
    odds = find_log_odds(outcomes.logits)
    for name, score in (("roc_auc", roc_auc_score), ("average_precision", average_precision_score)):
        columns[name] = [rank(score, outcomes.labels == label, column) for label, column in enumerate(odds.T)]
    return pd.DataFrame(columns)


def bound_proportions(right: Array, trials: Array, confidence: float) -> tuple[Array, Array]:
    """Wilson's bounds of each class (classes,); NaN where there were no trials."""
    bounds = np.full((2, len(right)), np.nan)
    for index in np.flatnonzero(trials):
        found = measure_proportion(int(right[index]), int(trials[index]), confidence)
        bounds[:, index] = found.low, found.high
    return bounds[0], bounds[1]


def rank(score: Any, own: NDArray[np.bool_], odds: Array) -> float:
    """A class's figure against the rest; NaN where all images are of the class, or none."""
    if own.all() or not own.any():
        return float("nan")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UndefinedMetricWarning)
        return round(float(score(own, odds)), 6)


def tabulate_ranking(outcomes: Outcomes) -> pd.DataFrame:
    """The mean over classes of the ROC and precision-recall curves, each class against the rest, at 101 places.

    Columns: `share` from 0 to 1; `true_positive_rate` where the false positive rate is that share; and `precision`, the
    best that is to be had with at least that recall. Without rows where no class can be told from the rest.
    """
    places = np.linspace(0, 1, 101)
    rates, precisions = [], []
    for label, odds in enumerate(find_log_odds(outcomes.logits).T):
        own = outcomes.labels == label
        if own.all() or not own.any():
            continue
        false, true, _ = roc_curve(own, odds)
        rates.append(np.interp(places, false, true))
        precision, recall, _ = precision_recall_curve(own, odds)
        best = np.maximum.accumulate(precision)  # recall falls along the curve
        precisions.append(best[np.searchsorted(-recall, -places, side="right") - 1])
    if not rates:
        return pd.DataFrame(columns=["share", "true_positive_rate", "precision"], dtype=np.float64)
    return pd.DataFrame(
        {
            "share": places,
            "true_positive_rate": np.mean(rates, axis=0).round(6),
            "precision": np.mean(precisions, axis=0).round(6),
        }
    )


def list_confusions(counts: NDArray[np.int64], classes: list[str], shown: int) -> list[tuple[str, str, int]]:
    """The most frequent mistakes as (true class, predicted class, images), at most `shown`; ties in class order."""
    wrong = counts - np.diag(np.diag(counts))
    rows, columns = np.nonzero(wrong)
    order = np.argsort(-wrong[rows, columns], kind="stable")[:shown]
    return [(classes[rows[at]], classes[columns[at]], int(wrong[rows[at], columns[at]])) for at in order]


def measure_predictions(
    predictions: pd.DataFrame, top_k: int, confidence: float, resamples: int
) -> tuple[dict[str, Measured], float]:
    """Each split of a predictions table, and the temperature that was fitted on val (1 where there is no val)."""
    outcomes = {
        split: read_outcomes(part)
        for split in ("val", "test")
        if not (part := predictions[predictions["split"] == split]).empty
    }
    temperature = fit_temperature(outcomes["val"].logits, outcomes["val"].labels) if "val" in outcomes else 1.0
    measured = {
        split: measure_split(part, temperature, top_k, confidence, resamples) for split, part in outcomes.items()
    }
    return measured, temperature


def summarise(measured: Mapping[str, Measured], temperature: float, baseline: float) -> dict[str, object]:
    """`metrics.json`: the figures that runs are compared by; `baseline` is the accuracy on test of one answer alone."""
    test = measured["test"]
    accuracy = test.scores["accuracy"]
    metrics: dict[str, object] = {
        "test": {
            "images": int(test.classes["images"].sum()),
            "accuracy": accuracy.value,
            "accuracy_low": accuracy.low,
            "accuracy_high": accuracy.high,
            **{name: test.scores[name].value for name in (*METRICS, "calibration_error") if name not in UNCOMPARED},
            "classes_absent": int((test.classes["images"] == 0).sum()),
            "classes_never_predicted": int((test.classes["predicted"] == 0).sum()),
        },
        "baseline": {"accuracy": baseline},
        "temperature": temperature,
    }
    if "val" in measured:
        metrics["val"] = {name: measured["val"].scores[name].value for name in ("accuracy", "log_loss")}
    return metrics


def tabulate_scores(measured: Mapping[str, Measured]) -> pd.DataFrame:
    """`scores.csv`: every figure of every split, with the bounds of its interval where it has one."""
    rows = [
        {"split": split, "metric": name, "value": score.value, "low": score.low, "high": score.high}
        for split, part in measured.items()
        for name, score in part.scores.items()
    ]
    return pd.DataFrame(rows).round(6)


def describe_accuracy(metrics: Mapping[str, float], confidence: float) -> str:
    """One line: the accuracy on test, its interval and the number of images."""
    accuracy, low, high = (100 * metrics[name] for name in ("accuracy", "accuracy_low", "accuracy_high"))
    return (
        f"test accuracy {accuracy:.2f} % "
        f"({100 * confidence:g} % interval {low:.2f} to {high:.2f} %, {metrics['images']:,} images)"
    )
