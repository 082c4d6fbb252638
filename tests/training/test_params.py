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
    "resnet_small": {"width": 2, "stem": "full", "blocks": 1, "dropout": 0.0},
    "torchvision": {"dropout": 0.0},
    "timm": {"dropout": 0.0},
    "pretrained": "none",
    "pretrained_sha256": "",
    "freeze": "nothing",
    "normalize": "unit",
    "epochs": 2,
    "batch_size": 4,
    "eval_batch_size": 3,
    "train_measured": 0,
    "shuffle": True,
    "drop_last": False,
    "augment": AUGMENT,
    "keep": "best",
    "keep_by": "val_accuracy",
    "patience": 0,
    "loss": "cross_entropy",
    "label_smoothing": 0.0,
    "focal_gamma": 2.0,
    "imbalance": "none",
    "optimizer": "sgd",
    "lr": 0.1,
    "weight_decay": 0.0,
    "decay_norms_and_biases": True,
    "sgd": {"momentum": 0.0, "dampening": 0.0, "nesterov": False},
    "rmsprop": {"alpha": 0.99, "eps": 1e-8, "momentum": 0.0, "centered": False},
    "adagrad": {"lr_decay": 0.0, "initial_accumulator_value": 0.0, "eps": 1e-10},
    "adam": {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "amsgrad": False},
    "schedule": "constant",
    "warmup": 0.0,
    "step": {"steps": 3, "factor": 0.1},
    "cosine": {"end": 0.0},
    "onecycle": {"pct_start": 0.3, "div_factor": 25.0, "final_div_factor": 10000.0},
    "clip_norm": 0.0,
    "ema_decay": 0.0,
    "seed": 1,
    "device": "cpu",
    "precision": "float32",
    "compile": False,
    "processes": 1,
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
        {"batch_size": "all"},
        {"weight_decay": 0.0},
        {"patience": 0},
        {"warmup": 0.0},
        {"ema_decay": 0.999},
        {"focal_gamma": 0.0, "loss": "focal", "imbalance": "focal"},
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
        ("pretrained", "", "at least 1 character"),
        ("pretrained", "models/model.safetensors", "found models/model.safetensors; expected a place that no stage"),
        ("pretrained_sha256", "abc", "found 'abc'; expected 64 hexadecimal digits, or ''"),
        ("freeze", "all", "'nothing', 'body' or 'batch_norm'"),
        ("epochs", 0, "greater than or equal to 1"),
        ("epochs", 2.5, "integer"),
        ("epochs", True, "integer"),
        ("batch_size", 0, "found 0; expected a whole number of 1 or more, or `all`"),
        ("batch_size", 2.5, "found 2.5; expected a whole number of 1 or more, or `all`"),
        ("batch_size", True, "found True; expected a whole number of 1 or more, or `all`"),
        ("eval_batch_size", -1, "greater than or equal to 1"),
        ("train_measured", -1, "greater than or equal to 0"),
        ("shuffle", 1, "boolean"),
        ("drop_last", "no", "boolean"),
        ("batch_size", "some", "found 'some'; expected a whole number of 1 or more, or `all`"),
        ("keep_by", "accuracy", "'val_accuracy', 'val_balanced_accuracy' or 'val_loss'"),
        ("patience", -1, "greater than or equal to 0"),
        ("focal_gamma", -1.0, "greater than or equal to 0"),
        ("imbalance", "smote", "'none', 'class_weights', 'weighted_sampler' or 'focal'"),
        ("lr", 0, "greater than 0"),
        ("lr", -0.1, "greater than 0"),
        ("lr", float("nan"), "finite number"),
        ("lr", float("inf"), "finite number"),
        ("lr", "0.1", "number"),
        ("weight_decay", -0.1, "greater than or equal to 0"),
        ("weight_decay", 10.5, "less than or equal to 10"),
        ("lr", 1e300, "less than or equal to 1000000"),
        ("warmup", 1.0, "less than 1"),
        ("clip_norm", -0.1, "greater than or equal to 0"),
        ("ema_decay", 1.0, "less than 1"),
        ("label_smoothing", 1.0, "less than 1"),
        ("label_smoothing", -0.1, "greater than or equal to 0"),
        ("seed", -1, "greater than or equal to 0"),
        ("seed", 2**63, "less than 9223372036854775808"),
        ("device", "tpu", "'auto', 'cpu', 'cuda' or 'mps'"),
        ("precision", "float16", "'float32' or 'bfloat16'"),
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


def test_a_hash_may_be_written_in_capitals(tmp_path: Path) -> None:
    params = load_params(tmp_path, pretrained="w.pt", pretrained_sha256="0A" * 32)
    assert params.pretrained_sha256 == "0a" * 32


@pytest.mark.parametrize(
    ("section", "values", "key"),
    [
        ("mlp", {"hidden": 0}, "mlp.hidden"),
        ("cnn", {"base": 0, "stem": "pool", "dropout": 0.0}, "cnn.base"),
        ("cnn", {"base": 4, "stem": "patch", "dropout": 0.0}, "cnn.stem"),
        ("cnn", {"base": 4, "stem": "pool", "dropout": 1.0}, "cnn.dropout"),
        ("cnn", {"base": 4, "stem": "pool"}, "cnn.dropout"),
        ("mlp", {"hidden": 5, "hiden": 5}, "mlp.hiden"),
        ("sgd", {"momentum": 1.0, "dampening": 0.0, "nesterov": False}, "sgd.momentum"),
        ("rmsprop", {"alpha": 0.9, "eps": 0.0, "momentum": 0.0, "centered": False}, "rmsprop.eps"),
        ("adagrad", {"lr_decay": -1.0, "initial_accumulator_value": 0.0, "eps": 1e-9}, "adagrad.lr_decay"),
        ("adam", {"beta1": 1.0, "beta2": 0.9, "eps": 1e-9, "amsgrad": False}, "adam.beta1"),
        ("step", {"steps": 0, "factor": 0.1}, "step.steps"),
        ("step", {"steps": 1, "factor": 0.0}, "step.factor"),
        ("cosine", {"end": 1.1}, "cosine.end"),
        ("onecycle", {"pct_start": 1.0, "div_factor": 2.0, "final_div_factor": 2.0}, "onecycle.pct_start"),
        ("onecycle", {"pct_start": 0.3, "div_factor": 0.5, "final_div_factor": 2.0}, "onecycle.div_factor"),
        ("augment", AUGMENT | {"erasing": 2.0}, "augment.erasing"),
        ("augment", AUGMENT | {"scale_min": 2.0}, "augment"),
        ("augment", AUGMENT | {"flip": 0.5}, "augment.flip"),
        ("augment", {"crop_padding": 4}, "augment.degrees"),
    ],
)
def test_the_sections_inside_are_checked(tmp_path: Path, section: str, values: dict[str, Any], key: str) -> None:
    with pytest.raises(InputError, match=rf"params\.yaml:\d+: train\.{re.escape(key)}: "):
        load_params(tmp_path, **{section: values})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"sgd": {"momentum": 0.0, "dampening": 0.0, "nesterov": True}},
            r"train\.sgd: nesterov is true with a momentum of 0\.0 and a dampening of 0\.0; it needs a momentum above",
        ),
        (
            {"sgd": {"momentum": 0.9, "dampening": 0.5, "nesterov": True}},
            r"nesterov is true with a momentum of 0\.9 and a dampening of 0\.5; .* and no dampening",
        ),
        (
            {"warmup": 0.1, "schedule": "onecycle"},
            r"warmup is 0\.1 but schedule `onecycle` has a rise of its own \(onecycle\.pct_start\); set warmup to 0",
        ),
        (
            {"label_smoothing": 0.1, "loss": "bce"},
            r"label_smoothing is 0\.1 but the loss `bce` takes none; set it to 0, or loss to `cross_entropy`",
        ),
        ({"label_smoothing": 0.1, "imbalance": "focal"}, r"label_smoothing is 0\.1 but the loss `focal` takes none"),
        (
            {"freeze": "body"},
            r"freeze is body but pretrained is none: .*; name weights in pretrained, or set freeze",
        ),
        (
            {"pretrained_sha256": "0" * 64},
            r"pretrained_sha256 is given but pretrained is none; it goes with the path of a file: set it to ''",
        ),
        ({"loss": "bce", "imbalance": "focal"}, r"imbalance is focal but loss is `bce`; choose one of the two"),
    ],
)
def test_wishes_that_exclude_each_other_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_params(tmp_path, **changes)


@pytest.mark.parametrize(
    ("model", "choices"),
    [
        ("softmax", {}),
        ("simplenet", {}),
        ("mlp", {"hidden": 5}),
        ("cnn", {"base": 4, "stem": "pool", "dropout": 0.0}),
        ("resnet_small", {"width": 2, "stem": "full", "blocks": 1, "dropout": 0.0}),
        ("torchvision:resnet18", {"dropout": 0.0}),
        ("timm:resnet18", {"dropout": 0.0}),
    ],
)
def test_only_the_chosen_models_choices_count(model: str, choices: dict[str, Any]) -> None:
    assert make_params(model=model).choices == choices
