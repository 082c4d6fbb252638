"""The pages under test: their code, the commands in them, and what they show below each."""

import re


def find_blocks(page: str, language: str) -> list[str]:
    """The content of each fenced block in `language`."""
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.DOTALL | re.MULTILINE)


def split_commands(block: str) -> list[tuple[str, str]]:
    """Each command of a console block, as a shell takes it, and what is shown below it."""
    parts = re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]
    return [(command, shown) for command, _, shown in (part.partition("\n") for part in parts)]


def shows(printed: str, shown: str) -> bool:
    """Whether a page shows what was printed: a line `…` stands for any lines; figures, Git's hashes and the widths of
    columns may differ."""
    wanted = "".join(
        r"(?:.*\n)*?" if line == "…" else f"{re.escape(mask(line))}\n" for line in shown.rstrip("\n").split("\n")
    )
    found = "".join(f"{mask(line)}\n" for line in printed.rstrip("\n").split("\n"))
    return re.fullmatch(wanted, found) is not None


def mask(line: str) -> str:
    """A line without what another machine or another moment changes."""
    line = re.sub(r"\b[0-9a-f]{7}\b|[-+]?\d+(\.\d+)?(e[-+]\d+)?", "#", line)
    line = re.sub(r"\b[AP]M\b", "M", line)
    return re.sub(r"[-─━]{2,}", "--", re.sub(r"\s+", " ", line)).strip()
