from pathlib import Path

import pytest

from imagepipe.core.config import load_section
from imagepipe.core.errors import InputError
from imagepipe.prepare.params import SplitParams

PARAMS = """\
split:
  first: 0
  strategy: stratified
  fractions:
    train: 0.7
    val: 0.1
    test: 0.2
  seed: 1
  limit_per_split: 0
  limit_choice: balanced
  layout: single
"""


def load(tmp_path: Path, *changes: tuple[str, str]) -> SplitParams:
    """The section above, with each pair's first text replaced by its second."""
    text = PARAMS
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = tmp_path / "params.yaml"
    path.write_text(text, "utf-8")
    return load_section("split", SplitParams, path)


def test_the_section_is_read(tmp_path: Path) -> None:
    params = load(tmp_path)
    assert (params.strategy, params.seed, params.limit_per_split, params.limit_choice) == (
        "stratified",
        1,
        0,
        "balanced",
    )
    assert (params.fractions.train, params.fractions.val, params.fractions.test) == (0.7, 0.1, 0.2)


def test_the_checkouts_own_section_is_read(root: Path) -> None:
    assert load_section("split", SplitParams, root / "params.yaml").layout == "single"


@pytest.mark.parametrize("train", ["1", "1.0", "1e0"])
def test_everything_can_go_to_train(tmp_path: Path, train: str) -> None:
    fractions = load(tmp_path, ("train: 0.7", f"train: {train}"), ("0.1", "0"), ("0.2", "0.0")).fractions
    assert (fractions.train, fractions.val, fractions.test) == (1, 0, 0)


def test_shares_whose_sum_is_rounded_are_accepted(tmp_path: Path) -> None:
    third = ("0.3333333333", "0.3333333333", "0.3333333334")
    changes = zip(("0.7", "0.1", "0.2"), third, strict=True)
    assert load(tmp_path, *changes).fractions.test == 0.3333333334


@pytest.mark.parametrize("seed", [0, 2**63 - 1])
def test_seeds_at_the_ends_of_the_range(tmp_path: Path, seed: int) -> None:
    assert load(tmp_path, ("seed: 1", f"seed: {seed}")).seed == seed


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("train: 0.7", "train: 0.8", r":4: split\.fractions: train, val and test sum to 1\.1; expected 1$"),
        ("train: 0.7", "train: 0.6", r":4: split\.fractions: train, val and test sum to 0\.9; expected 1$"),
        ("val: 0.1", "val: -0.1", r":6: split\.fractions\.val: found -0\.1; expected greater than or equal to 0$"),
        ("test: 0.2", "test: 1.2", r":7: split\.fractions\.test: found 1\.2; expected less than or equal to 1$"),
        ("val: 0.1", "val: .nan", r":6: split\.fractions\.val: found \.nan; expected a finite number$"),
        ("val: 0.1", "val: '0.1'", r":6: split\.fractions\.val: found '0\.1'; expected a valid number$"),
        ("val: 0.1", "val: true", r":6: split\.fractions\.val: found true; expected a valid number$"),
        ("    val: 0.1\n", "", r":4: split\.fractions\.val: is missing"),
        ("first: 0", "first: -1", r":2: split\.first: found -1; expected greater than or equal to 0$"),
        (
            "strategy: stratified",
            "strategy: strat",
            r":3: split\.strategy: found strat; expected 'stratified', 'random' or",
        ),
        ("seed: 1", "seed: -1", r":8: split\.seed: found -1; expected greater than or equal to 0$"),
        ("seed: 1", f"seed: {2**63}", r":8: split\.seed: found 9223372036854775808; expected less than 922"),
        ("seed: 1", "seed: 1.5", r":8: split\.seed: found 1\.5; expected a valid integer$"),
        ("limit_per_split: 0", "limit_per_split: -1", r":9: split\.limit_per_split: found -1; expected greater than"),
        ("limit_choice: balanced", "limit_choice: even", r":10: split\.limit_choice: found even; expected 'balanced'"),
        ("layout: single", "layout: zip", r":11: split\.layout: found zip; expected 'single'"),
        ("seed: 1", "sed: 1", r":8: split\.sed: unknown key; did you mean `seed`\? Known: first, fractions"),
    ],
)
def test_wrong_values_give_line_key_and_what_was_expected(tmp_path: Path, old: str, new: str, expected: str) -> None:
    with pytest.raises(InputError, match=rf"(?m)params\.yaml{expected}"):
        load(tmp_path, (old, new))


def test_no_train_share_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"params\.yaml:4: split\.fractions: train is 0; expected more$"):
        load(tmp_path, ("train: 0.7", "train: 0"), ("test: 0.2", "test: 0.9"))
