"""Whether probabilities mean what they say: a model that is 90 % sure should be right nine times out of ten."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

BINS = 15  # as Guo et al. have it
WIDEST = 100.0  # the temperature is looked for between 1/100 and 100


def find_log_probabilities(logits: NDArray[np.float64], temperature: float = 1.0) -> NDArray[np.float64]:
    """Natural logarithms of the probabilities (N, classes) that logits of that shape give, divided by `temperature`."""
    return log_softmax(logits / temperature, axis=1)


def fit_temperature(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """The temperature that makes the log loss on these samples least; never one that makes it worse than 1 does.

    Where no sample is predicted wrong, 1: the lower the temperature, the less the loss would be, without an end.

    Guo, Pleiss, Sun, Weinberger: On calibration of modern neural networks, arXiv:1706.04599. Dividing all logits by one
    number changes no prediction. The log loss is convex in the inverse of the temperature, so the search in one
    dimension finds its least value.
    """

    if (logits.argmax(axis=1) == labels).all():
        return 1.0

    def lose(logarithm: float) -> float:
        return find_log_loss(find_log_probabilities(logits, float(np.exp(logarithm))), labels)

    bound = np.log(WIDEST)
    found = minimize_scalar(lose, bounds=(-bound, bound), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x)) if found.fun < lose(0.0) else 1.0


def find_log_loss(logarithms: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """Mean over the samples of minus the log probability of the right class, in nats."""
    return float(0.0 - logarithms[np.arange(len(labels)), labels].mean())  # a minus alone would make -0.0 of 0.0


def tabulate_calibration(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> pd.DataFrame:
    """The reliability table: samples by the probability of the predicted class, in BINS bins of even width.

    Columns: `low` and `high` bounds of the bin (the upper one belongs to it), `images`, the mean `confidence`, and the
    `accuracy`, which are empty where a bin is.
    """
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    places = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
    images = np.bincount(places, minlength=BINS)
    with np.errstate(invalid="ignore"):
        means = [np.bincount(places, values, BINS) / images for values in (confidence, right)]
    edges = np.arange(BINS + 1) / BINS
    return pd.DataFrame(
        {"low": edges[:-1], "high": edges[1:], "images": images, "confidence": means[0], "accuracy": means[1]}
    )


def find_calibration_error(table: pd.DataFrame) -> float:
    """Expected calibration error, in [0, 1]: how far confidence and accuracy lie apart, on average over the samples."""
    gaps = (table["confidence"] - table["accuracy"]).abs().fillna(0.0)
    return float((gaps * table["images"]).sum() / table["images"].sum())
