"""Record keys from the paths of files: names that every file system can hold, each one once.

A key is the path itself where that is safe everywhere. What is not is percent-encoded, as in URLs; what is too long is
cut and gets a hash; what differs only in case or accents gets a hash too, since some disks cannot tell the two apart.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

from imagepipe.core.files import hash_bytes
from imagepipe.sources.names import fold_name

LONGEST = 200  # bytes of a path's component; with `.png` and what is added it stays below the usual 255
UNSAFE = re.compile(r'[\x00-\x1f\x7f<>:"|?*\\%]|^[. ]|[. ]$|[\ud800-\udfff]')
IMAGE_ENDING = re.compile(r"\.(png)$", re.IGNORECASE)  # `a` becomes the file `a.png`, beside which `a.png/` cannot be
# Names that Windows keeps for devices, with any ending (Microsoft: Naming Files, Paths, and Namespaces).
DEVICE = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?$", re.IGNORECASE)


def make_keys(paths: Sequence[tuple[str, str, str]]) -> list[str]:
    """A key for each (part, path below the part, whole path); where several parts hold one path, the part is in front.

    The whole paths are distinct.
    """
    safe = [make_safe(below) for _, below, _ in paths]
    shared = count_folded(safe)
    keys = [
        f"{part}/{key}" if part and shared[fold_name(key)] > 1 else key
        for (part, _, _), key in zip(paths, safe, strict=True)
    ]
    twins = count_folded(keys)
    return [
        f"{key}~{hash_path(path)[:8]}" if twins[fold_name(key)] > 1 else key
        for (_, _, path), key in zip(paths, keys, strict=True)
    ]


def count_folded(keys: Sequence[str]) -> Counter[str]:
    """How many keys there are that a disk may take for the same."""
    return Counter(map(fold_name, keys))


def make_safe(path: str) -> str:
    """The path with each component as every file system can hold it; no folder is called as an image file may be."""
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
