"""Figures from the predictions table, each accuracy with its interval; scikit-learn and SciPy do the statistics."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from imagepipe.evaluation.predictions import LOGIT


@dataclass(frozen=True, slots=True)
class Interval:
    """A proportion in [0, 1] with the bounds of its interval."""

    value: float
    low: float
    high: float


def list_predicted_classes(predictions: pd.DataFrame) -> list[str]:
    """The class names in label order, as the logit columns give them."""
    return [name.removeprefix(LOGIT) for name in predictions.columns if name.startswith(LOGIT)]


def measure_accuracy(correct: int, count: int, confidence: float) -> Interval:
    """Accuracy with Wilson's score interval (E. B. Wilson, JASA 22, 1927)."""
    bounds = binomtest(correct, count).proportion_ci(confidence_level=confidence, method="wilson")
    return Interval(correct / count, float(bounds.low), float(bounds.high))


def number_classes(predictions: pd.DataFrame, column: str) -> NDArray[np.integer]:
    """The labels (N,) of the classes in a column; scikit-learn needs twenty times as long for names."""
    return pd.Categorical(predictions[column], categories=list_predicted_classes(predictions)).codes


def count_confusions(predictions: pd.DataFrame) -> NDArray[np.int64]:
    """Counts (classes, classes): row the true class, column the predicted one."""
    truth, predicted = (number_classes(predictions, column) for column in ("class", "predicted"))
    labels = np.arange(len(list_predicted_classes(predictions)))
    return np.asarray(confusion_matrix(truth, predicted, labels=labels), np.int64)


def measure_classes(predictions: pd.DataFrame) -> pd.DataFrame:
    """One row a class: images, predicted (how often), precision, recall, F1.

    A class that is never predicted has precision 0; one that has no image has no recall and no F1 (empty cells).
    """
    classes = list_predicted_classes(predictions)
    precision, recall, f1, images = precision_recall_fscore_support(
        number_classes(predictions, "class"),
        number_classes(predictions, "predicted"),
        labels=np.arange(len(classes)),
        average=None,
        zero_division=0,  # pyright: ignore[reportArgumentType]
    )
    absent = np.asarray(images) == 0
    return pd.DataFrame(
        {
            "class": classes,
            "images": np.asarray(images, np.int64),  # scikit-learn counts in floats where nothing is right
            "predicted": count_confusions(predictions).sum(axis=0),
            "precision": np.asarray(precision).round(6),
            "recall": np.where(absent, np.nan, recall).round(6),
            "f1": np.where(absent, np.nan, f1).round(6),
        }
    )


def measure_split(predictions: pd.DataFrame, confidence: float) -> dict[str, int | float]:
    """Accuracy with its interval, macro F1 and balanced accuracy of one split; classes without images are left out."""
    correct = int((predictions["class"] == predictions["predicted"]).sum())
    accuracy = measure_accuracy(correct, len(predictions), confidence)
    classes = measure_classes(predictions)
    return {
        "images": len(predictions),
        "accuracy": accuracy.value,
        "accuracy_low": accuracy.low,
        "accuracy_high": accuracy.high,
        "macro_f1": float(classes["f1"].mean()),
        "balanced_accuracy": float(classes["recall"].mean()),
    }


def measure_predictions(
    predictions: pd.DataFrame, majority_class: str, confidence: float
) -> dict[str, dict[str, int | float]]:
    """`metrics.json`: val, test, and the accuracy on test of always answering `majority_class`."""
    test = predictions[predictions["split"] == "test"]
    classes = measure_classes(test)
    metrics = {
        "test": measure_split(test, confidence)
        | {
            "classes_absent": int((classes["images"] == 0).sum()),
            "classes_never_predicted": int((classes["predicted"] == 0).sum()),
        },
        "baseline": {"accuracy": float((test["class"] == majority_class).mean())},
    }
    val = predictions[predictions["split"] == "val"]
    return metrics if val.empty else metrics | {"val": measure_split(val, confidence)}


def describe_accuracy(metrics: Mapping[str, float], confidence: float) -> str:
    """One line: the accuracy on test, its interval and the number of images."""
    accuracy, low, high = (100 * metrics[name] for name in ("accuracy", "accuracy_low", "accuracy_high"))
    return (
        f"test accuracy {accuracy:.2f} % "
        f"({100 * confidence:g} % interval {low:.2f} to {high:.2f} %, {metrics['images']:,} images)"
    )
