"""Predictions as rows of text: CSV with LF, or one JSON object a line; UTF-8 either way.

A path that is not UTF-8 is shown with its bytes escaped (`\\xe9`), since neither form could hold it.
"""

import csv
import io
import json
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from imagepipe.sources.names import escape

Format = Literal["csv", "jsonl"]
DIGITS = 6  # of a probability: the last ones of a float32 follow the processor and the size of the batch


def format_header(kind: Format, top: int) -> bytes:
    """What stands before the rows."""
    if kind == "jsonl":
        return b""
    pairs = [["class", "probability"], *([f"class_{rank}", f"probability_{rank}"] for rank in range(2, top + 1))]
    return format_csv([["path", *(name for pair in pairs for name in pair)]])


def format_rows(
    kind: Format, paths: Sequence[str], classes: Sequence[str], probabilities: NDArray[np.float64], top: int
) -> bytes:
    """A row for each path: the `top` most probable of the classes, by `probabilities` (N, classes).

    Of equal ones, that of the lowest index comes first.
    """
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
    best = np.take_along_axis(probabilities, order, axis=1)
    names: list[list[str]] = np.array(classes, object)[order].tolist()
    rows = list(zip(map(escape, paths), names, best.tolist(), strict=True))
    if kind == "csv":
        return format_csv([[path, *pair_up(found, values)] for path, found, values in rows])
    lines = [
        json.dumps(
            {"path": path, "classes": found, "probabilities": [round(value, DIGITS) for value in values]},
            ensure_ascii=False,
        )
        for path, found, values in rows
    ]
    return "".join(f"{line}\n" for line in lines).encode("utf-8")


def pair_up(names: Sequence[str], values: Sequence[float]) -> list[str]:
    """Name, probability, name, probability …"""
    return [cell for name, value in zip(names, values, strict=True) for cell in (name, f"{value:.{DIGITS}f}")]


def format_csv(rows: Sequence[Sequence[str]]) -> bytes:
    """The rows as CSV."""
    text = io.StringIO()
    plain = csv.writer(text, lineterminator="\n")
    quoted = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    for row in rows:
        # CR is what Python's csv module leaves unquoted when LF ends the lines.
        (quoted if any("\r" in cell for cell in row) else plain).writerow(row)
    return text.getvalue().encode("utf-8")
