"""Predictions tables of made runs, and folders that hold them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from imagepipe.core.files import write_csv
from imagepipe.core.hashes import hash_bytes

CLASSES = ["cat", "dog", "NA"]
PARAMS = """
split:
  strategy: kfold
  folds: 5
  fold: {fold}
  fractions:
    train: 0.6
    val: 0.2
    test: 0.2
train:
  lr: {lr}
  seed: {seed}
"""


def make_table(right: Sequence[bool], classes: Sequence[str] = CLASSES, **columns: object) -> pd.DataFrame:
    """Test rows whose classes go round; where one is wrong, the next class is predicted. One val row stands before."""
    count = len(right)
    truth = [classes[number % len(classes)] for number in range(count)]
    predicted = [classes[(number + (not good)) % len(classes)] for number, good in enumerate(right)]
    test = pd.DataFrame(
        {
            "split": "test",
            "key": [f"{number:05d}" for number in range(count)],
            "path": [f"{number:05d}.png" for number in range(count)],
            "group": "",
            "source": "made",
            "pixel_sha256": [hash_bytes(b"%d" % number) for number in range(count)],
            "class": truth,
            "predicted": predicted,
            "loss": [0.1 if good else 2.0 + number / 100 for number, good in enumerate(right)],
            **{f"logit:{name}": np.float32(0.5) for name in classes},
        }
    ).assign(**columns)
    val = test.head(1).assign(split="val", key="v")
    return pd.concat([val, test], ignore_index=True)


def write_run(folder: Path, table: pd.DataFrame, params: str | None = None) -> str:
    """A folder with predictions.csv, and params.yaml where there are params; gives its name."""
    write_csv(folder / "predictions.csv", table)
    if params is not None:
        (folder / "params.yaml").write_text(params)
    return str(folder)


def split_right(both: int, lost: int, won: int, neither: int) -> tuple[list[bool], list[bool]]:
    """Which images each of two runs has right."""
    first = [True] * (both + lost) + [False] * (won + neither)
    return first, [True] * both + [False] * lost + [True] * won + [False] * neither


def write_params(lr: float = 0.1, seed: int = 1, fold: int = 0) -> str:
    return PARAMS.format(lr=lr, seed=seed, fold=fold)
