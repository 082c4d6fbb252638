from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from imagepipe.evaluation.compare import compare
from tests.evaluation.made import make_table, write_run


def test_one_run_alone_is_compared_with_the_workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path / "reports" / "evaluate", make_table([True, True]))
    name = write_run(tmp_path / "a", make_table([True, False]))
    monkeypatch.chdir(tmp_path)
    (pair,) = compare([name], 0.95).pairs
    assert (pair.base, pair.other, pair.won) == (name, "workspace", 1)


def write_digits(folder: Path, images: int, seed: int) -> str:
    """Predictions on the second half of scikit-learn's digits, by a model of the first `images` others."""
    digits = load_digits()
    half = len(digits.target) // 2
    order = np.random.default_rng(seed).permutation(half)[:images]
    model = LogisticRegression(max_iter=200).fit(digits.data[order], digits.target[order])
    names = list(map(str, range(10)))
    table = make_table([True] * half, classes=names)
    test = table["split"] == "test"
    table.loc[test, "class"] = digits.target[half : 2 * half].astype(str)
    table.loc[test, "predicted"] = model.predict(digits.data[half : 2 * half]).astype(str)
    return write_run(folder, table)


def test_two_models_of_the_same_recipe_and_one_of_a_tenth_of_the_data(tmp_path: Path) -> None:
    base, same = (write_digits(tmp_path / f"s{seed}", 800, seed) for seed in (1, 2))
    few = write_digits(tmp_path / "few", 80, 3)
    assert compare([base, same], 0.95).pairs[0].verdict == "no evidence"
    (pair,) = compare([base, few], 0.95).pairs
    assert (pair.verdict, pair.p < 0.001) == ("worse", True)
