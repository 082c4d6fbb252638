"""What the evaluate stage leaves beside the page: tables and figures, all derived from the predictions table."""

from pathlib import Path
from typing import Any

import pandas as pd

from imagepipe.core.class_counts import find_majority
from imagepipe.core.errors import InputError
from imagepipe.core.files import replace_directory, write_csv, write_json
from imagepipe.core.tables import read_text_table
from imagepipe.evaluation.metrics import (
    count_confusions,
    measure_predictions,
    read_outcomes,
    summarise,
    tabulate_ranking,
    tabulate_scores,
)
from imagepipe.evaluation.params import EvaluateParams, LossParams
from imagepipe.evaluation.predictions import read_predictions
from imagepipe.report.galleries import draw_gallery, pick_examples, pick_mistakes
from imagepipe.report.plots import draw_confusion, draw_curves, draw_ranking, draw_reliability

REPORTS = {"balance": ("counts.csv", "balance.png"), "train": ("history.csv", "steps.csv", "metrics.json")}


def check_reports(balance_dir: Path, train_dir: Path) -> None:
    """Raise InputError where a file is not there that results or page take from the reports of another stage."""
    for stage, folder in (("balance", balance_dir), ("train", train_dir)):
        for name in REPORTS[stage]:
            if not (folder / name).is_file():
                raise InputError(f"{folder / name}: is not there; run the {stage} stage first: `dvc repro {stage}`.")


def write_results(
    predictions: pd.DataFrame,
    images_dir: Path,
    balance_dir: Path,
    train_dir: Path,
    results_dir: Path,
    params: EvaluateParams,
    loss: LossParams,
) -> dict[str, Any]:
    """Write tables and figures into `results_dir`, all or nothing; gives what `metrics.json` holds."""
    with replace_directory(results_dir) as staging:
        write_csv(staging / "predictions.csv", predictions)
        predictions = read_predictions(staging / "predictions.csv")  # all that follows can be derived from it again
        test = predictions[predictions["split"] == "test"]
        majority = read_majority(balance_dir / "counts.csv")
        metrics = write_figures(predictions, float((test["class"] == majority).mean()), params, staging)
        history, steps = (pd.read_csv(train_dir / name) for name in ("history.csv", "steps.csv"))
        draw_curves(history, steps, name_loss(loss), staging / "curves.png")
        mistakes = pick_mistakes(test, params.gallery)
        wrong = int((test["class"] != test["predicted"]).sum())
        title = f"the {len(mistakes)} worst of {wrong} mistakes on test" if wrong else "no mistake on test"
        draw_gallery(mistakes, images_dir, title, staging / "mistakes.png")
        examples = pick_examples(test, params.gallery)
        draw_gallery(examples, images_dir, f"{len(examples)} test images, drawn by lot", staging / "examples.png")
    return metrics


def write_figures(predictions: pd.DataFrame, baseline: float, params: EvaluateParams, folder: Path) -> dict[str, Any]:
    """The tables and figures that follow from the predictions alone; gives what `metrics.json` holds.

    `baseline` is the accuracy on test of one answer for all images.
    """
    measured, temperature = measure_predictions(predictions, params.top_k, params.confidence, params.resamples)
    test = predictions[predictions["split"] == "test"]
    outcomes, scores = read_outcomes(test), measured["test"].scores
    metrics = summarise(measured, temperature, baseline)
    write_json(folder / "metrics.json", metrics)
    write_csv(folder / "scores.csv", tabulate_scores(measured))
    write_csv(folder / "per_class.csv", measured["test"].classes)
    confusion = test.loc[:, ["class", "predicted"]].set_axis(["actual", "predicted"], axis=1)
    write_csv(folder / "confusion.csv", confusion)
    draw_confusion(count_confusions(test), outcomes.classes, folder / "confusion.png")
    reliability: dict[str, pd.DataFrame] = dict(
        zip(("as the model says", "scaled"), measured["test"].reliability, strict=True)
    )
    write_csv(folder / "calibration.csv", stack_tables(reliability))
    errors = (scores["calibration_error"].value, scores["calibration_error_scaled"].value)
    titles = [f"{name}: {100 * error:.2f} points off" for name, error in zip(reliability, errors, strict=True)]
    draw_reliability(dict(zip(titles, reliability.values(), strict=True)), folder / "reliability.png")
    ranking = tabulate_ranking(outcomes)
    write_csv(folder / "ranking.csv", ranking)
    draw_ranking(ranking, scores["roc_auc"].value, scores["average_precision"].value, folder / "ranking.png")
    return metrics


def name_loss(params: LossParams) -> str:
    """What the updates were made by; nll is the cross-entropy, too."""
    name = "focal" if params.imbalance == "focal" else params.loss
    name = "cross_entropy" if name == "nll" else name
    return f"{name}, classes weighted" if params.imbalance == "class_weights" else name


def stack_tables(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """The reliability tables one below the other, with their names in the column `probabilities`."""
    named = [table.assign(probabilities=name).round(6) for name, table in tables.items()]
    return pd.concat(named, ignore_index=True)


def read_majority(counts_path: Path) -> str:
    """The most frequent class of the train split, from the balance report's `counts.csv`."""
    counts = read_text_table(counts_path)
    train = counts[counts["split"] == "train"]
    return find_majority(dict(zip(train["class"], train["count"].astype(int), strict=True)))
