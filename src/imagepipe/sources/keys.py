"""Record keys from the paths of files: names that every file system can hold, each one once.

A key is the path itself where that is safe everywhere. What is not is percent-encoded, as in URLs; what is too long is
cut and gets a hash; what differs only in case or accents gets a hash too, since some disks cannot tell the two apart.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from imagepipe.core.hashes import hash_bytes
from imagepipe.sources.names import fold_name

LONGEST = 200  # bytes of a path's component; with `.png` and what is added it stays below the usual 255
UNSAFE = re.compile(r'[\x00-\x1f\x7f<>:"|?*\\%]|^[. ]|[. ]$|[\ud800-\udfff]')
IMAGE_ENDING = re.compile(r"\.(png)$", re.IGNORECASE)  # `a` becomes the file `a.png`, beside which `a.png/` cannot be
# Names that Windows keeps for devices, with any ending (Microsoft: Naming Files, Paths, and Namespaces).
DEVICE = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?$", re.IGNORECASE)
# What needs no change, told at a glance: ASCII, which has one form only, without any of the above.
SAFE_LETTER = r'[^\x00-\x1f<>:"|?*\\%/\x7f-\U0010ffff]'
NO_DEVICE = r"(?!(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:[./]|\Z))"
SAFE_COMPONENT = rf"{NO_DEVICE}(?![. ]){SAFE_LETTER}{{1,{LONGEST}}}+(?<![. ])"
SAFE = re.compile(rf"(?:{SAFE_COMPONENT}(?<!\.png)/)*{SAFE_COMPONENT}", re.IGNORECASE | re.ASCII)


def make_keys(parts: Sequence[str], below: Sequence[str], paths: Sequence[str]) -> list[str]:
    """A key for each image, of its part, its path below the part and its whole path; where several parts hold one path,
    the part is in front.

    The whole paths are distinct. A key that is the path below the part is that very string.
    """
    keys = list(map(make_safe, below))
    for position in find_equal(keys, fold_name):  # as a disk may see them
        if parts[position]:
            keys[position] = f"{parts[position]}/{keys[position]}"
    for position in find_equal(keys, fold_name):
        keys[position] += f"~{hash_path(paths[position])[:8]}"
    return keys


def find_equal(names: Sequence[str], fold: Callable[[str], str] = str) -> list[int]:
    """The positions of names that are equal to another one once they are folded.

    Goes by hashes, which need a tenth of the memory, and looks twice where these are equal.
    """
    hashes = np.fromiter((hash(fold(name)) for name in names), np.int64, len(names))
    values, counts = np.unique(hashes, return_counts=True)
    alike: list[int] = np.flatnonzero(np.isin(hashes, values[counts > 1])).tolist()
    folded = Counter(fold(names[position]) for position in alike)
    return [position for position in alike if folded[fold(names[position])] > 1]


def make_safe(path: str) -> str:
    """The path with each component as every file system can hold it; no folder is called as an image file may be."""
    if SAFE.fullmatch(path):
        return path
    *folders, name = map(make_component_safe, path.split("/"))
    return "/".join([*(IMAGE_ENDING.sub(lambda found: encode(".") + found[1], folder) for folder in folders), name])


def make_component_safe(name: str) -> str:
    """One component: encoded where it is unsafe, cut where it is long."""
    encoded = UNSAFE.sub(lambda found: encode(found.group()), name)
    if DEVICE.match(encoded):
        encoded = encode(encoded[0]) + encoded[1:]
    if encoded != unicodedata.normalize("NFC", encoded):
        encoded = "".join(letter if letter.isascii() else encode(letter) for letter in encoded)
    data = encoded.encode("utf-8")
    if len(data) > LONGEST:
        encoded = f"{data[:LONGEST].decode('utf-8', 'ignore')}~{hash_path(name)[:16]}"
    return encoded


def encode(text: str) -> str:
    """Every byte of `text` as %XX."""
    return "".join(f"%{byte:02X}" for byte in text.encode("utf-8", "surrogateescape"))


def hash_path(path: str) -> str:
    """SHA-256 of a path, which need not be UTF-8."""
    return hash_bytes(path.encode("utf-8", "surrogateescape"))
