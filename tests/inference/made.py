"""A model file of three classes for 8×8 grey images, and images of every kind that it was not made from."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from imagepipe.models.classifier import Classifier, build_classifier, save_classifier
from tests.made import make_conversion, make_model_info


def make_model(path: Path, **conversion: int | str) -> Classifier:
    """A softmax model, saved, with `split.image` as in recipes/base.yaml but for these changes."""
    info = make_model_info().model_copy(update={"conversion": make_conversion(**conversion)})
    model = build_classifier(info, 1).eval()
    save_classifier(model, path)
    return model


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
