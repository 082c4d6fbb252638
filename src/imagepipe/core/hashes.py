"""What bytes, files and pixels are known by: their SHA-256. Light, since worker processes import it."""

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def hash_bytes(data: bytes) -> str:
    """SHA-256 of `data` as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def hash_file(path: Path, algorithm: str = "sha256") -> str:
    """The file's digest in hexadecimal; reads it in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def hash_pixels(mode: str, pixels: NDArray[np.uint8]) -> str:
    """SHA-256 over `"<mode> <width>x<height>\\n"` and the uint8 pixels of shape (H, W) or (H, W, C), row by row."""
    return digest_pixels(mode, pixels).hex()


def digest_pixels(mode: str, pixels: NDArray[np.uint8]) -> bytes:
    """The 32 bytes of which `hash_pixels` gives the digits."""
    height, width = pixels.shape[:2]
    digest = hashlib.sha256(f"{mode} {width}x{height}\n".encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.digest()
