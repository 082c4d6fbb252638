"""[torch] What the train stage writes besides the model: `history.csv`, `steps.csv` and `metrics.json`."""

from pathlib import Path

import pandas as pd

from imagepipe.core.class_counts import find_majority
from imagepipe.core.files import write_csv, write_json
from imagepipe.core.manifest import DatasetInfo
from imagepipe.training.diagnosis import suggest_remedy
from imagepipe.training.loop import Fit


def measure_baseline(info: DatasetInfo) -> float:
    """The share of val that is of the class most frequent in train; of several, the first in the list of classes."""
    train, val = info.counts["train"], info.counts["val"]
    return val[find_majority({name: train[name] for name in info.classes})] / sum(val.values())


def write_reports(reports_dir: Path, result: Fit, metrics: dict[str, object], durable: bool) -> None:
    """Rewrite `history.csv`, `steps.csv` and `metrics.json`."""
    history, steps = pd.DataFrame(result.history).round(6), pd.DataFrame(result.steps).round({"loss": 6, "lr": 9})
    write_csv(reports_dir / "history.csv", history, durable=durable)
    write_csv(reports_dir / "steps.csv", steps, durable=durable)
    write_json(reports_dir / "metrics.json", metrics, durable=durable)


def summarise(result: Fit, baseline: float, weights: int) -> dict[str, object]:
    """`metrics.json` of the train stage: the epoch that is kept, measured on the train images that are, and on val."""
    kept = result.kept
    return {
        "train": {"loss": kept["train_loss"], "accuracy": kept["train_accuracy"]},
        "val": {
            "loss": kept["val_loss"],
            "accuracy": kept["val_accuracy"],
            "balanced_accuracy": kept["val_balanced_accuracy"],
        },
        "baseline": {"val_accuracy": baseline},
        "gap": kept["train_accuracy"] - kept["val_accuracy"],
        "suggestion": suggest_remedy(kept["train_accuracy"], kept["val_accuracy"], baseline),
        "best": {"epoch": result.best["epoch"], "val_accuracy": result.best["val_accuracy"]},
        "last": {"val_accuracy": result.history[-1]["val_accuracy"]},
        "kept_epoch": kept["epoch"],
        "epochs": len(result.history),
        "updates": len(result.steps),
        "weights": weights,
    }
