import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from imagepipe.core.manifest import DatasetInfo
from imagepipe.report.page import (
    flatten_values,
    format_number,
    format_percent,
    format_points,
    read_class_rows,
    read_scores,
    write_page,
)
from tests.made import make_dataset_info, make_model_info
from tests.report.conftest import PARAMS, make_predictions, write

NASTY = '<script>alert("1")</script>'


class Reader(HTMLParser):
    """Collects tags, the addresses that they ask for, and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.alternatives: list[str | None] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        given = dict(attrs)
        self.addresses += [str(given[name]) for name in ("src", "href") if name in given]
        if tag == "img":
            self.alternatives.append(given.get("alt"))

    def handle_data(self, data: str) -> None:
        self.text += data


def write_report(folder: Path, info: DatasetInfo, wrong: int = 2, predictions: pd.DataFrame | None = None) -> str:
    """The text of the page for `predictions`, or six test images, `wrong` of them misclassified."""
    results = write(folder, make_predictions(wrong) if predictions is None else predictions)
    training = {
        "train": {"accuracy": 1.0, "loss": 0.1},
        "val": {"accuracy": 0.5, "loss": 0.7},
        "baseline": {"val_accuracy": 0.25},
        "gap": 0.5,
        "suggestion": "even train is not learnt (bias).",
        "kept_epoch": 2,
        "epochs": 3,
        "updates": 1234,
        "weights": 650,
    }
    (folder / "train" / "metrics.json").write_text(json.dumps(training))
    (folder / "manifests").mkdir(exist_ok=True)
    (folder / "manifests" / "dataset.json").write_text(info.model_dump_json())
    (folder / "manifests" / "rejected.csv").write_text("source,reason\na.jpg,cut\n")
    write_page(
        folder / "report.html",
        results,
        folder / "balance",
        folder / "train",
        folder / "manifests",
        folder / "images",
        make_model_info(),
        PARAMS,
        {"train": {"lr": 0.1, "sgd": {"nesterov": False}}, "fetch": {"name": ""}},
    )
    return (folder / "report.html").read_text("utf-8")


def quote(page: str) -> str:
    """The text of a page with the quotes that a browser puts around what is quoted."""
    return " ".join(Reader(page.replace("<q>", "“").replace("</q>", "”")).text.split())


def make_info(**changes: object) -> DatasetInfo:
    counts = {"train": {"cat": 1200, "dog": 100}, "val": {"cat": 3}, "test": {"cat": 6}}
    return make_dataset_info().model_copy(update={"counts": counts, **changes})


def test_the_headline_is_the_accuracy_with_its_interval_and_baseline(folder: Path) -> None:
    page = write_report(folder, make_info())
    text = " ".join(Reader(page).text.split())
    assert "66.67 % of 6 test images are classified right" in text
    assert "lies between 30.00 % and 90.32 %." in text
    assert "What goes wrong: 2 images, most often “cat” taken for “dog” (1), “dog” taken for “NA” (1)." in quote(page)
    assert "the most frequent class would reach 33.33 %" in text


def test_the_page_says_which_interval_is_whose(folder: Path) -> None:
    """Where all of n are right, Wilson's begins at n / (n + 1.96²): 34.2 % of two, 20.7 % of one."""
    page = write_report(folder, make_info())
    text = " ".join(Reader(page).text.split())
    assert "95 % intervals: Wilson's for the accuracy, also that among the most probable classes, and for each" in text
    assert "the bootstrap's (100 resamples) for the others that have one, all means over classes among them" in text
    assert page.count("34.2 % to 100.0 %") == 1  # recall of NA
    assert page.count("20.7 % to 100.0 %") == 1  # precision of cat


@pytest.mark.parametrize(
    ("val", "said"),
    [
        ([], "There is no val, so no temperature can be fitted that would scale it."),
        ([0], "Val holds no mistake, so no temperature can be fitted that would scale it."),
        (
            [3, 1],
            r"Dividing its logits by [\d.]+, the temperature that fits val best, changes no prediction and ",
        ),
    ],
    ids=["no val", "no mistake", "fitted"],
)
def test_the_page_says_what_temperature_was_fitted(folder: Path, val: list[int], said: str) -> None:
    rows = [make_predictions(wrong).assign(split="val") for wrong in val]
    page = write_report(folder, make_info(), predictions=pd.concat([*rows, make_predictions(2)], ignore_index=True))
    text = " ".join(Reader(page).text.split())
    assert re.search(rf"On average its confidence is \d+\.\d\d points off\. {said}", text)


def test_the_page_stands_alone(folder: Path) -> None:
    reader = Reader(write_report(folder, make_info()))
    assert all(address.startswith(("data:", "#")) for address in reader.addresses)
    assert not {"iframe", "object", "form"} & set(reader.tags)
    assert reader.tags.count("img") == 5 + 2 + 4  # figures, mistakes, examples
    assert all(reader.alternatives)


def test_the_page_says_what_the_data_is(folder: Path) -> None:
    source = {"name": "SVHN", "homepage": "https://x", "licence": "L", "citation": "C", "options": {"split": "digits"}}
    split = {"strategy": "official", "seed": 7, "official": {"test": "test"}, "leaks": "auto"}
    text = " ".join(Reader(write_report(folder, make_info(source=source, split=split))).text.split())
    assert "SVHN, split digits (https://x)" in text
    assert "1,300 train, 3 val, 6 test; 8×8 pixels, L" in text


@pytest.mark.parametrize(
    ("strategy", "official", "val", "said"),
    [
        ("stratified", {}, 3, "stratified, seed 7"),
        ("group", {}, 3, "group, seed 7"),
        ("kfold", {}, 0, "kfold, seed 7"),
        ("official", {}, 3, "stratified, seed 7"),
        ("official", {"test": "test"}, 3, "test as shipped by the source, the rest stratified, seed 7"),
        ("official", {"test": "test"}, 0, "test as shipped by the source, the rest is train"),
        ("official", {"test": "val"}, 3, "test is what the source calls val, the rest stratified, seed 7"),
        ("official", {"val": "val"}, 3, "val as shipped by the source, the rest stratified, seed 7"),
        (
            "official",
            {"test": "test", "val": "val"},
            3,
            "test as shipped by the source, val as shipped by the source, the rest is train",
        ),
    ],
)
def test_the_page_says_how_the_splits_were_made(
    folder: Path, strategy: str, official: dict[str, str], val: int, said: str
) -> None:
    split = {"strategy": strategy, "seed": 7, "official": official, "leaks": "auto"}
    counts = {"train": {"cat": 20}, "val": {"cat": val}, "test": {"cat": 6}}
    text = " ".join(Reader(write_report(folder, make_info(split=split, counts=counts))).text.split())
    assert f" Split{said} Left out" in text


def test_names_that_look_like_markup_are_shown_as_text(folder: Path) -> None:
    source = {"name": NASTY, "homepage": NASTY, "licence": NASTY, "citation": NASTY, "options": {}}
    reader = Reader(write_report(folder, make_info(source=source)))
    assert reader.tags.count("script") == 1  # the page's own
    assert reader.text.count(NASTY) >= 4


def test_the_same_run_gives_the_same_bytes(folder: Path) -> None:
    assert write_report(folder, make_info()) == write_report(folder, make_info())


def test_a_class_without_test_images_is_said_and_has_dashes(folder: Path) -> None:
    predictions = make_predictions(0)
    results = write(folder, predictions[predictions["class"] != "NA"])
    rows = read_class_rows(results / "per_class.csv")
    absent = {"class": "NA", "images": 0, "predicted": 0, "precision": 0.0, "recall": None, "f1": None}
    assert {name: rows[2][name] for name in absent} == absent
    assert format_percent(None) == "–"


def test_leaks_that_were_kept_stand_under_the_headline(folder: Path) -> None:
    info = make_info()
    assert "not clean" not in Reader(write_report(folder, info)).text
    leaks = info.leaks.model_copy(update={"policy": "keep", "duplicates": 3})
    text = " ".join(Reader(write_report(folder, info.model_copy(update={"leaks": leaks}))).text.split())
    assert "The splits are not clean. 3 images of val and test have the very pixels of images in another split" in text


def test_shares_are_shown_as_percentages() -> None:
    assert format_percent(0.98765) == "98.77 %"
    assert format_percent(0.95, 0) == "95 %"


def test_other_figures_are_shown_with_their_sign_and_places() -> None:
    assert (format_points(0.0512), format_points(-0.3)) == ("+5.1 points", "-30.0 points")
    assert (format_number(0.98765), format_number(None), format_number(float("nan"))) == ("0.9877", "–", "–")


def test_values_are_shown_as_params_yaml_has_them() -> None:
    values = {"train": {"lr": 0.1, "sgd": {"nesterov": False}}, "fetch": {"name": ""}}
    assert flatten_values(values) == {"train": [("lr", "0.1"), ("sgd.nesterov", "false")], "fetch": [("name", "''")]}


def test_the_model_card_says_what_was_stated_and_what_was_not(folder: Path) -> None:
    text = " ".join(Reader(write_report(folder, make_info())).text.split())
    assert "Intended useSorting <b>pets</b>." in text
    assert "LimitsNot stated (evaluate.limits)." in text


def test_rejected_images_and_leaks_are_counted(folder: Path) -> None:
    info = make_info()
    leaks = info.leaks.model_copy(update={"dropped": 7, "repeated": 2, "near": 5})
    text = " ".join(Reader(write_report(folder, info.model_copy(update={"leaks": leaks}))).text.split())
    assert "Left out1 unusable images, 7 by the leak gate" in text
    assert "2 repeated inside a split; 5 pairs across splits look alike" in text


def test_a_run_without_mistakes_says_so(folder: Path) -> None:
    text = " ".join(Reader(write_report(folder, make_info(), wrong=0)).text.split())
    assert "No test image is classified wrong." in text
    assert "The worst mistakes There are none." in text


def test_a_metric_of_ones_own_stands_last_and_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    path.write_text("split,metric,value,low,high\ntest,accuracy,0.9,0.8,1.0\ntest,first,0.5,0.4,0.6\n", "utf-8")
    rows = read_scores(path)
    assert rows[0] == {
        "metric": "accuracy",
        "name": "accuracy",
        "kind": "share",
        "test": {"value": 0.9, "low": 0.8, "high": 1.0},
    }
    assert rows[-1] == {
        "metric": "first",
        "name": "first",
        "kind": "number",
        "test": {"value": 0.5, "low": 0.4, "high": 0.6},
    }


def test_what_is_seen_has_no_class_that_says_it_is_not(folder: Path) -> None:
    page = write_report(folder, make_info())
    assert '<caption class="soft">The most frequent mistakes</caption>' in page
    assert page.count(' <span class="soft">(true)</span></dt>') == 2 + 4  # mistakes, examples
    assert "unseen" not in page
