import sys

import pytest

from imagepipe.core.errors import EnvironmentFault, InputError
from imagepipe.models.bodies import build_body
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


def test_an_unknown_model_of_timms_is_refused_with_the_nearest() -> None:
    with pytest.raises(InputError, match=r"train\.model: timm has no model `resnet19`; did you mean `resnet1"):
        build_body("timm:resnet19", 3, 32, 32, 7, {"dropout": 0.0})
