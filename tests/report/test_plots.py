from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from imagepipe.core.errors import InputError
from imagepipe.report.plots import (
    caption_prediction,
    draw_balance,
    draw_confusion,
    draw_curves,
    draw_grid,
    shorten,
    to_picture,
)
from tests.report.conftest import make_curves


@pytest.mark.parametrize("shape", [(4, 5), (1, 4, 5), (4, 5, 1)])
def test_a_grey_image_needs_no_reshaping(shape: tuple[int, ...]) -> None:
    image = np.arange(20, dtype=np.uint8).reshape(shape)
    assert np.array_equal(to_picture(image), np.arange(20).reshape(4, 5))


def test_tensors_and_pil_images_are_taken_as_they_are() -> None:
    image = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    assert np.array_equal(to_picture(torch.from_numpy(image).permute(2, 0, 1)), image)
    assert np.array_equal(to_picture(Image.fromarray(image)), image)


def test_floats_are_taken_as_0_to_1() -> None:
    assert to_picture(np.array([[0.0, 0.5, 1.0, 2.0]])).tolist() == [[0, 128, 255, 255]]


@pytest.mark.parametrize("shape", [(4,), (2, 4, 5), (1, 2, 3, 4)])
def test_refuses_other_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"an image of shape .*; expected \(H, W\), \(1, H, W\)"):
        to_picture(np.zeros(shape, np.uint8))


def test_captions_name_the_predicted_class_first() -> None:
    assert caption_prediction("3", "8") == "P: 3 | T: 8"


def test_long_and_many_line_names_are_shortened() -> None:
    assert shorten("a\nb  c") == "a b c"
    assert shorten("x" * 300, 5) == "xxxx…"
    assert shorten(" \n") == "(blank)"


def read_picture(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def test_a_grid_shows_every_image(tmp_path: Path) -> None:
    images = [np.full((1, 6, 6), level, np.uint8) for level in (40, 90, 140, 190)]
    draw_grid(images, ["a", "b", "c", "$d_1$"], tmp_path / "grid.png", "four")
    levels = read_picture(tmp_path / "grid.png")[:, :, 0]
    assert all((abs(levels.astype(int) - level) <= 1).sum() > 1000 for level in (40, 90, 140, 190))


def test_a_grid_without_images_is_a_picture_all_the_same(tmp_path: Path) -> None:
    draw_grid([], [], tmp_path / "grid.png", "no mistake on test")
    assert (read_picture(tmp_path / "grid.png") < 100).any()


@pytest.mark.parametrize(("epochs", "per_epoch"), [(1, 1), (3, 4), (5, 200)])
def test_curves_of_any_length_are_drawn(tmp_path: Path, epochs: int, per_epoch: int) -> None:
    draw_curves(*make_curves(epochs, per_epoch), tmp_path / "curves.png")
    assert (read_picture(tmp_path / "curves.png") == (0xE6, 0x9F, 0x00)).all(axis=2).any()  # val is orange


def test_a_confusion_matrix_is_dark_where_the_counts_are(tmp_path: Path) -> None:
    draw_confusion(np.array([[10, 0], [0, 10]]), ["cat", "dog"], tmp_path / "c.png")
    darkest = (read_picture(tmp_path / "c.png") == (8, 48, 107)).all(axis=2)  # the top of matplotlib's Blues
    rows, columns = np.nonzero(darkest[:, : darkest.shape[1] * 3 // 4])
    assert np.corrcoef(rows, columns)[0, 1] > 0.5


def test_a_class_without_images_leaves_its_row_light(tmp_path: Path) -> None:
    draw_confusion(np.array([[5, 0], [0, 0]]), ["cat", "dog"], tmp_path / "c.png")
    assert read_picture(tmp_path / "c.png").size


def test_a_hundred_classes_with_long_names_are_drawn(tmp_path: Path) -> None:
    names = [f"class <{number}> " + "x" * 290 for number in range(100)]
    draw_confusion(np.eye(100, dtype=np.int64), names, tmp_path / "c.png")
    draw_balance({"train": dict.fromkeys(names, 3)}, tmp_path / "b.png")
    assert read_picture(tmp_path / "c.png").shape[1] < 2000
    assert read_picture(tmp_path / "b.png").shape[1] < 2000


ORANGE = (0xE6, 0x9F, 0x00)


@pytest.mark.parametrize(
    "names",
    [["<script>", "$x_1$", "$x_1"], ["🐈", "猫", "\\frac{1}{2}"], ["x" * 300, "a\nb", " "], ["only"]],
    ids=["markup", "no glyph", "long", "one"],
)
def test_class_balance_takes_any_name(tmp_path: Path, names: list[str]) -> None:
    draw_balance({"train": dict.fromkeys(names, 3), "val": dict.fromkeys(names, 2)}, tmp_path / "b.png")
    picture = read_picture(tmp_path / "b.png")
    assert picture.shape[0] < 700
    assert (picture == ORANGE).all(axis=2).any()


def test_train_s_proportions_stay_in_sight_where_a_split_has_far_fewer(tmp_path: Path) -> None:
    draw_balance({"train": {"a": 98, "b": 2}, "val": {"a": 50, "b": 50}}, tmp_path / "b.png")
    val = (read_picture(tmp_path / "b.png") == ORANGE).all(axis=2)
    rows = np.nonzero(val.any(axis=1))[0]
    draw_balance({"train": {"a": 50, "b": 50}, "val": {"a": 50, "b": 50}}, tmp_path / "even.png")
    even = np.nonzero((read_picture(tmp_path / "even.png") == ORANGE).all(axis=2).any(axis=1))[0]
    assert np.ptp(rows) / np.ptp(even) == pytest.approx(50 / 98, abs=0.03)  # the axis reaches up to 98, not 50


def test_a_class_balance_of_a_thousand_classes_shows_its_colours(tmp_path: Path) -> None:
    draw_balance({"train": dict.fromkeys(map(str, range(1000)), 7)}, tmp_path / "b.png")
    blue = (read_picture(tmp_path / "b.png") == (0x00, 0x72, 0xB2)).all(axis=2)
    assert blue.mean() > 0.3  # outlines of 1.6 pixels' bars would hide it


def test_splits_without_images_have_no_panel(tmp_path: Path) -> None:
    draw_balance({"train": {"a": 1}, "val": {"a": 0}}, tmp_path / "one.png")
    draw_balance({"train": {"a": 1}, "val": {"a": 1}}, tmp_path / "two.png")
    assert read_picture(tmp_path / "one.png").shape[0] < read_picture(tmp_path / "two.png").shape[0]


def test_the_same_numbers_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one.png", "two.png"):
        draw_balance({"train": {"a": 3, "b": 2}, "val": {"a": 1, "b": 1}}, tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    with Image.open(tmp_path / "one.png") as picture:
        assert set(picture.info) == {"dpi"}
