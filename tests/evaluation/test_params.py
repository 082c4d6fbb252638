from pathlib import Path

import pytest

from imagepipe.core.config import load_section
from imagepipe.core.errors import InputError
from imagepipe.evaluation.params import EvaluateParams

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
