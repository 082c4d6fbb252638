import pytest

from imagepipe.training.loop import Fit, Row
from imagepipe.training.reports import summarise


def make_row(epoch: int, train_accuracy: float, val_accuracy: float) -> Row:
    return {
        "epoch": epoch,
        "train_loss": 0.1,
        "train_accuracy": train_accuracy,
        "val_loss": 0.2,
        "val_accuracy": val_accuracy,
        "val_balanced_accuracy": 0.7,
    }


def test_the_summary_is_that_of_the_epoch_that_is_kept() -> None:
    rows = [make_row(1, 0.9, 0.8), make_row(2, 1.0, 0.75)]
    metrics = summarise(Fit(history=rows, best=rows[0], kept=rows[0]), baseline=0.5, weights=7)
    assert metrics["train"] == {"loss": 0.1, "accuracy": 0.9}
    assert metrics["val"] == {"loss": 0.2, "accuracy": 0.8, "balanced_accuracy": 0.7}
    assert metrics["gap"] == pytest.approx(0.1)
    assert (metrics["best"], metrics["last"]) == ({"epoch": 1, "val_accuracy": 0.8}, {"val_accuracy": 0.75})
    assert (metrics["kept_epoch"], metrics["epochs"], metrics["updates"], metrics["weights"]) == (1, 2, 0, 7)
    assert metrics["baseline"] == {"val_accuracy": 0.5}
