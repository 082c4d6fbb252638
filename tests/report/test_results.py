import json
import shutil
import subprocess
from pathlib import Path

import pytest

from imagepipe.core.errors import InputError
from imagepipe.evaluation.params import LossParams
from imagepipe.evaluation.predictions import read_predictions
from imagepipe.report.results import check_reports, name_loss, read_majority
from tests.conftest import ROOT
from tests.report.conftest import make_predictions, write
from tests.stages import command_of


def test_majority_is_read_from_the_train_rows(tmp_path: Path) -> None:
    (tmp_path / "counts.csv").write_text("split,class,count,percent\ntrain,NA,2,50\ntrain,b,2,50\ntest,b,9,100\n")
    assert read_majority(tmp_path / "counts.csv") == "NA"


@pytest.mark.parametrize(
    ("loss", "imbalance", "name"),
    [
        ("cross_entropy", "none", "cross_entropy"),
        ("nll", "weighted_sampler", "cross_entropy"),
        ("cross_entropy", "focal", "focal"),
        ("bce", "none", "bce"),
        ("cross_entropy", "class_weights", "cross_entropy, classes weighted"),
    ],
)
def test_the_loss_of_the_updates_by_its_name(loss: str, imbalance: str, name: str) -> None:
    assert name_loss(LossParams(loss=loss, imbalance=imbalance)) == name


def test_every_table_and_figure_is_written(folder: Path) -> None:
    results = write(folder, make_predictions(wrong=2))
    assert sorted(path.name for path in results.iterdir()) == [
        "calibration.csv",
        "confusion.csv",
        "confusion.png",
        "curves.png",
        "examples.png",
        "metrics.json",
        "mistakes.png",
        "per_class.csv",
        "predictions.csv",
        "ranking.csv",
        "ranking.png",
        "reliability.png",
        "scores.csv",
    ]
    assert json.loads((results / "metrics.json").read_text())["test"]["accuracy"] == round(4 / 6, 6)
    assert (results / "confusion.csv").read_text().splitlines()[:2] == ["actual,predicted", "cat,dog"]
    assert len(read_predictions(results / "predictions.csv")) == 6


def test_a_run_without_mistakes_has_its_galleries_too(folder: Path) -> None:
    assert (write(folder, make_predictions(wrong=0)) / "mistakes.png").stat().st_size > 1000


def test_results_are_all_or_nothing(folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in write(folder, make_predictions(wrong=2)).iterdir()}
    (folder / "images" / "00005.png").unlink()
    with pytest.raises(InputError, match=r"00005\.png: no such image"):
        write(folder, make_predictions(wrong=6))
    assert {path.name: path.read_bytes() for path in (folder / "results").iterdir()} == before
    assert not list(folder.glob(".*.part"))


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("balance/counts.csv", "balance"),
        ("balance/balance.png", "balance"),
        ("train/history.csv", "train"),
        ("train/steps.csv", "train"),
        ("train/metrics.json", "train"),
    ],
)
def test_a_report_that_is_not_there_is_named_with_its_stage(folder: Path, name: str, stage: str) -> None:
    (folder / "train" / "metrics.json").write_text("{}")
    check_reports(folder / "balance", folder / "train")
    (folder / name).unlink()
    with pytest.raises(InputError) as caught:
        check_reports(folder / "balance", folder / "train")
    assert str(caught.value) == (f"{folder / name}: is not there; run the {stage} stage first: `dvc repro {stage}`.")


def test_evaluate_asks_for_the_reports_before_it_predicts(tmp_path: Path) -> None:
    """There is no model here either, of which it would say so else."""
    shutil.copyfile(ROOT / "params.yaml", tmp_path / "params.yaml")
    done = subprocess.run(command_of("evaluate"), cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "reports/balance/counts.csv: is not there; run the balance stage first: `dvc repro balance`." in done.stderr
