import re
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from imagepipe.core.config import load_section, read_yaml
from imagepipe.core.errors import InputError
from imagepipe.data.params import NEUTRAL, AugmentParams

AUGMENT: dict[str, Any] = {
    "crop_padding": 0,
    "horizontal_flip": 0.0,
    "vertical_flip": 0.0,
    "degrees": 0.0,
    "translate": 0.0,
    "scale_min": 1.0,
    "scale_max": 1.0,
    "interpolation": "bilinear",
    "brightness": 0.0,
    "contrast": 0.0,
    "erasing": 0.0,
    "transform": "",
}


def make_augment_params(**changes: Any) -> AugmentParams:
    """Parameters that change no image but for `changes`; the neighbouring tests start from them too."""
    return AugmentParams.model_validate(AUGMENT | changes)


def load_params(folder: Path, **changes: Any) -> AugmentParams:
    """The same by way of a params.yaml, as if its section `train` were this one."""
    with (folder / "params.yaml").open("w", encoding="utf-8") as file:
        YAML().dump({"train": AUGMENT | changes}, file)
    return load_section("train", AugmentParams, folder / "params.yaml")


def test_the_base_changes_nothing(root: Path) -> None:
    assert read_yaml(root / "recipes" / "base.yaml")[0]["train"]["augment"] == AUGMENT
    assert make_augment_params().changes == []


def test_every_key_changes_images_or_says_how() -> None:
    assert {*NEUTRAL, "interpolation", "transform"} == set(AugmentParams.model_fields)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("crop_padding", 1),
        ("horizontal_flip", 1),
        ("vertical_flip", 1.0),
        ("degrees", 180),
        ("translate", 1.0),
        ("scale_min", 1e-9),
        ("scale_max", 7.0),
        ("brightness", 2.0),
        ("contrast", 1e-9),
        ("erasing", 1.0),
    ],
)
def test_the_ends_of_the_ranges_are_valid_and_change_images(tmp_path: Path, key: str, value: float) -> None:
    params = load_params(tmp_path, **{key: value})
    assert getattr(params, key) == value
    assert params.changes == [key]


def test_interpolation_alone_changes_nothing() -> None:
    assert make_augment_params(interpolation="nearest").changes == []


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("crop_padding", -1, "greater than or equal to 0"),
        ("crop_padding", 1.5, "integer"),
        ("horizontal_flip", -0.1, "greater than or equal to 0"),
        ("horizontal_flip", 1.1, "less than or equal to 1"),
        ("horizontal_flip", True, "number"),
        ("vertical_flip", -0.1, "greater than or equal to 0"),
        ("vertical_flip", 2, "less than or equal to 1"),
        ("degrees", -1, "greater than or equal to 0"),
        ("degrees", 180.5, "less than or equal to 180"),
        ("degrees", float("nan"), "finite number"),
        ("translate", -0.1, "greater than or equal to 0"),
        ("translate", 4, "less than or equal to 1"),
        ("scale_min", 0, "greater than 0"),
        ("scale_max", 0.0, "greater than 0"),
        ("scale_max", float("inf"), "finite number"),
        ("interpolation", "bicubic", "'nearest' or 'bilinear'"),
        ("brightness", -0.1, "greater than or equal to 0"),
        ("contrast", -0.1, "greater than or equal to 0"),
        ("erasing", -0.1, "greater than or equal to 0"),
        ("erasing", 1.1, "less than or equal to 1"),
        ("transform", False, "string"),
    ],
)
def test_a_value_out_of_range_is_named_with_what_is_expected(
    tmp_path: Path, key: str, value: object, expected: str
) -> None:
    with pytest.raises(InputError, match=rf"params\.yaml:\d+: train\.{key}: found .*{re.escape(expected)}"):
        load_params(tmp_path, **{key: value})


def test_scales_come_in_order(tmp_path: Path) -> None:
    assert load_params(tmp_path, scale_min=0.5, scale_max=0.5).changes == ["scale_min", "scale_max"]
    with pytest.raises(InputError, match=r"scale_min is 1\.0 and scale_max is 0\.9; expected scale_min to be at most"):
        load_params(tmp_path, scale_max=0.9)


def test_a_transform_goes_alone(tmp_path: Path) -> None:
    assert load_params(tmp_path, transform="RandAugment").changes == []
    message = r"transform is 'RandAugment' and degrees, erasing too would change the images; set one of the two"
    with pytest.raises(InputError, match=message):
        load_params(tmp_path, transform="RandAugment", erasing=0.1, degrees=5)
