import csv
import io
import json
import os

import numpy as np
import pytest

from imagepipe.inference.rows import format_header, format_rows

PROBABILITIES = np.array([[0.25, 0.5, 0.25], [0.1, 0.0999999, 0.8000001]])
CLASSES = ["cat", "a,b", "NA"]


def test_csv_by_hand() -> None:
    assert format_header("csv", 1) == b"path,class,probability\n"
    rows = format_rows("csv", ["x.png", "y.png"], CLASSES, PROBABILITIES, 1)
    assert rows == b'x.png,"a,b",0.500000\ny.png,NA,0.800000\n'


def test_the_most_probable_come_first_and_of_equal_ones_the_lowest_index() -> None:
    assert format_header("csv", 3) == b"path,class,probability,class_2,probability_2,class_3,probability_3\n"
    rows = format_rows("csv", ["x.png"], CLASSES, PROBABILITIES[:1], 3)
    assert rows == b'x.png,"a,b",0.500000,cat,0.250000,NA,0.250000\n'


def test_jsonl_by_hand() -> None:
    assert format_header("jsonl", 2) == b""
    rows = format_rows("jsonl", ["čáp.png", "y.png"], CLASSES, PROBABILITIES, 2)
    assert rows.decode() == (
        '{"path": "čáp.png", "classes": ["a,b", "cat"], "probabilities": [0.5, 0.25]}\n'
        '{"path": "y.png", "classes": ["NA", "cat"], "probabilities": [0.8, 0.1]}\n'
    )


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_paths_come_back_whatever_is_in_them(kind: str) -> None:
    paths = ["a b.png", 'quote".png', "comma,.png", "line\nend.png", "cr\rhere.png", "ünï.png"]
    text = format_rows(kind, paths, ["cat"], np.ones((6, 1)), 1).decode()  # type: ignore[arg-type] # pyright: ignore
    if kind == "csv":
        found = [row[0] for row in csv.reader(io.StringIO(text, newline=""), strict=True)]
    else:
        found = [json.loads(line)["path"] for line in text.splitlines()]
    assert found == paths


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_path_that_is_not_utf_8_is_escaped(kind: str) -> None:
    text = format_rows(kind, [os.fsdecode(b"caf\xe9.png")], ["cat"], np.ones((1, 1)), 1).decode()  # type: ignore[arg-type] # pyright: ignore
    found = text.split(",")[0] if kind == "csv" else json.loads(text)["path"]
    assert found == "caf\\xe9.png"
