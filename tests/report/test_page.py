import json
from html.parser import HTMLParser
from pathlib import Path

from imagepipe.core.manifest import DatasetInfo
from imagepipe.report.page import encode_figure, format_percent, read_class_rows, write_page
from tests.made import make_dataset_info, make_model_info
from tests.report.conftest import make_predictions, write

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


def write_report(folder: Path, info: DatasetInfo, wrong: int = 2) -> str:
    """The text of the page for six test images, `wrong` of them misclassified."""
    results = write(folder, make_predictions(wrong))
    training = {
        "train": {"accuracy": 1.0, "loss": 0.1},
        "val": {"accuracy": 0.5, "loss": 0.7},
        "baseline": {"val_accuracy": 0.25},
        "suggestion": "even train is not learnt (bias).",
        "kept_epoch": 2,
        "epochs": 3,
        "updates": 1234,
        "weights": 650,
    }
    (folder / "train" / "metrics.json").write_text(json.dumps(training))
    write_page(folder / "report.html", results, folder / "balance", folder / "train", info, make_model_info(), 0.95)
    return (folder / "report.html").read_text("utf-8")


def make_info(**changes: object) -> DatasetInfo:
    counts = {"train": {"cat": 1200, "dog": 100}, "val": {"cat": 3}, "test": {"cat": 6}}
    return make_dataset_info().model_copy(update={"counts": counts, **changes})


def test_the_headline_is_the_accuracy_with_its_interval_and_baseline(folder: Path) -> None:
    text = " ".join(Reader(write_report(folder, make_info())).text.split())
    assert "66.67 % of 6 test images are classified right" in text
    assert "lies between 30.00 % and 90.32 % (Wilson)" in text
    assert "the most frequent class would reach 33.33 %" in text


def test_the_page_stands_alone(folder: Path) -> None:
    reader = Reader(write_report(folder, make_info()))
    assert all(address.startswith("data:") for address in reader.addresses)
    assert not {"script", "iframe", "object"} & set(reader.tags)
    assert reader.tags.count("img") == 5
    assert all(reader.alternatives)


def test_the_page_says_what_the_data_is(folder: Path) -> None:
    source = {"name": "SVHN", "homepage": "https://x", "licence": "L", "citation": "C", "options": {"split": "digits"}}
    split = {"strategy": "official", "seed": 7, "official": {"test": "test"}, "leaks": "auto"}
    text = " ".join(Reader(write_report(folder, make_info(source=source, split=split))).text.split())
    assert "SVHN, split digits (https://x)" in text
    assert "1,300 train, 3 val, 6 test; 8×8 pixels, L" in text
    assert "test as shipped by the source, the rest stratified, seed 7" in text
    info = make_info(split=split | {"official": {"test": "val"}})
    text = " ".join(Reader(write_report(folder, info)).text.split())
    assert "test is what the source calls val, the rest stratified, seed 7" in text


def test_names_that_look_like_markup_are_shown_as_text(folder: Path) -> None:
    source = {"name": NASTY, "homepage": NASTY, "licence": NASTY, "citation": NASTY, "options": {}}
    reader = Reader(write_report(folder, make_info(source=source)))
    assert "script" not in reader.tags
    assert reader.text.count(NASTY) >= 4


def test_the_same_run_gives_the_same_bytes(folder: Path) -> None:
    assert write_report(folder, make_info()) == write_report(folder, make_info())


def test_a_class_without_test_images_is_said_and_has_dashes(folder: Path) -> None:
    predictions = make_predictions(0)
    results = write(folder, predictions[predictions["class"] != "NA"])
    rows = read_class_rows(results / "per_class.csv")
    assert rows[2] == {"class": "NA", "images": 0, "predicted": 0, "precision": 0.0, "recall": None, "f1": None}
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


def test_figures_are_inside_the_page() -> None:
    assert encode_figure(b"\x89PNG") == "data:image/png;base64,iVBORw=="
