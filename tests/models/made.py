"""Networks and images for the tests of the models."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from imagepipe.models.bodies import build_body

Choices = Mapping[str, int | float | str]

POOL: Choices = {"base": 16, "stem": "pool", "dropout": 0.0}
STRIDE: Choices = {"base": 16, "stem": "stride", "dropout": 0.0}
RESNET: Choices = {"width": 4, "stem": "full", "blocks": 2, "dropout": 0.0}
KINDS: list[tuple[str, Choices]] = [
    ("softmax", {}),
    ("mlp", {"hidden": 100}),
    ("simplenet", {}),
    ("cnn", POOL),
    ("cnn", STRIDE),
    ("resnet_small", RESNET),
]
kinds = pytest.mark.parametrize(
    ("name", "choices"), KINDS, ids=["softmax", "mlp", "simplenet", "cnn-pool", "cnn-stride", "resnet_small"]
)


def build(name: str, choices: Choices, channels: int = 1, side: int = 8, classes: int = 10) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_body(name, channels, side, side, classes, choices)


def make_images(count: int, channels: int, height: int, width: int) -> Tensor:
    return torch.randn(count, channels, height, width, generator=torch.Generator().manual_seed(0))


def count_weights(model: nn.Module) -> int:
    return sum(weight.numel() for weight in model.parameters())
