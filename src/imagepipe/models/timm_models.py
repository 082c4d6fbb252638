"""[torch] The models of timm (the extra `timm`), by name; timm is imported only where one is asked for."""

import importlib
from typing import Any

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

    Raises InputError for an unknown name, EnvironmentFault where timm is not installed.
    """
    timm = import_timm(name)
    if not timm.is_model(name):
        raise InputError(f"train.model: timm has no model `{name}`; {suggest_name(name, timm.list_models())}.")
    return timm.create_model(name, pretrained=False, num_classes=classes, in_chans=channels, drop_rate=dropout)
