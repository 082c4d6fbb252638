import pytest
import torch

from imagepipe.core.errors import InputError
from imagepipe.models.bodies import build_body
from tests.models.made import POOL, STRIDE, Choices, build, make_images


@pytest.mark.parametrize("choices", [POOL, STRIDE], ids=["pool", "stride"])
@pytest.mark.parametrize("height", range(8, 18))
def test_cnn_takes_every_size_from_8_on(choices: Choices, height: int) -> None:
    body = build_body("cnn", 1, height, 25 - height, 3, choices)
    assert body(make_images(2, 1, height, 25 - height)).shape == (2, 3)


def test_cnn_drops_out_while_training_only() -> None:
    body = build("cnn", {**POOL, "dropout": 0.5})
    images = make_images(4, 1, 8, 8)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        assert not torch.equal(body(images), body(images))
    body.eval()
    assert torch.equal(body(images), body(images))


@pytest.mark.parametrize(("height", "width"), [(7, 28), (28, 7), (1, 1)])
def test_images_too_small_for_cnn_are_refused(height: int, width: int) -> None:
    message = rf"train\.model: `cnn` needs at least 8×8 pixels, the images are {width}×{height}; use `mlp`"
    with pytest.raises(InputError, match=message):
        build_body("cnn", 1, height, width, 10, POOL)
