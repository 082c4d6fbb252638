"""[torch] Models by name. To add one: a function or class in a file here, and one line in MODELS.

Each entry takes (channels, height, width, classes) and its own choices, and returns a module from float32
(B, channels, height, width) to logits (B, classes).
"""

from collections.abc import Callable, Mapping

from torch import nn

from imagepipe.core.errors import InputError, suggest_name
from imagepipe.models.cnn import Cnn
from imagepipe.models.linear import Mlp, SimpleNet, Softmax

MODELS: dict[str, Callable[..., nn.Module]] = {
    "softmax": Softmax,
    "mlp": Mlp,
    "simplenet": SimpleNet,
    "cnn": Cnn,
}


def build_body(
    name: str, channels: int, height: int, width: int, classes: int, choices: Mapping[str, int | float | str]
) -> nn.Module:
    """The network called `name`, with PyTorch's own initialisation from the global generator as it stands.

    Raises InputError for an unknown name, or an image that is too small for the network.
    """
    if name not in MODELS:
        raise InputError(f"train.model: unknown model `{name}`; {suggest_name(name, MODELS)}.")
    return MODELS[name](channels, height, width, classes, **choices)
