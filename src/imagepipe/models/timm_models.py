"""[torch] The models of timm (the extra `timm`), by name; timm is imported only where one is asked for."""

import importlib
from typing import Any

import torch
from torch import nn

from imagepipe.core.errors import EnvironmentFault, InputError, suggest_name


def import_timm(name: str) -> Any:
    """The package timm, for the model `name`; raises EnvironmentFault where it is not installed."""
    try:
        return importlib.import_module("timm")
    except ModuleNotFoundError as error:
        raise EnvironmentFault(
            f"train.model is timm:{name}, but the package timm is not installed; run "
            "`pip install -c constraints.txt -e '.[timm]'` in the project's folder, or choose another model."
        ) from error


def build_timm(name: str, channels: int, height: int, width: int, classes: int, dropout: float) -> nn.Module:
    """The model that timm calls `name`, with timm's own initialisation; `dropout` is timm's `drop_rate`.

    Raises InputError for an unknown name and images that the model cannot take, EnvironmentFault where timm is not
    installed.
    """
    timm = import_timm(name)
    if not timm.is_model(name):
        raise InputError(f"train.model: timm has no model `{name}`; {suggest_name(name, timm.list_models())}.")
    body = timm.create_model(name, pretrained=False, num_classes=classes, in_chans=channels, drop_rate=dropout)
    check_size(body, name, channels, height, width)
    return body


def check_size(body: Any, name: str, channels: int, height: int, width: int) -> None:
    """Raise InputError where the network cannot take images of this size in pixels: it is tried on a black one."""
    try:
        with torch.no_grad():
            body.eval()(torch.zeros(1, channels, height, width))
    except (AssertionError, RuntimeError, ValueError) as error:
        _, high, wide = body.default_cfg["input_size"]
        said = str(error).partition("\n")[0]
        raise InputError(
            f"train.model: `timm:{name}` is made for images of {wide}×{high} and cannot take {width}×{height} pixels "
            f"({said}); set split.image.height and split.image.width, or choose another model."
        ) from error
    body.train()
