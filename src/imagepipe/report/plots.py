"""Figures as PNG files: the same bytes for the same numbers, readable in grey, one colour for one meaning."""

import io
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path
from matplotlib.ticker import LogFormatter
from numpy.typing import NDArray

from imagepipe.core.errors import InputError
from imagepipe.core.files import write_bytes

# Okabe and Ito's palette (https://jfly.uni-koeln.de/color/): told apart by colour-blind readers, and in grey by
# lightness; train is always dark blue, val orange, test sky blue.
COLOURS = {"train": "#0072B2", "val": "#E69F00", "test": "#56B4E9"}
DPI = 110
SIDE = 1.27  # inches of the longer side of a picture in a grid
HEAD = 0.28  # inches above each for its caption
GAP = 0.08  # inches between neighbours
WIDEST = 10.8  # inches of a grid
CAPTION = 8  # points
MOST_LABELLED = 25  # classes up to which a confusion matrix shows its numbers
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titleweight": "bold",
    "axes.titlesize": 10,
    "legend.frameon": False,
    "text.parse_math": False,  # a class name may hold a dollar sign
}


@contextmanager
def ignore_missing_glyphs() -> Generator[None]:
    """No warning about letters that the font lacks (emoji, Chinese): they are drawn as boxes, the tables hold them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ ", UserWarning)
        yield


@contextmanager
def new_figure(path: Path, width: float, height: float) -> Generator[Figure]:
    """A figure of `width` × `height` inches that is written to `path` when the block ends well."""
    with rc_context(STYLE), ignore_missing_glyphs():
        figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
        yield figure
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
        write_bytes(path, buffer.getvalue())


def shorten(name: str, length: int = 18) -> str:
    """A class name for an axis: one line, at most `length` characters."""
    plain = " ".join(name.split()) or "(blank)"
    return plain if len(plain) <= length else plain[: length - 1] + "…"


def draw_balance(counts: dict[str, dict[str, int]], path: Path) -> None:
    """Bars from zero: images of each class, one panel a split, each with what it is measured by as a line.

    That is the even share in train's panel, and in the others what train's proportions would give.
    """
    splits = {split: classes for split, classes in counts.items() if sum(classes.values())}
    train = np.array(list(counts["train"].values()))
    number = len(train)
    width = max(6.0, min(16.0, 0.32 * number + 2))
    points = 72 * (width - 1) / number  # for each class
    longest = max(len(f"{count:,}") for classes in splits.values() for count in classes.values())
    with new_figure(path, width, 1.9 * len(splits) + 0.5) as figure:
        panels = figure.subplots(len(splits), 1, sharex=True, squeeze=False)[:, 0]
        for panel, (split, classes) in zip(panels, splits.items(), strict=True):
            values = np.array(list(classes.values()))
            shares = np.full(number, 1 / number) if split == "train" else train / train.sum()
            draw_bars(panel, values, values.sum() * shares, COLOURS[split], points, numbered=4.6 * longest <= points)
            measure = "even share" if split == "train" else "train's proportions"
            panel.set_title(f"{split}: {values.sum():,} images (dashed: {measure})", loc="left")
            panel.set_ylabel("images")
        panels[-1].set_xlim(-0.6, number - 0.4)
        label_places(panels[-1], list(counts["train"]))
        panels[-1].set_xlabel("class")


def draw_bars(
    panel: Axes,
    values: NDArray[np.int64],
    measure: NDArray[np.float64],
    colour: str,
    points: float,
    *,
    numbered: bool,
) -> None:
    """Bars from zero at the places 0, 1, …, each `points` wide, `measure` as a dashed line; `numbered` needs room.

    A digit of the numbers, which have size 7, is 4.5 points wide.
    """
    edges = np.arange(len(values) + 1) - 0.5
    if points < 4:  # outlines would hide such bars, and a thousand of them draw slowly one by one
        panel.stairs(values, edges, fill=True, color=colour)
    else:
        bars = panel.bar(np.arange(len(values)), values, color=colour, edgecolor="black", linewidth=0.4)
        if numbered:
            ground = {"facecolor": "white", "edgecolor": "none", "pad": 0.3}
            texts = [f"{value:,}" for value in values.tolist()]
            panel.bar_label(bars, texts, fontsize=7, padding=1.5, bbox=ground, zorder=4)
    panel.stairs(measure, edges, baseline=None, color="black", linewidth=0.9, linestyle=(0, (3, 1.5)))
    panel.set_ylim(0, 1.18 * max(values.max(), measure.max()))
    panel.locator_params(axis="y", integer=True)
    panel.yaxis.set_major_formatter("{x:,.0f}")


def label_places(axes: Axes, names: Sequence[str]) -> None:
    """Class names below the places 0, 1, …; every one while there is room, then every n-th."""
    every = -(-len(names) // 60)
    shown = list(range(0, len(names), every))
    long = any(len(name) > 3 for name in names)
    axes.set_xticks(shown, [shorten(names[index]) for index in shown], rotation=90 if long or every > 1 else 0)


def draw_curves(history: pd.DataFrame, steps: pd.DataFrame, loss: str, path: Path) -> None:
    """Loss of every update with its running average, and loss and accuracy by epoch, all over updates.

    `loss` is what the updates were made by, in a few words; after each epoch, the cross-entropy is measured.

    The running average is over a tenth of an epoch's updates (at least ten); each mean stands in the middle of its
    window, so that the line neither starts at 0 nor lags behind what it averages.
    """
    window = max(10, int(len(steps) / max(1, len(history)) / 10))
    with new_figure(path, 9, 3.6) as figure:
        losses, accuracies = figure.subplots(1, 2)
        title, measured = "loss (cross-entropy, nats)", "train"
        if loss != "cross_entropy":
            title, measured = "loss (after each epoch: cross-entropy, nats)", f"train: {shorten(loss, 32)}"
        losses.plot(steps["update"], steps["loss"], color="#bbbbbb", linewidth=0.6, label=f"each update ({measured})")
        if len(steps) >= window:
            average = steps["loss"].rolling(window).mean()
            losses.plot(
                steps["update"] - (window - 1) / 2,
                average,
                color="black",
                linewidth=1,
                label=f"mean of {window} updates",
            )
        for split, marker in (("train", "o"), ("val", "s")):
            style: dict[str, Any] = {"color": COLOURS[split], "marker": marker, "markersize": 3, "linewidth": 1.3}
            losses.plot(history["updates"], history[f"{split}_loss"], label=f"{split}, after each epoch", **style)
            accuracies.plot(history["updates"], 100 * history[f"{split}_accuracy"], label=split, **style)
        highest = max(steps["loss"].quantile(0.995), history[["train_loss", "val_loss"]].to_numpy().max())
        losses.set_ylim(bottom=0, top=1.05 * float(highest) or None)
        losses.set(title=title, xlabel="updates", xlim=(0, None))
        accuracies.set(title="accuracy (%)", xlabel="updates", xlim=(0, None))
        losses.legend()
        accuracies.legend(loc="lower right")


def draw_rates(curve: pd.DataFrame, suggestion: float | None, current: float, path: Path) -> None:
    """Loss over the learning rate (logarithmic), of each update and smoothed, with the suggested and the current rate.

    `curve` has the columns `lr`, `loss` and `smoothed`. The axis ends above the smoothed loss; where the model has
    blown up, single batches are far beyond it.
    """
    smoothed = curve["smoothed"]
    with new_figure(path, 6.5, 3.8) as figure:
        axes = figure.subplots()
        axes.plot(curve["lr"], curve["loss"], color="#bbbbbb", linewidth=0.8, label="each update")
        axes.plot(curve["lr"], smoothed, color="black", linewidth=1.3, label="running average")
        if suggestion is not None:
            nearest = smoothed.iloc[int((curve["lr"] - suggestion).abs().argmin())]
            label = f"suggestion: {suggestion:.2g} (steepest fall)"
            axes.axvline(suggestion, color=COLOURS["train"], linewidth=1, linestyle="--")
            axes.plot(suggestion, nearest, "o", color=COLOURS["train"], markersize=7, label=label)
        axes.axvline(current, color="black", linewidth=1, linestyle=":", label=f"train.lr: {current:g}")
        lowest, highest = min(curve["loss"].min(), smoothed.min()), smoothed.max()
        room = 0.08 * (highest - lowest) or 0.1
        axes.set(xscale="log", ylim=(lowest - room, highest + room))
        axes.set(title="loss while the learning rate rises", xlabel="learning rate", ylabel="loss on the train batch")
        for set_formatter in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
            set_formatter(LogFormatter())  # without powers in mathematical writing, which the style turns off
        axes.legend(frameon=True, edgecolor="none")


def draw_confusion(counts: NDArray[np.int64], classes: Sequence[str], path: Path) -> None:
    """The confusion matrix, each row as shares of its true class; counts are written in while they can be read."""
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)
    side = max(4.0, min(14.0, 0.42 * len(classes) + 1.8))
    with new_figure(path, side + 0.8, side) as figure:
        axes = figure.subplots()
        picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        figure.colorbar(picture, ax=axes, shrink=0.8, label="share of the true class")
        label_places(axes, classes)
        every = -(-len(classes) // 60)
        rows = list(range(0, len(classes), every))
        axes.set_yticks(rows, [shorten(classes[index]) for index in rows])
        axes.set(xlabel="predicted class", ylabel="true class", title="confusion on test")
        if len(classes) <= MOST_LABELLED:
            for row, column in zip(*np.nonzero(counts), strict=True):
                colour = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, f"{counts[row, column]:,}", ha="center", va="center", color=colour, fontsize=7)


def draw_reliability(tables: dict[str, pd.DataFrame], path: Path) -> None:
    """One panel for each name: bars of the accuracy in each bin of confidence, beside the line on which both agree.

    Each table is `tabulate_calibration`'s. Below, in grey, the share of the images that are in the bin.
    """
    with new_figure(path, 9, 3.8) as figure:
        panels = figure.subplots(2, len(tables), sharex=True, height_ratios=[4, 1], squeeze=False)
        for column, (name, table) in enumerate(tables.items()):
            upper, lower = panels[:, column]
            edges = [*table["low"].tolist(), 1.0]
            upper.stairs(table["accuracy"].fillna(0), edges, fill=True, color=COLOURS["test"])
            upper.stairs(table["accuracy"].fillna(0), edges, color="black", linewidth=0.5)
            upper.plot([0, 1], [0, 1], color="black", linestyle=(0, (3, 1.5)), linewidth=1)
            there = table["images"] > 0
            upper.plot(
                table.loc[there, "confidence"],
                table.loc[there, "accuracy"],
                color="black",
                marker="o",
                markersize=3,
                linestyle="none",
            )
            lower.stairs(table["images"] / table["images"].sum(), edges, fill=True, color="#888888")
            upper.set(title=name, ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
            lower.set(xlabel="probability of the predicted class", ylabel="share", ylim=(0, 1))


def draw_ranking(table: pd.DataFrame, roc_auc: float, average_precision: float, path: Path) -> None:
    """The ROC and the precision-recall curve, means over classes against the rest, from `tabulate_ranking`.

    Of a single class the table is empty, and the titles say why there is no curve.
    """
    with new_figure(path, 9, 3.8) as figure:
        roc, recall = figure.subplots(1, 2)
        roc.plot(table["share"], table["true_positive_rate"], color=COLOURS["train"], linewidth=1.5)
        roc.plot([0, 1], [0, 1], color="black", linestyle=(0, (3, 1.5)), linewidth=0.8)
        recall.plot(table["share"], table["precision"], color=COLOURS["train"], linewidth=1.5)
        labels = {"xlim": (-0.01, 1.01), "ylim": (0, 1.02)}
        area, average = f", area {roc_auc:.4f}", f", average {average_precision:.4f}"
        if table.empty:
            area = average = ": needs two classes"
        roc.set(title=f"ROC{area}", xlabel="false positive rate", ylabel="true positive rate", **labels)
        recall.set(title=f"precision and recall{average}", xlabel="recall", ylabel="precision", **labels)


def draw_grid(images: Sequence[Any], captions: Sequence[str], path: Path, title: str = "") -> None:
    """A captioned grid of images, each as `to_picture` takes it; without images, a line that says so.

    Columns are as wide as the longest caption needs, and as many as WIDEST allows.
    """
    cell_width, cell_height = max(SIDE, measure_text(captions, CAPTION)) + GAP, SIDE + HEAD
    columns = max(1, min(int(WIDEST / cell_width), int(np.ceil(np.sqrt(len(images) * 1.6)))))
    rows = max(1, -(-len(images) // columns))
    width, top = max(columns * cell_width, WIDEST / 2), rows * cell_height + GAP / 2
    height = top + (0.2 if title else 0.0)
    with new_figure(path, width, height) as figure:
        # One axes for all, in inches: one for each image takes seven times as long for 32 of them.
        figure.set_layout_engine("none")
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, width), ylim=(0, height))
        axes.axis("off")
        axes.text(width / 2, height - 0.05, title, fontsize=10, ha="center", va="top")
        for index, (image, caption) in enumerate(zip(images, captions, strict=True)):
            row, column = divmod(index, columns)
            x = width / 2 + (column + 0.5 - columns / 2) * cell_width
            y = top - (row + 1) * cell_height + SIDE / 2
            above = place_picture(axes, to_picture(image), x, y)
            axes.text(x, above + 0.06, caption, fontsize=CAPTION, ha="center")


def place_picture(axes: Axes, picture: NDArray[np.uint8], x: float, y: float) -> float:
    """Draw pixels (H, W) or (H, W, C) around a place, the longer side SIDE; gives where the upper edge is."""
    rows, columns = picture.shape[:2]
    across, up = (SIDE / 2 * side / max(rows, columns) for side in (columns, rows))
    coloured = picture if picture.ndim == 3 else np.repeat(picture[:, :, None], 3, axis=2)  # no colour map to apply
    axes.imshow(coloured, extent=(x - across, x + across, y - up, y + up), aspect="auto", interpolation="nearest")
    return y + up


def measure_text(texts: Sequence[str], size: float) -> float:
    """How many inches wide the longest of some lines is, at a font size in points."""
    font = FontProperties(size=size)
    with ignore_missing_glyphs():
        widths = [text_to_path.get_text_width_height_descent(text, font, ismath=False)[0] for text in set(texts)]
    return max(widths, default=0.0) / 72


def to_picture(image: Any) -> NDArray[np.uint8]:
    """uint8 (H, W) or (H, W, 3) from a tensor, array or PIL image of shape (H, W), (1, H, W), (3, H, W) or (H, W, C).

    Where a shape may be either, the channels of a tensor come first, and those of an array last. Floats are taken as 0
    to 1. Raises InputError for any other shape.
    """
    array = np.asarray(image)
    is_tensor = hasattr(image, "permute")  # torch is not imported for this
    if array.ndim == 3 and array.shape[0] in (1, 3) and (is_tensor or array.shape[2] not in (1, 3)):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim != 2 and not (array.ndim == 3 and array.shape[2] in (3, 4)):
        raise InputError(f"an image of shape {array.shape}; expected (H, W), (1, H, W), (3, H, W) or (H, W, C).")
    if array.dtype != np.uint8:
        array = np.clip(np.rint(array.astype(np.float64) * 255), 0, 255).astype(np.uint8)
    return array


def caption_prediction(predicted: str, true: str) -> str:
    """`P: x | T: y`, the predicted class first."""
    return f"P: {shorten(predicted, 10)} | T: {shorten(true, 10)}"
