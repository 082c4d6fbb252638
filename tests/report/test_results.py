import json
import shutil
from pathlib import Path

import pytest

from imagepipe.core.errors import InputError
from imagepipe.evaluation.predictions import read_predictions
from imagepipe.report.results import pick_examples, pick_mistakes, read_majority
from tests.data.made import pack_shards
from tests.report.conftest import make_predictions, write


def test_mistakes_come_worst_first_and_hold_no_right_answer() -> None:
    assert pick_mistakes(make_predictions(wrong=4), 3)["key"].tolist() == ["00003", "00002", "00001"]
    assert pick_mistakes(make_predictions(wrong=0), 3).empty


def test_mistakes_of_equal_loss_are_ordered_by_key() -> None:
    table = make_predictions(wrong=4).assign(loss=1.0)
    assert pick_mistakes(table.iloc[::-1], 2)["key"].tolist() == ["00000", "00001"]


def test_examples_do_not_depend_on_order_or_outcome() -> None:
    table = make_predictions(wrong=0)
    chosen = pick_examples(table, 3)["key"].tolist()
    assert chosen == pick_examples(make_predictions(wrong=6).iloc[::-1], 3)["key"].tolist()
    assert len(set(chosen)) == 3


def test_majority_is_read_from_the_train_rows(tmp_path: Path) -> None:
    (tmp_path / "counts.csv").write_text("split,class,count,percent\ntrain,NA,2,50\ntrain,b,2,50\ntest,b,9,100\n")
    assert read_majority(tmp_path / "counts.csv") == "NA"


def test_every_table_and_figure_is_written(folder: Path) -> None:
    results = write(folder, make_predictions(wrong=2))
    assert sorted(path.name for path in results.iterdir()) == [
        "confusion.csv",
        "confusion.png",
        "curves.png",
        "examples.png",
        "metrics.json",
        "mistakes.png",
        "per_class.csv",
        "predictions.csv",
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


def test_galleries_show_the_same_images_out_of_shards(folder: Path) -> None:
    predictions = make_predictions(wrong=2)
    expected = {name: (write(folder, predictions) / name).read_bytes() for name in ("mistakes.png", "examples.png")}
    columns = pack_shards(predictions["path"].tolist(), folder / "images", folder / "shards", each=4)
    shutil.rmtree(folder / "images")
    (folder / "shards").rename(folder / "images")
    results = write(folder, predictions.join(columns))
    assert {name: (results / name).read_bytes() for name in expected} == expected
