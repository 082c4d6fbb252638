import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from imagepipe.core.config import load_section
from imagepipe.core.errors import InputError
from imagepipe.core.manifest import SPLITS
from imagepipe.prepare.dataset import prepare_dataset
from imagepipe.prepare.params import Fractions, SplitParams
from imagepipe.report.balance import (
    BalanceParams,
    count_classes,
    find_majority,
    measure_balance,
    report_balance,
    tabulate_counts,
)
from imagepipe.report.plots import draw_balance
from imagepipe.sources.idx import read_idx
from imagepipe.sources.records import ArrayPart, SourceInfo, make_array_records
from tests.made import make_dataset


def test_spread_of_three_to_one_by_hand() -> None:
    found = measure_balance({"a": 3, "b": 1}, "a")
    assert (found.images, found.imbalance_ratio, found.majority_baseline) == (4, 3, 0.75)
    assert found.evenness == pytest.approx(-(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25)))


def test_even_classes_have_ratio_1_and_evenness_1() -> None:
    found = measure_balance({"a": 5, "b": 5, "c": 5}, "a")
    assert found.imbalance_ratio == 1
    assert found.evenness == pytest.approx(1)
    assert found.majority_baseline == pytest.approx(1 / 3)


def test_an_empty_class_has_no_ratio() -> None:
    found = measure_balance({"a": 5, "b": 0}, "a")
    assert found.imbalance_ratio is None
    assert found.evenness == 0


def test_one_class_alone_has_no_evenness() -> None:
    assert measure_balance({"a": 5}, "a").evenness is None


def test_the_baseline_answers_what_is_most_frequent_in_train() -> None:
    assert measure_balance({"a": 1, "b": 3}, "a").majority_baseline == 0.25


def test_majority_ties_go_to_the_first_class() -> None:
    assert find_majority({"b": 2, "a": 2, "c": 1}) == "b"


def test_counts_table_has_shares_of_each_split() -> None:
    table = tabulate_counts({"train": {"a": 3, "b": 1}, "val": {"a": 0, "b": 0}, "test": {"a": 1, "b": 2}})
    assert table["percent"].tolist() == [75, 25, 0, 0, 33.3333, 66.6667]
    assert table.columns.tolist() == ["split", "class", "count", "percent"]


def test_report_warns_above_the_ratio_and_names_both_ends(tmp_path: Path) -> None:
    make_dataset(tmp_path, {"train": 4, "val": 3, "test": 3})  # train: cat 2, dog 1, NA 1
    warnings = report_balance(tmp_path, tmp_path / "balance", BalanceParams(max_ratio=1.5))
    assert warnings == [
        "train: 2 images of 'cat' against 1 of 'dog', more than balance.max_ratio (1.5) allows; "
        "accuracy alone will flatter."
    ]
    assert report_balance(tmp_path, tmp_path / "balance", BalanceParams(max_ratio=2.0)) == []


def test_report_writes_figures_that_agree_with_the_manifests(tmp_path: Path) -> None:
    info = make_dataset(tmp_path, {"train": 4, "val": 3, "test": 0})
    report_balance(tmp_path, tmp_path / "balance", BalanceParams(max_ratio=9.0))
    figures = json.loads((tmp_path / "balance" / "balance.json").read_text())
    assert figures["train"] == {
        "images": 4,
        "imbalance_ratio": 2,
        "majority_baseline": 0.5,
        "evenness": round(1.5 / math.log2(3), 6),
    }
    assert "test" not in figures
    table = pd.read_csv(tmp_path / "balance" / "counts.csv", keep_default_na=False)
    assert {split: dict(zip(rows["class"], rows["count"], strict=True)) for split, rows in table.groupby("split")} == (
        info.counts
    )


def test_a_report_stays_within_fifteen_scalars(tmp_path: Path) -> None:
    make_dataset(tmp_path, {"train": 4, "val": 3, "test": 3})
    report_balance(tmp_path, tmp_path / "balance", BalanceParams(max_ratio=9.0))
    figures = json.loads((tmp_path / "balance" / "balance.json").read_text())
    assert sum(len(value) if isinstance(value, dict) else 1 for value in figures.values()) <= 15


def test_the_bars_start_at_zero(tmp_path: Path) -> None:
    draw_balance({"train": {"a": 1000, "b": 990}}, tmp_path / "b.png")
    with Image.open(tmp_path / "b.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    blue = (pixels == (0x00, 0x72, 0xB2)).all(axis=2)
    heights = np.sort(np.unique(blue.sum(axis=0)))[-2:]
    assert 0.97 < heights[0] / heights[1] < 1  # 990 / 1000; an axis from 985 would give a third


def test_refuses_an_empty_train_split(tmp_path: Path) -> None:
    make_dataset(tmp_path, {"train": 0, "val": 3, "test": 3})
    with pytest.raises(InputError, match=r"train\.csv: the train split is empty"):
        report_balance(tmp_path, tmp_path / "balance", BalanceParams(max_ratio=9.0))
    assert not (tmp_path / "balance").exists()


def test_refuses_a_ratio_below_1(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("balance:\n  max_ratio: 0.5\n")
    with pytest.raises(InputError, match=r"params\.yaml:2: balance\.max_ratio: found 0\.5; expected greater than"):
        load_section("balance", BalanceParams, tmp_path / "params.yaml")


@pytest.mark.slow
def test_mnist_train_has_the_published_counts(tmp_path: Path, mnist_dir: Path) -> None:
    labels = read_idx(mnist_dir / "train-labels-idx1-ubyte.gz")
    digits = [str(digit) for digit in range(10)]
    tiny = np.zeros((len(labels), 1, 1), np.uint8)
    records = make_array_records([ArrayPart("train", "labels", tiny, labels)], digits, tmp_path)
    source = SourceInfo(
        source="made", name="", options={}, licence="", citation="", homepage="", classes=digits, files={}
    )
    params = SplitParams(
        first=0,
        strategy="stratified",
        fractions=Fractions(train=1.0, val=0.0, test=0.0),
        seed=1,
        limit_per_split=0,
        limit_choice="balanced",
        layout="single",
    )
    info = prepare_dataset(records, source, params, tmp_path / "images", tmp_path / "manifests", jobs=2).info
    counts = count_classes(tmp_path / "manifests", info)["train"]
    assert list(counts.values()) == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert round(100 * counts["1"] / 60000, 2) == 11.24


def test_the_figure_is_a_readable_picture(tmp_path: Path) -> None:
    make_dataset(tmp_path, {"train": 4, "val": 3, "test": 3})
    report_balance(tmp_path, tmp_path / "balance", BalanceParams(max_ratio=9.0))
    with Image.open(tmp_path / "balance" / "balance.png") as picture:
        picture.load()
        assert picture.width > 500
        assert len(np.unique(np.asarray(picture))) > 3


def test_every_split_is_counted(tmp_path: Path) -> None:
    info = make_dataset(tmp_path, {"train": 6, "val": 3, "test": 3})
    assert tuple(count_classes(tmp_path, info)) == SPLITS
