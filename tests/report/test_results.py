import json
from pathlib import Path

import pytest

from imagepipe.core.errors import InputError
from imagepipe.evaluation.predictions import read_predictions
from imagepipe.report.results import name_loss, read_majority
from tests.report.conftest import make_predictions, write


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
    assert name_loss({"loss": loss, "imbalance": imbalance}) == name


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
