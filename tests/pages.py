"""The pages under test: their code, the commands in them, and what they show below each."""

import re

DECIMAL = re.compile(r"-?\d+\.\d+(?:e[-+]\d+)?")


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


def mask_arithmetic(output: str) -> str:
    """Without the digits that the last bits of floating-point sums decide: another processor gives others."""
    return re.sub(r"\b0\.\d{6}\b|\b\d\.\de-\d\d\b", "#", output)


def mask_figures(output: str) -> str:
    """The runs, the verdict and the params without their figures; classes and images differ by processor."""
    before, _, _ = output.partition("| class |")
    return re.sub(r"[-+]?\d+(\.\d+)?", "#", before)


def mask_decimals(page: str) -> str:
    """Without numbers that have a decimal point, and with one space where there are several."""
    return re.sub(" +", " ", DECIMAL.sub("#", page))


def list_decimals(page: str) -> list[float]:
    """The numbers that `mask_decimals` masks."""
    return [float(number) for number in DECIMAL.findall(page)]
