import sys

import pytest
import torch

from imagepipe.core.errors import EnvironmentFault, InputError
from imagepipe.models.bodies import build_body
from imagepipe.models.timm_models import import_timm
from imagepipe.models.torchvision_models import find_first_convolution
from tests.models.made import build, make_images


def test_without_timm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    message = (
        r"^train\.model is timm:resnet18, but the package timm is not installed; run "
        r"`pip install -c constraints\.txt -e '\.\[timm\]'` in the project's folder, or choose another model\.$"
    )
    with pytest.raises(EnvironmentFault, match=message):
        build_body("timm:resnet18", 3, 32, 32, 7, {"dropout": 0.0})


@pytest.mark.parametrize("channels", [1, 3])
def test_a_model_of_timms_takes_our_images(channels: int) -> None:
    body = build("timm:resnet18", {"dropout": 0.0}, channels, side=32, classes=7)
    assert body(make_images(2, channels, 32, 32)).shape == (2, 7)
    assert find_first_convolution(body).in_channels == channels


@pytest.mark.parametrize(
    ("name", "made_for", "side", "said"),
    [
        ("vit_tiny_patch16_224", "224×224", 8, r"Input height \(8\) doesn't match model \(224\)\."),
        ("inception_v3", "299×299", 32, "Calculated padded input size per channel: .*"),
    ],
)
def test_a_model_of_timms_that_cannot_take_the_size_is_refused(name: str, made_for: str, side: int, said: str) -> None:
    message = (
        rf"^train\.model: `timm:{name}` is made for images of {made_for} and cannot take {side}×{side} pixels "
        rf"\({said}\); set split\.image\.height and split\.image\.width, or choose another model\.$"
    )
    with pytest.raises(InputError, match=message):
        build(f"timm:{name}", {"dropout": 0.0}, channels=3, side=side)


def test_trying_the_size_leaves_a_model_of_timms_as_it_was_made() -> None:
    timm = import_timm("resnet18")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        expected = timm.create_model("resnet18", num_classes=10, in_chans=1).state_dict()
    body = build("timm:resnet18", {"dropout": 0.0}, side=32)
    assert body.training
    assert all(torch.equal(tensor, expected[key]) for key, tensor in body.state_dict().items())


def test_an_unknown_model_of_timms_is_refused_with_the_nearest() -> None:
    with pytest.raises(InputError, match=r"train\.model: timm has no model `resnet19`; did you mean `resnet1"):
        build_body("timm:resnet19", 3, 32, 32, 7, {"dropout": 0.0})
