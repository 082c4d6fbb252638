from pathlib import Path

import pytest

from imagepipe.core.config import load_section
from imagepipe.core.errors import InputError
from imagepipe.prepare.params import SplitParams

PARAMS = """\
split:
  first: 0
  image:
    formats: JPEG PNG
    max_pixels: 50000000
    mode: keep
    height: 0
    width: 0
    fit: resize
    filter: bilinear
    background: 255
    animation: refuse
  max_rejected: 0
  strategy: stratified
  fractions:
    train: 0.7
    val: 0.1
    test: 0.2
  val_as_test: true
  folds: 5
  fold: 0
  order_column: ''
  seed: 1
  limit_per_split: 0
  limit_choice: balanced
  leaks: auto
  near_distance: 3
  layout: single
"""


def find_line(key: str) -> int:
    """The line above that begins with `key`."""
    return 1 + [line.strip().split(":")[0] for line in PARAMS.splitlines()].index(key)


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
    assert (params.image.formats, params.image.mode, params.image.background) == ("JPEG PNG", "keep", 255)
    assert (params.folds, params.fold, params.order_column, params.val_as_test) == (5, 0, "", True)
    assert (params.leaks, params.near_distance, params.max_rejected, params.layout) == ("auto", 3, 0, "single")


@pytest.mark.parametrize("name", ["params.yaml", "recipes/base.yaml"])
def test_the_checkouts_own_section_is_read(root: Path, name: str) -> None:
    assert load_section("split", SplitParams, root / name).layout == "single"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("formats: JPEG PNG", "formats: GIF"),
        ("formats: JPEG PNG", "formats: JPEG PNG BMP GIF PPM TIFF WEBP"),
        ("max_pixels: 50000000", "max_pixels: 1"),
        ("max_pixels: 50000000", "max_pixels: 1000000000"),
        ("height: 0\n    width: 0", "height: 1\n    width: 65535"),
        ("mode: keep", "mode: L"),
        ("mode: keep", "mode: RGB"),
        ("fit: resize", "fit: crop"),
        ("fit: resize", "fit: pad"),
        ("filter: bilinear", "filter: lanczos"),
        ("background: 255", "background: 0"),
        ("animation: refuse", "animation: first"),
        ("max_rejected: 0", "max_rejected: 1000000"),
        ("strategy: stratified", "strategy: kfold"),
        ("strategy: stratified", "strategy: ordered"),
        ("folds: 5\n  fold: 0", "folds: 2\n  fold: 1"),
        ("order_column: ''", "order_column: taken at"),
        ("near_distance: 3", "near_distance: -1"),
        ("near_distance: 3", "near_distance: 8"),
        ("leaks: auto", "leaks: drop"),
        ("layout: single", "layout: folders"),
        ("val_as_test: true", "val_as_test: false"),
    ],
)
def test_values_at_the_ends_of_their_ranges(tmp_path: Path, old: str, new: str) -> None:
    assert load(tmp_path, (old, new)) != load(tmp_path)


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
    ("old", "new", "key", "expected"),
    [
        ("train: 0.7", "train: 0.8", "fractions", "train, val and test sum to 1.1; expected 1"),
        ("train: 0.7", "train: 0.6", "fractions", "train, val and test sum to 0.9; expected 1"),
        ("train: 0.7", "train: 0.6999999", "fractions", "train, val and test sum to 0.9999999; expected 1"),
        ("train: 0.7", "train: 0.700000002", "fractions", "train, val and test sum to 1.000000002; expected 1"),
        ("val: 0.1", "val: -0.1", "fractions.val", "found -0.1; expected greater than or equal to 0"),
        ("test: 0.2", "test: 1.2", "fractions.test", "found 1.2; expected less than or equal to 1"),
        ("val: 0.1", "val: .nan", "fractions.val", "found .nan; expected a finite number"),
        ("val: 0.1", "val: '0.1'", "fractions.val", "found '0.1'; expected a valid number"),
        ("val: 0.1", "val: true", "fractions.val", "found true; expected a valid number"),
        ("first: 0", "first: -1", "first", "found -1; expected greater than or equal to 0"),
        (
            "strategy: stratified",
            "strategy: strat",
            "strategy",
            "found strat; expected 'official', 'stratified', 'group'",
        ),
        ("seed: 1", "seed: -1", "seed", "found -1; expected greater than or equal to 0"),
        ("seed: 1", f"seed: {2**63}", "seed", "found 9223372036854775808; expected less than 9223372036854775808"),
        ("seed: 1", "seed: 1.5", "seed", "found 1.5; expected a valid integer"),
        ("limit_per_split: 0", "limit_per_split: -1", "limit_per_split", "found -1; expected greater than"),
        ("limit_choice: balanced", "limit_choice: even", "limit_choice", "found even; expected 'balanced' or 'random'"),
        ("layout: single", "layout: zip", "layout", "found zip; expected 'single', 'folders' or 'shards'"),
        (
            "formats: JPEG PNG",
            "formats: JPG",
            "image.formats",
            "found 'JPG'; expected words out of JPEG, PNG, BMP, GIF",
        ),
        ("formats: JPEG PNG", "formats: ''", "image.formats", "found ''; expected words out of JPEG"),
        ("formats: JPEG PNG", "formats: ' '", "image.formats", "found ' '; expected words out of JPEG"),
        ("formats: JPEG PNG", "formats: JPEG,PNG", "image.formats", "found 'JPEG,PNG'; expected words out of"),
        ("formats: JPEG PNG", "formats: jpeg", "image.formats", "found 'jpeg'; expected words out of"),
        ("max_pixels: 50000000", "max_pixels: 0", "image.max_pixels", "found 0; expected greater than or equal to 1"),
        (
            "max_pixels: 50000000",
            "max_pixels: 1000000001",
            "image.max_pixels",
            "expected less than or equal to 1000000000",
        ),
        ("mode: keep", "mode: RGBA", "image.mode", "found RGBA; expected 'keep', 'L' or 'RGB'"),
        ("height: 0", "height: -1", "image.height", "found -1; expected greater than or equal to 0"),
        ("height: 0", "height: 65536", "image.height", "found 65536; expected less than or equal to 65535"),
        ("height: 0", "height: 8", "image", "height is 8 and width 0; expected both 0 or both above 0"),
        ("width: 0", "width: 8", "image", "height is 0 and width 8; expected both 0 or both above 0"),
        ("fit: resize", "fit: stretch", "image.fit", "found stretch; expected 'resize', 'crop' or 'pad'"),
        ("filter: bilinear", "filter: BOX", "image.filter", "found BOX; expected 'nearest', 'box', 'bilinear'"),
        ("background: 255", "background: 256", "image.background", "found 256; expected less than or equal to 255"),
        ("background: 255", "background: -1", "image.background", "found -1; expected greater than or equal to 0"),
        ("animation: refuse", "animation: all", "image.animation", "found all; expected 'refuse' or 'first'"),
        ("max_rejected: 0", "max_rejected: -1", "max_rejected", "found -1; expected greater than or equal to 0"),
        ("val_as_test: true", "val_as_test: 1", "val_as_test", "found 1; expected a valid boolean"),
        ("folds: 5", "folds: 1", "folds", "found 1; expected greater than or equal to 2"),
        ("fold: 0", "fold: -1", "fold", "found -1; expected greater than or equal to 0"),
        ("leaks: auto", "leaks: ignore", "leaks", "found ignore; expected 'auto', 'error', 'drop' or 'keep'"),
        ("near_distance: 3", "near_distance: 9", "near_distance", "found 9; expected less than or equal to 8"),
        ("near_distance: 3", "near_distance: -2", "near_distance", "found -2; expected greater than or equal to -1"),
    ],
)
def test_wrong_values_give_line_key_and_what_was_expected(
    tmp_path: Path, old: str, new: str, key: str, expected: str
) -> None:
    line = find_line(key.split(".")[-1])
    with pytest.raises(InputError) as caught:
        load(tmp_path, (old, new))
    assert f"params.yaml:{line}: split.{key}: " in str(caught.value)
    assert expected in str(caught.value)


def test_a_fold_that_does_not_exist(tmp_path: Path) -> None:
    expected = r"params\.yaml:1: split: fold is 5; expected 0 to 4 \(split\.folds is 5\)$"
    with pytest.raises(InputError, match=expected):
        load(tmp_path, ("fold: 0", "fold: 5"))


def test_a_missing_and_an_unknown_key(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"params\.yaml:{find_line('fractions')}: split\.fractions\.val: is missing"):
        load(tmp_path, ("    val: 0.1\n", ""))
    line = find_line("seed")
    with pytest.raises(
        InputError, match=rf"params\.yaml:{line}: split\.sed: unknown key; did you mean `seed`\? Known: "
    ):
        load(tmp_path, ("  seed: 1", "  sed: 1"))
    with pytest.raises(InputError, match=r"split\.image\.hight: unknown key; did you mean `height`\? Known: "):
        load(tmp_path, ("    height: 0", "    hight: 0"))


def test_no_train_share_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=rf"params\.yaml:{find_line('fractions')}: split\.fractions: train is 0; expected more$"
    ):
        load(tmp_path, ("train: 0.7", "train: 0"), ("test: 0.2", "test: 0.9"))
