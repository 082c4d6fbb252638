"""Predictions, curves and a folder with what the stages before evaluate leave."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from imagepipe.evaluation.params import EvaluateParams, LossParams
from imagepipe.report.balance import BalanceParams, report_balance
from imagepipe.report.results import write_results
from tests.made import CLASSES, make_dataset

PARAMS = EvaluateParams(
    batch_size=10,
    confidence=0.95,
    gallery=4,
    threads=1,
    resamples=100,
    top_k=2,
    intended_use="Sorting <b>pets</b>.",
    limits="",
)


def make_predictions(wrong: int, count: int = 6) -> pd.DataFrame:
    """`count` test rows of which the first `wrong` are wrong, with losses 1, 2, 3 …; keys as in tests.made."""
    labels = [CLASSES[number % 3] for number in range(count)]
    predicted = [CLASSES[(number + (number < wrong)) % 3] for number in range(count)]
    return pd.DataFrame(
        {
            "split": "test",
            "key": [f"{number:05d}" for number in range(count)],
            "path": [f"{number:05d}.png" for number in range(count)],
            "source": "made",
            "pixel_sha256": "0",
            "class": labels,
            "predicted": predicted,
            "loss": np.arange(1.0, count + 1),
        }
    ).assign(**{f"logit:{name}": np.float32(0.5) for name in CLASSES})


def make_curves(epochs: int, per_epoch: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    updates = np.arange(1, epochs * per_epoch + 1)
    steps = pd.DataFrame({"update": updates, "epoch": (updates - 1) // per_epoch + 1, "loss": 2 / updates})
    history = pd.DataFrame({"epoch": range(1, epochs + 1), "updates": [per_epoch * n for n in range(1, epochs + 1)]})
    for name in ("train_loss", "val_loss", "train_accuracy", "val_accuracy"):
        history[name] = np.linspace(0.9, 0.1, epochs)
    return history, steps


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A dataset, its balance report and the tables of a training run."""
    make_dataset(tmp_path, {"train": 6, "val": 3, "test": 3})
    report_balance(tmp_path, tmp_path / "balance", BalanceParams(on_violation="warn", max_ratio=9.0, max_drift=1.0))
    (tmp_path / "train").mkdir()
    history, steps = make_curves(2, 5)
    history.to_csv(tmp_path / "train" / "history.csv", index=False)
    steps.to_csv(tmp_path / "train" / "steps.csv", index=False)
    return tmp_path


def write(folder: Path, predictions: pd.DataFrame) -> Path:
    """The results of `predictions`, in `folder/results`."""
    train, loss = folder / "train", LossParams(loss="cross_entropy", imbalance="none")
    write_results(predictions, folder / "images", folder / "balance", train, folder / "results", PARAMS, loss)
    return folder / "results"
