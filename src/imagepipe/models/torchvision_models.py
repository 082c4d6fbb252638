"""[torch] The classification models of torchvision.models, by name, for images of any channels and number of classes.

torchvision takes seconds to import, so it is imported only where one of its models is asked for.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from imagepipe.core.errors import InputError, suggest_name

# The least side in pixels, by the beginning of the name (the longest that fits), measured with torchvision 0.29: below
# it a pooling or a convolution has nothing left to read. What stands at 1 takes every size; the paper's is 224 mostly,
# and far below it little is left to tell classes by.
LEAST = {
    "alexnet": 63,
    "convnext": 32,
    "densenet": 29,
    "efficientnet": 1,
    "googlenet": 15,
    "inception": 75,
    "mnasnet": 1,
    "mobilenet": 1,
    "regnet": 1,
    "resnet": 1,
    "resnext": 1,
    "shufflenet": 1,
    "squeezenet1_0": 21,
    "squeezenet1_1": 17,
    "swin": 4,
    "vgg": 32,
    "wide_resnet": 1,
}

# Where the sides have to be a multiple: of the patches of a vision transformer, of the windows of MaxViT (7 pixels of
# the last of its five halvings).
MULTIPLE = {"maxvit": 224, "vit_b_16": 16, "vit_b_32": 32, "vit_h_14": 14, "vit_l_16": 16, "vit_l_32": 32}

# What each family's constructor calls its dropout; the others have none.
DROPOUT = {
    "alexnet": "dropout",
    "densenet": "drop_rate",
    "efficientnet": "dropout",
    "googlenet": "dropout",
    "inception": "dropout",
    "mnasnet": "dropout",
    "mobilenet": "dropout",
    "squeezenet": "dropout",
    "swin": "dropout",
    "vgg": "dropout",
    "vit": "dropout",
}


def list_torchvision() -> list[str]:
    """The names of torchvision's classification models, sorted."""
    from torchvision import models

    return models.list_models(module=models)


def build_torchvision(name: str, channels: int, height: int, width: int, classes: int, dropout: float) -> nn.Module:
    """The model that torchvision calls `name`, with torchvision's own initialisation and a head for `classes`.

    Auxiliary heads are left out, and `dropout` takes the place of the family's own. For grey images the first
    convolution sums its weights over the channels, which is the model that sees the grey three times. Raises InputError
    for an unknown name, images that the model cannot take, and a dropout where the family has none.
    """
    from torchvision import models

    if name not in list_torchvision():
        raise InputError(
            f"train.model: torchvision has no classification model `{name}`; "
            f"{suggest_name(name, list_torchvision(), shown=100)}."
        )
    check_size(name, height, width)
    options = choose_options(name, channels, height, width) | choose_dropout(name, dropout)
    body: nn.Module = models.get_model(name, weights=None, num_classes=classes, **options)
    if channels != 3:
        take_grey(body)
    # Convolutions are faster so; the first hands the order on to all that follow.
    return body.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def check_size(name: str, height: int, width: int) -> None:
    """Raise InputError where the model `name` cannot take images of this size."""
    found = f"the images are {width}×{height}; set split.image.height and split.image.width, or choose another model."
    if family := find_family(MULTIPLE, name):
        multiple = MULTIPLE[family]
        if height % multiple or width % multiple:
            raise InputError(
                f"train.model: `torchvision:{name}` needs sides that are a multiple of {multiple} pixels, at least "
                f"{multiple}×{multiple}; {found}"
            )
        if name.startswith("vit") and height != width:
            raise InputError(f"train.model: `torchvision:{name}` needs images as wide as they are high; {found}")
        return
    family = find_family(LEAST, name)
    if family is None:
        raise InputError(f"train.model: the family of `torchvision:{name}` is not known here; choose another model.")
    least = LEAST[family]
    if min(height, width) < least:
        raise InputError(f"train.model: `torchvision:{name}` needs at least {least}×{least} pixels; {found}")


def choose_options(name: str, channels: int, height: int, width: int) -> dict[str, Any]:
    """What the constructor of `name` has to be told beside classes and dropout."""
    if name.startswith("vit"):
        return {"image_size": height}
    if name.startswith("maxvit"):
        return {"input_size": (height, width)}
    if name in ("googlenet", "inception_v3"):
        # Their pretrained weights expect other constants than ImageNet's; the model changes from the one to the other.
        return {"aux_logits": False, "init_weights": True, "transform_input": channels == 3}
    return {}


def choose_dropout(name: str, dropout: float) -> dict[str, float]:
    """The keyword argument that sets the dropout; InputError where the family has none and some is asked for."""
    if family := find_family(DROPOUT, name):
        return {DROPOUT[family]: dropout}
    if dropout:
        raise InputError(
            f"train.torchvision.dropout: {dropout}, but `torchvision:{name}` has no dropout; set it to 0.0, or choose "
            "another model."
        )
    return {}


def find_family(table: Iterable[str], name: str) -> str | None:
    """The longest word of `table` that `name` begins with; None where there is none."""
    return max((family for family in table if name.startswith(family)), key=len, default=None)


def take_grey(body: nn.Module) -> None:
    """Make the first convolution take one channel, with its weights summed over the channels that it had."""
    first = find_first_convolution(body)
    first.in_channels = 1
    first.weight = nn.Parameter(first.weight.detach().sum(dim=1, keepdim=True))


def find_first_convolution(body: nn.Module) -> nn.Conv2d:
    """The convolution that reads the images: the first, in the order in which the network was put together."""
    for module in body.modules():
        if isinstance(module, nn.Conv2d):
            return module
    raise InputError(f"train.model: {type(body).__name__} has no convolution.")
