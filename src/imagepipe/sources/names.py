"""Names of files and folders: which are no data, which a disk takes for one, which are parts, how they are shown."""

import unicodedata
from collections import Counter
from collections.abc import Mapping

LITTER = ("thumbs.db", "desktop.ini")  # Windows leaves them in folders of images
MOST_NAME = 1024  # characters
PARTS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}


def name_part(text: str) -> str:
    """`train`, `val` or `test` for what people call them; '' for anything else."""
    return PARTS.get(text.strip().casefold(), "")


def escape(name: str) -> str:
    """The name as UTF-8 text; bytes that are none are shown as `\\xe9`."""
    if name.isascii():
        return name
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def is_text(name: str) -> bool:
    """Whether the name can be written as UTF-8."""
    return name == escape(name)


def is_litter(name: str) -> bool:
    """Whether a file or folder of this name is the system's, or hidden, and so no data."""
    return name.startswith(".") or name == "__MACOSX" or name.casefold() in LITTER


def find_litter(path: str) -> str:
    """The first part of a path that is litter, '' where none is."""
    return next(filter(is_litter, path.split("/")), "")


def describe_litter(left_out: Mapping[str, int]) -> list[str]:
    """One note on the files that were left out, by name and how often; none where none were."""
    counts: Counter[str] = Counter()
    for name, count in left_out.items():
        counts["._*" if name.startswith("._") else name] += count  # macOS makes one beside each file
    if not counts:
        return []
    shown = [
        show_name(name) if count == 1 else f"{show_name(name)} ({count})" for name, count in sorted(counts.items())
    ]
    return [f"left out {count_noun(counts.total(), 'file')} that no dataset needs: {shorten(shown)}"]


def fold_name(name: str) -> str:
    """`name` as a disk sees it that ignores case and Unicode form."""
    if name.isascii():
        folded = name.lower()
        return name if folded == name else folded  # not one more string for each of a million names
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def show_name(name: str) -> str:
    """`name` for a message: what cannot be printed, or was no UTF-8, is escaped."""
    return "".join(letter if letter.isprintable() else escape_letter(letter) for letter in name[:MOST_NAME])


def escape_letter(letter: str) -> str:
    """`\\x07`, `\\u2028`; a byte that Python's `surrogateescape` carries in a letter is shown as that byte."""
    if "\udc80" <= letter <= "\udcff":
        return f"\\x{ord(letter) - 0xDC00:02x}"
    return letter.encode("unicode_escape").decode("ascii")


def count_noun(number: int, noun: str) -> str:
    """`1 file`, `3 files`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def shorten(items: list[str], shown: int = 10) -> str:
    """The first items, and how many more there are."""
    return ", ".join(items[:shown]) + (f" and {len(items) - shown} more" if len(items) > shown else "")
