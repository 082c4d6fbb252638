"""What the evaluate stage leaves beside the page: tables and figures, all derived from the predictions table."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from imagepipe.core.class_counts import find_majority
from imagepipe.core.files import replace_directory, write_csv, write_json
from imagepipe.core.slices import list_image_files
from imagepipe.core.tables import read_text_table
from imagepipe.data.images import open_image
from imagepipe.evaluation.metrics import (
    count_confusions,
    list_predicted_classes,
    measure_classes,
    measure_predictions,
)
from imagepipe.evaluation.params import EvaluateParams
from imagepipe.evaluation.predictions import read_predictions
from imagepipe.report.plots import caption_prediction, draw_confusion, draw_curves, draw_grid

Metrics = dict[str, dict[str, int | float]]


def write_results(
    predictions: pd.DataFrame,
    images_dir: Path,
    balance_dir: Path,
    train_dir: Path,
    results_dir: Path,
    params: EvaluateParams,
) -> Metrics:
    """Write predictions, metrics, per-class table, confusion pairs and figures into `results_dir`, all or nothing."""
    with replace_directory(results_dir) as staging:
        write_csv(staging / "predictions.csv", predictions)
        predictions = read_predictions(staging / "predictions.csv")  # all that follows can be derived from it again
        test = predictions[predictions["split"] == "test"]
        metrics = measure_predictions(predictions, read_majority(balance_dir / "counts.csv"), params.confidence)
        write_json(staging / "metrics.json", metrics)
        write_csv(staging / "per_class.csv", measure_classes(test))
        confusion = test.loc[:, ["class", "predicted"]].set_axis(["actual", "predicted"], axis=1)
        write_csv(staging / "confusion.csv", confusion)
        draw_curves(
            pd.read_csv(train_dir / "history.csv"), pd.read_csv(train_dir / "steps.csv"), staging / "curves.png"
        )
        draw_confusion(count_confusions(test), list_predicted_classes(predictions), staging / "confusion.png")
        mistakes = pick_mistakes(test, params.gallery)
        wrong = int((test["class"] != test["predicted"]).sum())
        title = f"the {len(mistakes)} worst of {wrong} mistakes on test" if wrong else "no mistake on test"
        draw_gallery(mistakes, images_dir, title, staging / "mistakes.png")
        examples = pick_examples(test, params.gallery)
        draw_gallery(examples, images_dir, f"{len(examples)} test images, drawn by lot", staging / "examples.png")
    return metrics


def read_majority(counts_path: Path) -> str:
    """The most frequent class of the train split, from the balance report's `counts.csv`."""
    counts = read_text_table(counts_path)
    train = counts[counts["split"] == "train"]
    return find_majority(dict(zip(train["class"], train["count"].astype(int), strict=True)))


def pick_mistakes(test: pd.DataFrame, count: int) -> pd.DataFrame:
    """The wrong predictions with the largest loss, worst first; equal losses by key."""
    wrong = test[test["class"] != test["predicted"]]
    return wrong.sort_values(["loss", "key"], ascending=[False, True]).head(count)


def pick_examples(test: pd.DataFrame, count: int) -> pd.DataFrame:
    """Test images drawn by the hash of their key, so that nobody chose them and every run shows the same."""
    lot = test["key"].map(lambda key: hashlib.sha256(f"examples\0{key}".encode()).hexdigest())
    return test.loc[lot.sort_values().index[:count]]


def draw_gallery(rows: pd.DataFrame, images_dir: Path, title: str, path: Path) -> None:
    """The images of `rows`, captioned `P: x | T: y`."""
    files = list_image_files(rows, images_dir)
    images = [open_image(files, index) for index in range(len(files))]
    pairs: Sequence[tuple[str, str]] = list(zip(rows["predicted"], rows["class"], strict=True))
    draw_grid(images, [caption_prediction(predicted, true) for predicted, true in pairs], path, title)
