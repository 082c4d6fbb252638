import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np

from imagepipe.core.hashes import digest_pixels, hash_bytes, hash_file, hash_pixels

ABC_SHA256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-4, the first example
ABC_MD5 = "900150983cd24fb0d6963f7d28e17f72"  # RFC 1321, the test suite


def test_hashes_bytes() -> None:
    assert hash_bytes(b"abc") == ABC_SHA256


def test_hashes_a_file(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert hash_file(tmp_path / "abc") == ABC_SHA256
    assert hash_file(tmp_path / "abc", "md5") == ABC_MD5


def test_hashes_mode_size_and_pixels_row_by_row() -> None:
    pixels = np.array([[1, 2, 3], [4, 5, 6]], np.uint8)
    expected = hashlib.sha256(b"L 3x2\n\1\2\3\4\5\6")
    assert hash_pixels("L", pixels) == expected.hexdigest()
    assert digest_pixels("L", pixels) == expected.digest()


def test_hashes_pixels_and_not_their_place_in_memory() -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    assert hash_pixels("RGB", np.asfortranarray(pixels)) == hash_pixels("RGB", pixels)


def test_the_same_bytes_of_another_size_have_another_hash() -> None:
    pixels = np.arange(6, dtype=np.uint8)
    assert hash_pixels("L", pixels.reshape(2, 3)) != hash_pixels("L", pixels.reshape(3, 2))


def test_what_workers_import_is_light() -> None:
    """Each worker process starts anew, and pandas takes most of a second."""
    code = "import sys, imagepipe.data.images; print([name for name in ('torch', 'pandas') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
