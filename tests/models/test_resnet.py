import pytest
import torch
from torch import nn

from imagepipe.core.errors import InputError
from imagepipe.models.bodies import build_body
from imagepipe.models.resnet import Block
from tests.models.made import RESNET, build, make_images


@pytest.mark.parametrize(("height", "width"), [(8, 8), (9, 14), (32, 32), (33, 8)])
def test_resnet_small_takes_every_size_from_8_on(height: int, width: int) -> None:
    assert build_body("resnet_small", 3, height, width, 5, RESNET)(make_images(2, 3, height, width)).shape == (2, 5)


@pytest.mark.parametrize(("height", "width"), [(7, 32), (32, 7), (1, 1)])
def test_images_too_small_for_it_are_refused(height: int, width: int) -> None:
    message = rf"train\.model: `resnet_small` needs at least 8×8 pixels, the images are {width}×{height}; use `mlp`"
    with pytest.raises(InputError, match=message):
        build_body("resnet_small", 1, height, width, 10, RESNET)


def test_sides_are_halved_twice_and_channels_doubled_twice() -> None:
    body = build("resnet_small", RESNET, side=32)
    images = make_images(2, 1, 32, 32)
    found = body.get_submodule("stem")(images)
    shapes = [found.shape]
    for stage in body.get_submodule("stages").children():
        found = stage(found)
        shapes.append(found.shape)
    assert shapes == [(2, 4, 32, 32), (2, 4, 32, 32), (2, 8, 16, 16), (2, 16, 8, 8)]


def test_a_pooling_stem_halves_the_sides_once_more() -> None:
    body = build("resnet_small", {**RESNET, "stem": "pool"}, side=32)
    found = body.get_submodule("stem")(make_images(2, 1, 32, 32))
    assert found.shape == (2, 4, 16, 16)
    assert body.get_submodule("stages")(found).shape == (2, 16, 4, 4)
    with pytest.raises(
        InputError, match=r"`resnet_small` needs at least 16×16 pixels, the images are 15×32; use `mlp`"
    ):
        build_body("resnet_small", 1, 32, 15, 10, {**RESNET, "stem": "pool"})


def test_a_block_without_convolutions_gives_its_positive_input() -> None:
    block = Block(2, 2, 1).eval()
    for weight in block.parameters():
        nn.init.zeros_(weight)
    images = torch.tensor([-1.0, 2.0]).view(1, 2, 1, 1).expand(1, 2, 3, 3)
    assert torch.equal(block(images), images.clamp(min=0))


@pytest.mark.parametrize(("blocks", "convolutions"), [(1, 1 + 6 + 2), (3, 1 + 18 + 2)])
def test_blocks_are_counted_per_stage(blocks: int, convolutions: int) -> None:
    body = build("resnet_small", {**RESNET, "blocks": blocks})
    assert sum(isinstance(module, nn.Conv2d) for module in body.modules()) == convolutions


def test_it_drops_out_while_training_only() -> None:
    body = build("resnet_small", {**RESNET, "dropout": 0.5})
    images = make_images(4, 1, 8, 8)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        assert not torch.equal(body(images), body(images))
    body.eval()
    assert torch.equal(body(images), body(images))
