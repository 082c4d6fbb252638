"""What tests of several rooms share: where things are, small images, and records made of them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from imagepipe.sources.records import Record

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"


@pytest.fixture
def root() -> Path:
    """The root of the checkout."""
    return ROOT


@pytest.fixture
def mnist_dir() -> Path:
    """The folder with MNIST's four original files; the test is skipped where it is absent."""
    folder = SHARED / "mnist"
    if not (folder / "train-images-idx3-ubyte.gz").is_file():
        pytest.skip("needs MNIST's original files in ../shared/data/mnist")
    return folder


@pytest.fixture
def make_image() -> Callable[..., NDArray[np.uint8]]:
    """`make_image(number, height=4, width=5, channels=1)`: uint8 pixels that differ for every number below 256."""

    def make(number: int, height: int = 4, width: int = 5, channels: int = 1) -> NDArray[np.uint8]:
        shape = (height, width) if channels == 1 else (height, width, channels)
        image = np.zeros(shape, np.uint8)
        image.flat[0] = number
        image.flat[-1] = 255 - number
        return image

    return make


@pytest.fixture
def make_records(make_image: Callable[..., NDArray[np.uint8]]) -> Callable[..., list[Record]]:
    """`make_records({"cat": 3, "dog": 2}, part="")`: records of small images, numbered through all classes."""

    def make(counts: dict[str, int], part: str = "", first: int = 0) -> list[Record]:
        names = [name for name, count in counts.items() for _ in range(count)]
        return [
            Record(f"{number:05d}", name, part, "", f"made#{number}", make_image(number % 256))
            for number, name in enumerate(names, start=first)
        ]

    return make
