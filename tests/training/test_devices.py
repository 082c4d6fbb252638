import pytest
import torch

from imagepipe.core.errors import EnvironmentFault
from imagepipe.training import devices
from imagepipe.training.devices import find_device, list_accelerators


def test_the_processor_is_always_there() -> None:
    assert find_device("cpu") == "cpu"


def test_auto_takes_what_there_is() -> None:
    assert find_device("auto").partition(":")[0] == [*list_accelerators(), "cpu"][0]


@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_an_absent_device_is_an_error_and_not_a_fallback(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(devices, "list_accelerators", list[str])
    message = (
        rf"^train\.device is {name}, but torch finds cpu only; set train\.device to one of these or to auto, or mend"
    )
    with pytest.raises(EnvironmentFault, match=message):
        find_device(name)


def test_a_gpu_goes_before_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "list_accelerators", lambda: ["cuda"])
    assert find_device("auto") == find_device("cuda") == "cuda:0"
    assert find_device("cuda", local_rank=1) == "cuda:1"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cuda_device_is_found() -> None:
    assert find_device("cuda") == "cuda:0"
