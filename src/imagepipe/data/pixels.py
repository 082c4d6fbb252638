"""Decoding images to arrays: one file when one is asked for, all of them in parallel when a loader wants them."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from imagepipe.core.errors import InputError
from imagepipe.core.parallel import map_chunks


def open_image(path: Path) -> Image.Image:
    """The decoded PIL image; raises InputError, naming the file, where it is absent or cannot be decoded."""
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such image; is the image folder the right one?") from error
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: cannot be decoded ({error}); run the split stage again.") from error


def read_pixels(path: Path) -> NDArray[np.uint8]:
    """The image as uint8 (H, W, C); C is 1 for grey, 3 for RGB, 4 for RGBA; other modes are an InputError."""
    image = open_image(path)
    if image.mode not in ("L", "RGB", "RGBA"):
        raise InputError(f"{path}: mode {image.mode}; expected L, RGB or RGBA. Give a transform that converts it.")
    pixels = np.asarray(image)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def read_all_pixels(paths: Sequence[Path], jobs: int) -> NDArray[np.uint8]:
    """All images (at least one) as one uint8 array (N, H, W, C), decoded by `jobs` processes.

    Raises InputError where an image cannot be decoded or differs in size from the first.
    """
    shape = read_pixels(paths[0]).shape
    pixels = np.empty((len(paths), *shape), np.uint8)
    filled = 0
    for part in map_chunks(partial(read_chunk, shape=shape), paths, jobs):
        pixels[filled : filled + len(part)] = part
        filled += len(part)
    return pixels


def read_chunk(paths: Sequence[Path], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Images of the shape (H, W, C) as uint8 (n, H, W, C); another shape is an InputError that names the file."""
    images: list[NDArray[np.uint8]] = []
    for path in paths:
        image = read_pixels(path)
        if image.shape != shape:
            raise InputError(
                f"{path}: shape (H, W, C) is {image.shape}, but the first image has {shape}; "
                "a batch needs images of one size."
            )
        images.append(image)
    return np.stack(images)
