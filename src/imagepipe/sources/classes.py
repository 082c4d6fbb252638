"""`fetch.classes`: which classes are taken, in which order, and under which names."""

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from imagepipe.core.errors import InputError, list_findings, suggest_name
from imagepipe.core.tables import read_text_table
from imagepipe.sources.names import fold_name

COLUMNS = ("class", "as")


def read_chosen(path: Path) -> list[tuple[str, str]]:
    """The pairs (class of the source, its name here) in the order of the file; none takes all classes.

    Raises InputError where there is no such file, or it has other columns, a blank cell or a class twice.
    """
    if not path.is_file():
        raise InputError(
            f"params.yaml: fetch.classes: {path} is not there; expected a CSV with the columns {', '.join(COLUMNS)} "
            "(without rows it takes every class)."
        )
    table = read_text_table(path)
    if tuple(table.columns) != COLUMNS:
        raise InputError(f"{path}: has the columns {', '.join(table.columns)}; expected {', '.join(COLUMNS)}.")
    pairs = list(zip(table["class"].tolist(), table["as"].tolist(), strict=True))
    blank = [
        f"row {row}: {name!r} as {new!r}"
        for row, (name, new) in enumerate(pairs, start=2)
        if not (name.strip() and new.strip())
    ]
    if blank:
        raise InputError(list_findings(f"{path}: blank cells", blank, "Repeat the name in `as` to keep it."))
    doubled = sorted(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
    if doubled:
        raise InputError(list_findings(f"{path}: classes that stand there twice", [repr(name) for name in doubled]))
    return pairs


def check_chosen(path: Path, chosen: Sequence[tuple[str, str]], classes: Sequence[str]) -> None:
    """Raise InputError where a class that is chosen is not one of the source's."""
    known = set(classes)
    unknown = [f"{name!r}; {suggest_name(name, classes, shown=10)}" for name, _ in chosen if name not in known]
    if unknown:
        raise InputError(list_findings(f"{path}: classes that the source lacks", unknown))


def check_twins(classes: Sequence[str], chosen: Sequence[tuple[str, str]]) -> None:
    """Raise InputError where classes differ only in case, spaces or the form of their accents, and nobody said so.

    Said is what `fetch.classes` lists; what it leaves out altogether is gone, and no matter.
    """
    said = {name for name, _ in chosen}
    alike: dict[str, list[str]] = defaultdict(list)
    for name in classes:
        alike[fold_name(name.strip())].append(name)
    matter = [names for names in alike.values() if len(names) > 1 and (not said or not said.isdisjoint(names))]
    twins = [", ".join(map(show_class, names)) for names in matter if not said.issuperset(names)]
    if twins:
        raise InputError(
            list_findings(
                "classes that differ only in case, spaces or the form of their accents",
                twins,
                "Make them one, or list them (each under its own name, or under one) in the file that fetch.classes "
                "names.",
            )
        )


def show_class(name: str) -> str:
    """The name in quotes, with escapes where accents are written in the form that looks the same and is another."""
    return repr(name) if unicodedata.is_normalized("NFC", name) else ascii(name)
