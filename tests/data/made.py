"""Small images as files of their own, and packed into shards."""

import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from imagepipe.core.hashes import hash_pixels
from imagepipe.core.slices import ImageFiles


def write_image(path: Path, pixels: NDArray[np.uint8]) -> None:
    """A PNG of uint8 pixels (H, W, C)."""
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(path)


def make_images(count: int, shapes: Sequence[tuple[int, int, int]] = ((2, 3, 1),)) -> list[NDArray[np.uint8]]:
    """Random pixels, all different; their shapes go round `shapes`."""
    generator = np.random.default_rng(count)
    return [generator.integers(0, 256, shapes[number % len(shapes)], dtype=np.uint8) for number in range(count)]


def write_images(folder: Path, images: Sequence[NDArray[np.uint8]]) -> ImageFiles:
    """The images as `0.png`, `1.png`, … in a new folder."""
    folder.mkdir()
    for number, pixels in enumerate(images):
        write_image(folder / f"{number}.png", pixels)
    return ImageFiles(folder, np.array([f"{number}.png" for number in range(len(images))], dtype=object))


def hash_images(images: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """The `pixel_sha256` of the images as (N, 32) uint8."""
    modes = {1: "L", 3: "RGB", 4: "RGBA"}
    digits = "".join(hash_pixels(modes[pixels.shape[2]], pixels) for pixels in images)
    return np.frombuffer(bytes.fromhex(digits), np.uint8).reshape(-1, 32)


def pack_shards(names: Sequence[str], images_dir: Path, shards_dir: Path, each: int) -> pd.DataFrame:
    """Tars of `each` images, made by Python's own tarfile in a new folder; the columns shard, offset and length."""
    shards_dir.mkdir()
    rows: list[tuple[str, int, int]] = []
    for first in range(0, len(names), each):
        path = shards_dir / f"{first:05d}.tar"
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for name in names[first : first + each]:
                tar.add(images_dir / name, name)
        with tarfile.open(path) as tar:
            rows += [(path.name, member.offset_data, member.size) for member in tar]
    return pd.DataFrame(rows, columns=["shard", "offset", "length"])
