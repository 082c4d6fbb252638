from pathlib import Path

import pytest

from imagepipe.core.config import AnyParams, load_section
from imagepipe.core.errors import InputError
from imagepipe.evaluation.params import EvaluateParams, LossParams

GOOD = """evaluate:
  batch_size: 500
  confidence: 0.95
  gallery: 32
  threads: 2
  resamples: 1000
  top_k: 5
  intended_use: ''
  limits: ''
"""


def test_reads_the_section(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(GOOD)
    assert load_section("evaluate", EvaluateParams, path).confidence == 0.95


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("confidence: 0.95", "confidence: 1", 3),
        ("gallery: 32", "gallery: 401", 4),
        ("batch_size: 500", "batch_size: 0", 2),
        ("threads: 2", "threads: 0", 5),
        ("resamples: 1000", "resamples: 99", 6),
        ("top_k: 5", "top_k: 1", 7),
    ],
)
def test_refuses_what_is_out_of_range_with_its_line(tmp_path: Path, old: str, new: str, line: int) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(InputError, match=f"params.yaml:{line}: evaluate.{new.split(':')[0]}: found"):
        load_section("evaluate", EvaluateParams, path)


def test_reads_what_the_updates_were_made_by_and_passes_over_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("train:\n  loss: nll\n  lr: 7\n  imbalance: focal\n")
    assert load_section("train", LossParams, path) == LossParams(loss="nll", imbalance="focal")
    path.write_text("train:\n  loss: nll\n")
    with pytest.raises(InputError, match=r"params\.yaml:1: train\.imbalance: is missing \(every key is always present"):
        load_section("train", LossParams, path)


def test_a_section_that_is_only_shown_has_any_keys_but_has_some(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("balance:\n  b: {d: [1]}\n  a: x\n")
    assert list(load_section("balance", AnyParams, path).values.items()) == [("b", {"d": [1]}), ("a", "x")]
    path.write_text("balance: 3\n")
    with pytest.raises(InputError, match=r"params\.yaml:1: balance: found 3; expected `key: value` pairs"):
        load_section("balance", AnyParams, path)
