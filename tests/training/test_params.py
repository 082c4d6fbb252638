import re
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from imagepipe.core.config import load_section
from imagepipe.core.errors import InputError
from imagepipe.training.params import TrainParams
from tests.data.test_params import AUGMENT

VALUES: dict[str, Any] = {
    "model": "softmax",
    "mlp": {"hidden": 5},
    "cnn": {"base": 4, "stem": "pool", "dropout": 0.0},
    "normalize": "unit",
    "epochs": 2,
    "batch_size": 4,
    "eval_batch_size": 3,
    "train_measured": 0,
    "shuffle": True,
    "drop_last": False,
    "augment": AUGMENT,
    "keep": "best",
    "optimizer": "sgd",
    "lr": 0.1,
    "momentum": 0.0,
    "weight_decay": 0.0,
    "schedule": "constant",
    "label_smoothing": 0.0,
    "seed": 1,
    "device": "cpu",
    "threads": 1,
}


def make_params(**changes: Any) -> TrainParams:
    """Valid parameters of a small run; the neighbouring tests start from them too."""
    return TrainParams.model_validate(VALUES | changes)


def load_params(folder: Path, **changes: Any) -> TrainParams:
    """The same by way of a params.yaml."""
    with (folder / "params.yaml").open("w", encoding="utf-8") as file:
        YAML().dump({"train": VALUES | changes}, file)
    return load_section("train", TrainParams, folder / "params.yaml")


def test_the_projects_own_params_are_valid(root: Path) -> None:
    params = load_section("train", TrainParams, root / "params.yaml")
    assert params.epochs >= 1


def test_values_come_as_they_are_written(tmp_path: Path) -> None:
    assert load_params(tmp_path) == make_params()


@pytest.mark.parametrize(
    "changes",
    [
        {"lr": 1},
        {"lr": 1e-9},
        {"seed": 0},
        {"seed": 2**63 - 1},
        {"momentum": 0.9, "optimizer": "rmsprop"},
        {"weight_decay": 0.0},
        {"train_measured": 0},
        {"label_smoothing": 0.99},
        {"threads": 1024},
    ],
)
def test_the_ends_of_the_ranges_are_valid(tmp_path: Path, changes: dict[str, Any]) -> None:
    params = load_params(tmp_path, **changes)
    assert {name: getattr(params, name) for name in changes} == changes


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("model", "", "at least 1 character"),
        ("normalize", "mean", "'none', 'unit', 'dataset' or 'imagenet'"),
        ("epochs", 0, "greater than or equal to 1"),
        ("epochs", 2.5, "integer"),
        ("epochs", True, "integer"),
        ("batch_size", 0, "greater than or equal to 1"),
        ("eval_batch_size", -1, "greater than or equal to 1"),
        ("train_measured", -1, "greater than or equal to 0"),
        ("shuffle", 1, "boolean"),
        ("drop_last", "no", "boolean"),
        ("optimizer", "lion", "'sgd', 'rmsprop', 'adam' or 'adamw'"),
        ("lr", 0, "greater than 0"),
        ("lr", -0.1, "greater than 0"),
        ("lr", float("nan"), "finite number"),
        ("lr", float("inf"), "finite number"),
        ("lr", "0.1", "number"),
        ("momentum", 1.0, "less than 1"),
        ("momentum", -0.1, "greater than or equal to 0"),
        ("weight_decay", -0.1, "greater than or equal to 0"),
        ("schedule", "cosine", "'constant' or 'onecycle'"),
        ("label_smoothing", 1.0, "less than 1"),
        ("label_smoothing", -0.1, "greater than or equal to 0"),
        ("seed", -1, "greater than or equal to 0"),
        ("seed", 2**63, "less than 9223372036854775808"),
        ("device", "cuda", "'cpu'"),
        ("threads", 0, "greater than or equal to 1"),
        ("threads", 1025, "less than or equal to 1024"),
    ],
)
def test_a_value_out_of_range_is_named_with_what_is_expected(
    tmp_path: Path, key: str, value: object, expected: str
) -> None:
    with pytest.raises(InputError, match=rf"params\.yaml:\d+: train\.{key}: .*{re.escape(expected)}") as caught:
        load_params(tmp_path, **{key: value})
    line = int(str(caught.value).split("params.yaml:")[1].split(":")[0])
    assert (tmp_path / "params.yaml").read_text("utf-8").splitlines()[line - 1].startswith(f"  {key}:")


@pytest.mark.parametrize(
    ("section", "values", "key"),
    [
        ("mlp", {"hidden": 0}, "mlp.hidden"),
        ("cnn", {"base": 0, "stem": "pool", "dropout": 0.0}, "cnn.base"),
        ("cnn", {"base": 4, "stem": "patch", "dropout": 0.0}, "cnn.stem"),
        ("cnn", {"base": 4, "stem": "pool", "dropout": 1.0}, "cnn.dropout"),
        ("cnn", {"base": 4, "stem": "pool"}, "cnn.dropout"),
        ("mlp", {"hidden": 5, "hiden": 5}, "mlp.hiden"),
        ("augment", AUGMENT | {"erasing": 2.0}, "augment.erasing"),
        ("augment", AUGMENT | {"scale_min": 2.0}, "augment"),
        ("augment", AUGMENT | {"flip": 0.5}, "augment.flip"),
        ("augment", {"crop_padding": 4}, "augment.degrees"),
    ],
)
def test_the_sections_inside_are_checked(tmp_path: Path, section: str, values: dict[str, Any], key: str) -> None:
    with pytest.raises(InputError, match=rf"params\.yaml:\d+: train\.{re.escape(key)}: "):
        load_params(tmp_path, **{section: values})


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_a_momentum_that_would_be_ignored_is_refused(tmp_path: Path, optimizer: str) -> None:
    message = rf"momentum is 0\.9 but optimizer `{optimizer}` takes none .*set momentum to 0, or optimizer to `sgd`"
    with pytest.raises(InputError, match=message):
        load_params(tmp_path, optimizer=optimizer, momentum=0.9)


@pytest.mark.parametrize(
    ("model", "choices"),
    [
        ("softmax", {}),
        ("simplenet", {}),
        ("mlp", {"hidden": 5}),
        ("cnn", {"base": 4, "stem": "pool", "dropout": 0.0}),
    ],
)
def test_only_the_chosen_models_choices_count(model: str, choices: dict[str, Any]) -> None:
    assert make_params(model=model).choices == choices
