"""Small images as files of their own, packed into shards, and of every kind that a model was not made from."""

import io
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


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)  # pyright: ignore[reportArgumentType]
    return buffer.getvalue()


def draw_noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, shape, dtype=np.uint8)


def turn(image: Image.Image, orientation: int) -> bytes:
    """A JPEG whose Exif says how it lies in the scene."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(image, "JPEG", exif=exif)


def make_usable() -> dict[str, bytes]:
    """Images by name that split takes with the default formats, of many modes and sizes."""
    rgb, rgba = Image.fromarray(draw_noise(20, 30, 3)), Image.fromarray(draw_noise(20, 30, 4))
    deep = np.random.default_rng(7).integers(0, 65_536, (20, 30), dtype=np.uint16)
    grey = Image.fromarray(draw_noise(8, 8))
    return {
        "as-it-is.png": encode(grey, "PNG"),
        "cmyk.jpg": encode(rgb.convert("CMYK"), "JPEG"),
        "deep.png": encode(Image.fromarray(deep), "PNG"),
        "interlaced.png": encode(grey, "PNG", dpi=(72, 72)),
        "large.jpg": encode(rgb, "JPEG"),
        "palette.png": encode(rgb.convert("P"), "PNG"),
        "rgb.png": encode(rgb, "PNG"),
        "rgba.png": encode(rgba, "PNG"),
        "small.png": encode(grey.resize((3, 5)), "PNG"),
        "turned.jpg": turn(rgb, 6),
        "wrongly-named.gif": encode(grey, "BMP"),
    }


def make_unusable() -> dict[str, tuple[bytes, str]]:
    """Images by name that cannot be used, and how the reason begins."""
    frames = encode(Image.new("L", (8, 8)), "GIF", save_all=True, append_images=[Image.new("L", (8, 8), 9)])
    png = encode(Image.fromarray(draw_noise(8, 8)), "PNG")
    place = png.index(b"IDAT")
    length = int.from_bytes(png[place - 4 : place])
    checksum = place + 4 + length
    damaged = png[:checksum] + bytes([png[checksum] ^ 1]) + png[checksum + 1 :]
    return {
        "cut.jpg": (encode(Image.fromarray(draw_noise(20, 30, 3)), "JPEG")[:400], "cannot be decoded: "),
        "damaged.png": (damaged, "cannot be decoded: broken PNG file"),
        "empty.png": (b"", "the file is empty"),
        "frames.gif": (frames, "is a GIF, which split.image.formats does not name"),
        "page.jpg": (b"<!DOCTYPE html><title>404</title>", "is not an image of a known format: it begins with"),
    }
