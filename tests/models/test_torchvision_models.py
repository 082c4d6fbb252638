import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from imagepipe.core.errors import InputError
from imagepipe.models.bodies import build_body
from imagepipe.models.torchvision_models import (
    LEAST,
    MULTIPLE,
    build_torchvision,
    check_size,
    find_family,
    find_first_convolution,
    list_torchvision,
)
from imagepipe.models.weights import find_heads
from tests.models.made import build, make_images

# One of each family, and the least side that it takes.
SMALL = {
    "alexnet": 63,
    "convnext_tiny": 32,
    "densenet121": 29,
    "efficientnet_b0": 1,
    "efficientnet_v2_s": 1,
    "googlenet": 15,
    "inception_v3": 75,
    "maxvit_t": 224,
    "mnasnet0_5": 1,
    "mobilenet_v2": 1,
    "mobilenet_v3_small": 1,
    "regnet_x_400mf": 1,
    "regnet_y_400mf": 1,
    "resnet18": 1,
    "resnet50": 1,
    "resnext50_32x4d": 1,
    "shufflenet_v2_x0_5": 1,
    "squeezenet1_0": 21,
    "squeezenet1_1": 17,
    "swin_t": 4,
    "swin_v2_t": 4,
    "vgg11": 32,
    "vgg11_bn": 32,
    "vit_b_16": 16,
    "vit_b_32": 32,
    "wide_resnet50_2": 1,
}
SLOW = {
    "alexnet",
    "densenet121",
    "efficientnet_v2_s",
    "googlenet",
    "inception_v3",
    "maxvit_t",
    "regnet_x_400mf",
    "swin_t",
    "swin_v2_t",
    "vgg11",
    "vgg11_bn",
    "vit_b_16",
    "vit_b_32",
    "wide_resnet50_2",
}
NO_DROPOUT = ["convnext", "maxvit", "regnet", "resnet", "resnext", "shufflenet", "wide_resnet"]


def mark_slow(names: list[str]) -> list[Any]:
    return [pytest.param(name, marks=pytest.mark.slow if name in SLOW else (), id=name) for name in names]


@pytest.fixture(autouse=True)
def deterministic() -> Iterator[None]:
    """As the stages have it."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


def test_every_family_is_tried_here() -> None:
    families = {find_family([*LEAST, *MULTIPLE], name) for name in list_torchvision()}
    assert families == {*LEAST, *MULTIPLE}
    assert families - {find_family([*LEAST, *MULTIPLE], name) for name in SMALL} == {
        "vit_h_14",  # 632 million weights
        "vit_l_16",  # 304 million
        "vit_l_32",
    }


@pytest.mark.parametrize("name", mark_slow([*SMALL]))
def test_the_least_size_trains(name: str) -> None:
    side = SMALL[name]
    body = build(f"torchvision:{name}", {"dropout": 0.0}, channels=3, side=side, classes=7).train()
    assert body(make_images(2, 3, side, side)).shape == (2, 7)

    [head] = find_heads(body)
    # A vision transformer's starts at 0, and lets no gradient through; nor does the ReLU behind that of a SqueezeNet
    # where all logits are negative.
    nn.init.uniform_(head.get_parameter("weight"), generator=torch.Generator().manual_seed(0))
    side = side if side > 1 else 32  # of one pixel little gradient may be left
    nn.functional.cross_entropy(body(make_images(2, 3, side, side)), torch.tensor([0, 6])).backward()
    for layer in (find_first_convolution(body), head):
        gradient = layer.get_parameter("weight").grad
        assert gradient is not None
        assert torch.isfinite(gradient).all()
        assert gradient.abs().sum() > 0


@pytest.mark.parametrize(("name", "least"), [(name, least) for name, least in SMALL.items() if least > 1])
def test_one_pixel_less_is_refused_with_the_least_size(name: str, least: int) -> None:
    message = rf"^train\.model: `torchvision:{name}` needs .*at least {least}×{least}"
    for height, width in [(least - 1, least), (least, least - 1), (1, 1)]:
        with pytest.raises(
            InputError, match=rf"{message}.*; the images are {width}×{height}; set split\.image\.height"
        ):
            build_torchvision(name, 3, height, width, 7, 0.0)


@pytest.mark.parametrize(
    "name", mark_slow([name for name, least in SMALL.items() if least > 1 and find_family(LEAST, name)])
)
def test_the_table_asks_for_no_pixel_too_many(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    family = str(find_family(LEAST, name))
    side = LEAST[family] - 1
    monkeypatch.setitem(LEAST, family, 1)
    body = build(f"torchvision:{name}", {"dropout": 0.0}, channels=3, side=side).train()
    with pytest.raises(RuntimeError, match=r"too small|greater than actual input size"):
        body(make_images(2, 3, side, side))


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "squeezenet1_1", "swin_t"])
def test_images_need_not_be_square(name: str) -> None:
    assert build_body(f"torchvision:{name}", 3, 32, 45, 4, {"dropout": 0.0})(make_images(2, 3, 32, 45)).shape == (2, 4)


def test_a_vision_transformer_needs_square_images_of_whole_patches() -> None:
    assert build("torchvision:vit_b_32", {"dropout": 0.0}, side=64)(make_images(2, 1, 64, 64)).shape == (2, 10)
    with pytest.raises(
        InputError, match=r"`torchvision:vit_b_32` needs images as wide as they are high; the images are 96×64"
    ):
        build_torchvision("vit_b_32", 3, 64, 96, 7, 0.0)
    with pytest.raises(
        InputError, match=r"`torchvision:vit_h_14` needs sides that are a multiple of 14 pixels, at least 14×14"
    ):
        build_torchvision("vit_h_14", 3, 32, 32, 7, 0.0)


def test_maxvit_needs_whole_windows() -> None:
    check_size("maxvit_t", 448, 224)
    with pytest.raises(InputError, match=r"`torchvision:maxvit_t` needs sides that are a multiple of 224 pixels"):
        check_size("maxvit_t", 256, 256)


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "googlenet", "mobilenet_v3_small"])
def test_grey_is_seen_as_the_same_in_three_channels(name: str) -> None:
    grey, colour = (build(f"torchvision:{name}", {"dropout": 0.0}, channels, side=40).eval() for channels in (1, 3))
    if name == "googlenet":
        colour.transform_input = False
    images = make_images(2, 1, 40, 40)
    assert torch.allclose(grey(images), colour(images.expand(-1, 3, -1, -1)), atol=1e-4)
    assert find_first_convolution(grey).weight.shape[1] == 1


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_inceptions_bring_imagenets_constants_to_their_own(name: str) -> None:
    """(x - 0.5) / 0.5 of an x that ImageNet's constants have made 0, which is the mean."""
    body = build(f"torchvision:{name}", {"dropout": 0.0}, channels=3, side=75)
    changed = body._transform_input(torch.zeros(1, 3, 1, 1))  # type: ignore[operator] # pyright: ignore
    assert changed.flatten().tolist() == pytest.approx([2 * 0.485 - 1, 2 * 0.456 - 1, 2 * 0.406 - 1], abs=1e-6)


@pytest.mark.parametrize("name", mark_slow([*SMALL]))
def test_dropout_is_a_choice_where_the_family_has_one(name: str) -> None:
    least = SMALL[name]
    if any(name.startswith(family) for family in NO_DROPOUT):
        message = rf"train\.torchvision\.dropout: 0\.25, but `torchvision:{name}` has no dropout; set it to 0\.0"
        with pytest.raises(InputError, match=message):
            build_torchvision(name, 3, least, least, 7, 0.25)
        return
    body = build(f"torchvision:{name}", {"dropout": 0.25}, channels=3, side=least)
    rates = {module.p for module in body.modules() if isinstance(module, nn.Dropout)}
    rates |= {float(module.drop_rate) for module in body.modules() if hasattr(module, "drop_rate")}  # type: ignore
    assert rates - {0.0} == {0.25}


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    message = (
        "train.model: torchvision has no classification model `resnet19`; did you mean `resnet18`? Known: alexnet,"
    )
    with pytest.raises(InputError, match=re.escape(message)):
        build_torchvision("resnet19", 3, 32, 32, 7, 0.0)


def test_models_of_other_tasks_are_no_classification_models() -> None:
    with pytest.raises(InputError, match="no classification model `fcn_resnet50`"):
        build_torchvision("fcn_resnet50", 3, 64, 64, 7, 0.0)


def test_weights_depend_on_the_generator_alone() -> None:
    one, two = (build("torchvision:resnet18", {"dropout": 0.0}, side=32).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)
