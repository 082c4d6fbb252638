from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from imagepipe.core.errors import InputError
from imagepipe.report import plots
from imagepipe.report.plots import (
    DPI,
    GAP,
    HEAD,
    SIDE,
    WIDEST,
    caption_prediction,
    draw_balance,
    draw_confusion,
    draw_curves,
    draw_grid,
    draw_ranking,
    draw_rates,
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


@pytest.mark.parametrize("width", [1, 3])
def test_a_narrow_image_is_as_high_and_wide_as_it_was(width: int) -> None:
    """Of a tensor the channels come first; an array of the same shape has them last."""
    grey = np.arange(20 * width, dtype=np.uint8).reshape(1, 20, width)
    assert np.array_equal(to_picture(torch.from_numpy(grey)), grey[0])
    colour = np.arange(3 * 20 * width, dtype=np.uint8).reshape(3, 20, width)
    assert np.array_equal(to_picture(torch.from_numpy(colour)), colour.transpose(1, 2, 0))
    low = colour.reshape(1, 20 * width, 3)
    assert np.array_equal(to_picture(low), low)
    assert np.array_equal(to_picture(Image.fromarray(low)), low)


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


def measure_levels(path: Path, level: int) -> tuple[int, int]:
    """How many pixels high and wide the place is where a grey level stands."""
    rows, columns = np.nonzero(abs(read_picture(path)[:, :, 0].astype(int) - level) <= 1)
    return int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1


def test_a_grid_shows_images_of_any_shape_without_distortion(tmp_path: Path) -> None:
    colour = np.full((30, 30, 3), (200, 10, 10), np.uint8)
    draw_grid([np.full((60, 20), 90, np.uint8), colour, np.full((8, 16), 140, np.uint8)], [""] * 3, tmp_path / "g.png")
    side = SIDE * DPI
    assert measure_levels(tmp_path / "g.png", 90) == pytest.approx((side, side / 3), abs=1.5)
    assert measure_levels(tmp_path / "g.png", 140) == pytest.approx((side / 2, side), abs=1.5)
    assert (read_picture(tmp_path / "g.png") == (200, 10, 10)).all(axis=2).sum() == pytest.approx(side**2, rel=0.03)


def test_pixels_of_a_small_image_have_hard_edges(tmp_path: Path) -> None:
    draw_grid([np.array([[0, 255], [255, 0]], np.uint8)], [""], tmp_path / "g.png")
    assert set(np.unique(read_picture(tmp_path / "g.png")).tolist()) == {0, 255}


def test_long_captions_get_wider_columns_and_do_not_meet(tmp_path: Path) -> None:
    """32 black images without a title: what is dark above the first row are the captions alone."""
    images, long = [np.zeros((4, 4), np.uint8)] * 32, caption_prediction("golden retriever", "Siamese cat")
    draw_grid(images, ["a"] * 32, tmp_path / "short.png")
    draw_grid(images, [long] * 32, tmp_path / "long.png")
    short, wide = (read_picture(tmp_path / name) for name in ("short.png", "long.png"))
    assert (len(short) // int((SIDE + HEAD) * DPI), len(wide) // int((SIDE + HEAD) * DPI)) == (4, 6)
    assert wide.shape[1] <= WIDEST * DPI
    inked = (wide[: int(HEAD * DPI) - 2, :, 0] < 200).any(axis=0)
    gaps = np.diff(np.flatnonzero(inked))
    assert (gaps > 0.8 * GAP * DPI).sum() == 5  # between six captions; the spaces in them are narrower
    assert not inked[[0, -1]].any()


def test_a_grid_has_the_same_bytes_each_time(tmp_path: Path) -> None:
    images = [np.arange(64, dtype=np.uint8).reshape(8, 8) * 3, np.zeros((5, 9, 3), np.uint8)]
    for name in ("one.png", "two.png"):
        draw_grid(images, ["猫", "$x_1$"], tmp_path / name, "two")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_a_grid_without_images_is_a_picture_all_the_same(tmp_path: Path) -> None:
    draw_grid([], [], tmp_path / "grid.png", "no mistake on test")
    assert (read_picture(tmp_path / "grid.png") < 100).any()


@pytest.mark.parametrize(("epochs", "per_epoch"), [(1, 1), (3, 4), (5, 200)])
def test_curves_of_any_length_are_drawn(tmp_path: Path, epochs: int, per_epoch: int) -> None:
    draw_curves(*make_curves(epochs, per_epoch), "cross_entropy", tmp_path / "curves.png")
    assert (read_picture(tmp_path / "curves.png") == (0xE6, 0x9F, 0x00)).all(axis=2).any()  # val is orange


@pytest.mark.parametrize(
    ("loss", "title", "label"),
    [
        ("cross_entropy", "loss (cross-entropy, nats)", "each update (train)"),
        ("focal", "loss (after each epoch: cross-entropy, nats)", "each update (train: focal)"),
    ],
)
def test_the_curves_say_which_loss_they_show(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, loss: str, title: str, label: str
) -> None:
    figure = Figure()
    monkeypatch.setattr(plots, "new_figure", lambda *_: nullcontext(figure))
    draw_curves(*make_curves(3, 4), loss, tmp_path / "curves.png")
    losses = figure.axes[0]
    assert (losses.get_title(), losses.lines[0].get_label()) == (title, label)


def make_rates(lowest: float, highest: float) -> pd.DataFrame:
    """Ten updates whose smoothed loss falls from 2 to 1, and one batch that is far beyond."""
    smoothed = np.linspace(2, 1, 10)
    losses = smoothed + [0.1, -0.1] * 5
    losses[-1] = 1e30
    return pd.DataFrame({"lr": np.geomspace(lowest, highest, 10), "loss": losses, "smoothed": smoothed})


def test_the_curve_of_rates_by_its_axes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A single loss of 1e30 leaves the smoothed ones, 2 to 1, in sight; the least of all is 1.01."""
    figure = Figure()
    monkeypatch.setattr(plots, "new_figure", lambda *_: nullcontext(figure))
    curve = make_rates(1e-6, 1.0)
    draw_rates(curve, float(curve["lr"][4]), 0.01, tmp_path / "rates.png")
    [axes] = figure.axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "linear")
    assert axes.get_ylim() == pytest.approx((1 - 0.08, 2 + 0.08))
    marks = [line.get_xdata()[0] for line in axes.lines if len(line.get_xdata()) < 10]
    assert marks == pytest.approx([curve["lr"][4], curve["lr"][4], 0.01])
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == [
        "each update",
        "running average",
        "suggestion: 0.00046 (steepest fall)",
        "train.lr: 0.01",
    ]


@pytest.mark.parametrize(("lowest", "highest"), [(1e-6, 1.0), (0.001, 0.002)], ids=["decades", "within one"])
@pytest.mark.parametrize("suggested", [True, False])
def test_a_suggested_rate_is_marked_in_blue(tmp_path: Path, lowest: float, highest: float, suggested: bool) -> None:
    draw_rates(make_rates(lowest, highest), lowest if suggested else None, 0.01, tmp_path / "rates.png")
    picture = read_picture(tmp_path / "rates.png")
    assert (picture == (0x00, 0x72, 0xB2)).all(axis=2).any() == suggested
    assert (picture < 50).any()


@pytest.mark.parametrize(
    ("count", "titles"),
    [
        (2, ["ROC, area 0.5000", "precision and recall, average 0.2500"]),
        (0, ["ROC: needs two classes", "precision and recall: needs two classes"]),
    ],
)
def test_without_a_second_class_the_ranking_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, count: int, titles: list[str]
) -> None:
    figure = Figure()
    monkeypatch.setattr(plots, "new_figure", lambda *_: nullcontext(figure))
    table = pd.DataFrame({name: np.linspace(0, 1, count) for name in ("share", "true_positive_rate", "precision")})
    scores = (0.5, 0.25) if count else (float("nan"), float("nan"))
    draw_ranking(table, *scores, tmp_path / "ranking.png")
    assert [axes.get_title() for axes in figure.axes] == titles


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
