import os
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from imagepipe.core.errors import EnvironmentFault, InputError
from imagepipe.core.parallel import LocalEngine, Lost
from imagepipe.data.conversion import bring_batches, read_conversion
from imagepipe.evaluation.predictions import predict_splits
from imagepipe.inference import predict as module
from imagepipe.inference.inputs import Inputs
from imagepipe.inference.predict import Tally, describe_tally, predict_images, predict_pixels, predict_rows
from imagepipe.models.classifier import Classifier, save_classifier
from tests.data.made import draw_noise
from tests.inference.made import make_model
from tests.made import CLASSES, make_dataset


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks are worked on here, one when it is asked for."""
    monkeypatch.setattr(
        LocalEngine, "map_contained", lambda engine, work, chunks, limits: ((c, work(c)) for c in chunks)
    )
    monkeypatch.setattr(module, "start_fork_server", lambda: None)


def test_probabilities_are_those_of_the_logits_of_evaluate(tmp_path: Path) -> None:
    make_dataset(tmp_path, {"train": 3, "val": 4, "test": 11})
    make_model(tmp_path / "m")
    table, info = predict_splits(tmp_path / "m", tmp_path, tmp_path / "images", 4, 1, None)
    test = table[table["split"] == "test"]
    logits = test[[f"logit:{name}" for name in info.classes]].astype(np.float32).to_numpy().astype(np.float64)
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    paths = [str(tmp_path / "images" / path) for path in test["path"]]
    out = tmp_path / "out.csv"
    tally, classes = predict_images(tmp_path / "m", Inputs(paths), out, "csv", 3, 4, 1)
    rows = [line.split(",") for line in out.read_text().splitlines()[1:]]
    assert [row[0] for row in rows] == paths
    assert [row[1] for row in rows] == test["predicted"].tolist()
    found = [{row[place]: float(row[place + 1]) for place in (1, 3, 5)} for row in rows]
    assert [[row[name] for name in info.classes] for row in found] == np.round(expected, 6).tolist()
    assert tally == Tally(Counter(test["predicted"]))
    assert classes == CLASSES


class EndlessList:
    """A list of paths that names one grey image again and again, and counts the lines that were read."""

    def __init__(self, path: Path) -> None:
        Image.new("L", (8, 8)).save(path)
        self.path = path
        self.read = 0

    def repeat(self) -> Iterator[bytes]:
        while True:
            self.read += 1
            yield os.fsencode(self.path) + b"\n"


@pytest.mark.usefixtures("in_this_process")
def test_few_images_are_read_ahead_of_the_rows(tmp_path: Path) -> None:
    model = make_model(tmp_path / "m")
    endless = EndlessList(tmp_path / "a.png")
    inputs = Inputs(["-"], endless.repeat())
    conversion = read_conversion(model.info.conversion, model.info.image, "m")
    batches = bring_batches(inputs, conversion, LocalEngine(1), 10, print, Counter[str]())
    rows = predict_rows(model, batches, "csv", 1, Tally(), lambda _: None)
    assert [block.count(b"\n") for block in islice(rows, 5)] == [11, 10, 10, 10, 10]
    assert endless.read <= 60


def test_worker_processes_take_few_images_ahead_of_an_endless_list(tmp_path: Path) -> None:
    model = make_model(tmp_path / "m")
    endless = EndlessList(tmp_path / "a.png")
    conversion = read_conversion(model.info.conversion, model.info.image, "m")
    batches = bring_batches(Inputs(["-"], endless.repeat()), conversion, LocalEngine(2), 5, print, Counter[str]())
    assert [len(paths) for paths, _ in islice(batches, 20)] == [5] * 20
    assert endless.read <= 5 * (20 + 2 * 3 + 2)


def test_pixels_are_predicted_as_the_model_predicts_them(tmp_path: Path) -> None:
    model = make_model(tmp_path / "m")
    pixels = draw_noise(5, 8, 8, 1)
    with torch.inference_mode():
        expected = torch.softmax(model(torch.from_numpy(pixels).permute(0, 3, 1, 2)).double(), dim=1)
    assert np.allclose(predict_pixels(model, pixels, ["x"] * 5), expected.numpy(), atol=1e-12)


def test_logits_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    model = make_model(tmp_path / "m")
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.raises(InputError, match=r"^b\.png: its logits are not finite numbers; the model is broken: train it"):
        predict_pixels(model, draw_noise(1, 8, 8, 1), ["b.png"])


def test_where_memory_is_short_the_batch_size_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(tmp_path / "m")
    monkeypatch.setattr(Classifier, "forward", lambda *_: torch.empty(2**52, dtype=torch.uint8))
    message = r"^out of memory while images are predicted \(.*can't allocate memory.*\); reduce --batch-size, or free"
    with pytest.raises(EnvironmentFault, match=message):
        predict_pixels(model, draw_noise(1, 8, 8, 1), ["b.png"])


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize(
    ("top", "out", "arguments", "message"),
    [
        (4, "out.csv", ["a.png"], "--top: 4, but m has 3 classes."),
        (1, ".", ["a.png"], "--out: .: is no plain file; name another, or leave --out away for standard output."),
        (1, "out.csv", ["nope.png"], "none of the paths names a file, so there is nothing to predict."),
        (1, "out.csv", ["-"], "none of the paths names a file, so there is nothing to predict."),
    ],
)
def test_what_cannot_be_done_is_said_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, top: int, out: str, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    make_model(Path("m"))
    Image.new("L", (8, 8)).save("a.png")
    with pytest.raises(InputError) as caught:
        predict_images(Path("m"), Inputs(arguments), Path(out), "csv", top, 5, 1)
    assert str(caught.value) == message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "m"]


@pytest.mark.usefixtures("in_this_process")
def test_an_image_whose_process_was_lost_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_model(tmp_path / "m")
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    lost = Lost("took longer than 60 s and was ended")
    monkeypatch.setattr(LocalEngine, "map_contained", lambda engine, work, chunks, limits: ((c, lost) for c in chunks))
    out = tmp_path / "out.csv"
    tally, _ = predict_images(tmp_path / "m", Inputs([str(tmp_path / "a.png")]), out, "csv", 1, 5, 1)
    assert tally.unusable == 1
    assert capsys.readouterr().err == f"{tmp_path}/a.png: took longer than 60 s and was ended\n"
    assert out.read_text() == "path,class,probability\n"


def test_the_end_is_said_in_the_order_of_the_classes() -> None:
    tally = Tally(Counter({"dog": 2, "cat": 1}), 3, Counter({"16 bits scaled to 8": 2}))
    assert describe_tally(tally, ["cat", "bird", "dog"], ["a note"]) == [
        "predict: 3 images",
        "  cat: 1",
        "  dog: 2",
        "predict: 2 of them: 16 bits scaled to 8",
        "predict: a note",
        "predict: could not be used: 3, each named above",
    ]
    assert describe_tally(Tally(Counter({"cat": 1})), ["cat"], []) == ["predict: 1 image", "  cat: 1"]


def test_a_model_of_before_is_refused_with_its_format(tmp_path: Path) -> None:
    model = make_model(tmp_path / "m")
    model.info = model.info.model_copy(update={"format": 1})
    save_classifier(model, tmp_path / "m")
    with pytest.raises(InputError, match="made by an older imagepipe: format 1, this one reads 2; train it again"):
        predict_images(tmp_path / "m", Inputs(["x"]), None, "csv", 1, 5, 1)
