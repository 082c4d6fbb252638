import base64
import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagepipe.report.galleries import encode, encode_picture, make_cards, pick_examples, pick_mistakes
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


def read_picture(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def test_cards_say_what_was_thought_and_what_is_true(folder: Path) -> None:
    rows = make_predictions(wrong=1).head(2).assign(**{"logit:cat": np.float32(0), "logit:dog": np.float32(np.log(2))})
    rows["logit:NA"] = np.float32(0)
    first, second = make_cards(rows, folder / "images")
    assert (first["key"], first["true"], first["predicted"], first["right"]) == ("00000", "cat", "dog", False)
    assert (second["true"], second["right"]) == ("dog", True)
    assert first["bars"] == [("dog", pytest.approx(0.5)), ("cat", pytest.approx(0.25)), ("NA", pytest.approx(0.25))]
    assert read_picture(first["picture"]).size == (8, 8)


def test_the_true_class_has_a_bar_though_it_is_least(folder: Path) -> None:
    rows = make_predictions(wrong=0).head(1)
    logits = {f"logit:{name}": np.float32(value) for name, value in zip("abcd", (4, 3, 2, 1), strict=True)}
    rows = rows.drop(columns=["logit:cat", "logit:dog", "logit:NA"]).assign(**logits)
    rows = rows.assign(**{"class": "d", "predicted": "a"})
    assert [name for name, _ in make_cards(rows, folder / "images")[0]["bars"]] == ["a", "b", "c", "d"]


def test_without_rows_there_are_no_cards(folder: Path) -> None:
    assert make_cards(make_predictions(wrong=0).head(0), folder / "images") == []


def test_small_pictures_keep_every_pixel_and_large_ones_become_small() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    small = read_picture(encode_picture(Image.fromarray(pixels)))
    assert (small.format, np.array_equal(np.asarray(small), pixels)) == ("PNG", True)
    large = read_picture(encode_picture(Image.fromarray(np.zeros((100, 400), np.uint8))))
    assert (large.format, large.size) == ("JPEG", (160, 40))


def test_pictures_are_data_uris() -> None:
    assert encode("image/png", b"\x89PNG") == "data:image/png;base64,iVBORw=="


def test_galleries_show_the_same_images_out_of_shards(folder: Path) -> None:
    predictions = make_predictions(wrong=2)
    expected = {name: (write(folder, predictions) / name).read_bytes() for name in ("mistakes.png", "examples.png")}
    columns = pack_shards(predictions["path"].tolist(), folder / "images", folder / "shards", each=4)
    shutil.rmtree(folder / "images")
    (folder / "shards").rename(folder / "images")
    results = write(folder, predictions.join(columns))
    assert {name: (results / name).read_bytes() for name in expected} == expected
