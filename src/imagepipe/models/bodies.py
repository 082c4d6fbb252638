"""[torch] Networks by name. To add one: a function or class in a file here, and one line in MODELS.

Each entry takes (channels, height, width, classes) by position and its own choices by name, and returns a module from
float32 (B, channels, height, width) to logits (B, classes). An entry of FAMILIES takes first what stands behind the
colon of the name.
"""

from collections.abc import Callable, Mapping

from torch import nn

from imagepipe.core.errors import InputError, suggest_name
from imagepipe.models.cnn import Cnn
from imagepipe.models.linear import Mlp, SimpleNet, Softmax
from imagepipe.models.resnet import ResnetSmall
from imagepipe.models.timm_models import build_timm
from imagepipe.models.torchvision_models import build_torchvision, list_torchvision

MODELS: dict[str, Callable[..., nn.Module]] = {
    "softmax": Softmax,
    "mlp": Mlp,
    "simplenet": SimpleNet,
    "cnn": Cnn,
    "resnet_small": ResnetSmall,
}

FAMILIES: dict[str, Callable[..., nn.Module]] = {
    "torchvision": build_torchvision,
    "timm": build_timm,
}


def build_body(
    name: str, channels: int, height: int, width: int, classes: int, choices: Mapping[str, int | float | str]
) -> nn.Module:
    """The network called `name`, with its own initialisation from the global generator as it stands.

    Raises InputError for an unknown name, or an image that is too small for the network, EnvironmentFault where the
    package that has it is not installed.
    """
    family, colon, rest = name.partition(":")
    if colon and family in FAMILIES:
        return FAMILIES[family](rest, channels, height, width, classes, **choices)
    if name not in MODELS:
        raise InputError(f"train.model: unknown model `{name}`; {suggest_model(name)}.")
    return MODELS[name](channels, height, width, classes, **choices)


def suggest_model(unknown: str) -> str:
    """As `suggest_name`, over all that `train.model` may say; a model of torchvision's needs its family in front."""
    known = [*MODELS, *(f"{family}:<name>" for family in FAMILIES)]
    full = f"torchvision:{unknown}"
    return suggest_name(full, [*known, full]) if unknown in list_torchvision() else suggest_name(unknown, known)
