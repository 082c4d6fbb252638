"""What tests of the documents share: blocks out of a page, and output without the digits that a processor decides."""

import re

DECIMAL = re.compile(r"-?\d+\.\d+(?:e[-+]\d+)?")


def find_blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


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
