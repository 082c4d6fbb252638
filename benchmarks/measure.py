"""What the benchmarks share: repeats in alternation, memory of a command, the promises, and how all of it is said."""

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import psutil
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
PAUSE = 20  # times as long as a sample of the memory took, until the next: it must not slow what is measured
WIDTH = 120

Figures = dict[str, dict[str, float]]  # row → column → figure
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Promise:
    """A figure and the bounds that it has to keep; None where there is no bound."""

    name: str
    value: float
    at_least: float | None = None
    at_most: float | None = None

    @property
    def kept(self) -> bool:
        """Whether the figure lies within its bounds."""
        low, high = self.at_least, self.at_most
        return (low is None or self.value >= low) and (high is None or self.value <= high)

    def describe(self) -> str:
        """One line."""
        bounds = [
            f"{word} {bound:g}" for word, bound in (("≥", self.at_least), ("≤", self.at_most)) if bound is not None
        ]
        return f"{'kept' if self.kept else 'NOT KEPT':8}  {self.name}: {self.value:.4g} (promised: {', '.join(bounds)})"


@dataclass(frozen=True, slots=True)
class Contestant:
    """Something that is timed: `run` returns its own seconds, so that what comes before them does not count."""

    run: Callable[[], float]
    repeats: int


def alternate(contestants: Mapping[str, Contestant]) -> dict[str, list[float]]:
    """The seconds of each contestant's repeats, taken in turns (A B A B …), so that what slows the machine for a while
    slows all alike. Those with fewer repeats are spread over the rounds."""
    rounds = max(one.repeats for one in contestants.values())
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for done in range(rounds):
        for name, one in contestants.items():
            if (done + 1) * one.repeats // rounds > done * one.repeats // rounds:
                seconds[name].append(one.run())
    return seconds


def take_medians(seconds: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The median of each contestant's repeats."""
    return {name: statistics.median(values) for name, values in seconds.items()}


def take_best(medians: Mapping[str, float], prefix: str) -> tuple[str, float]:
    """The fastest of the contestants whose names begin with `prefix`, and its seconds."""
    return min(((name, value) for name, value in medians.items() if name.startswith(prefix)), key=lambda pair: pair[1])


def run_fresh(function: Callable[..., Result], *arguments: Any) -> Result:
    """`function` in a process that has done nothing before; what it uses is imported outside of what it times."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


@dataclass(frozen=True, slots=True)
class Run:
    """A command that ended well: what it printed, its seconds, and the largest sum of its processes' memory in MiB.

    Pages that processes share count once. `peak` counts all that is resident; `peak_unmapped` leaves out what is mapped
    from files (a cache, the code of libraries), which the system takes back whenever another wants the memory.
    """

    printed: str
    seconds: float
    peak: float
    peak_unmapped: float


def run_command(command: Sequence[str | Path], folder: Path, environment: Mapping[str, str] | None = None) -> Run:
    """Run a command in `folder`; where it fails, exit with what it said."""
    started = time.perf_counter()
    peak = peak_unmapped = 0.0
    with (
        (folder / ".printed").open("w+") as printed,
        subprocess.Popen(command, cwd=folder, env=environment, stdout=printed, stderr=subprocess.STDOUT) as process,
    ):
        while process.poll() is None:
            began = time.perf_counter()
            whole, unmapped = sum_memory(process.pid)
            peak, peak_unmapped = max(peak, whole), max(peak_unmapped, unmapped)
            time.sleep(PAUSE * (time.perf_counter() - began))
        seconds = time.perf_counter() - started
        printed.seek(0)
        text = printed.read()
    if process.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))} failed\n{text}")
    return Run(text, seconds, peak, peak_unmapped)


def sum_memory(pid: int) -> tuple[float, float]:
    """MiB that a process and all its children hold now: all of it, and without pages mapped from files."""
    try:
        parent = psutil.Process(pid)
        family = [measure_process(member) for member in (parent, *parent.children(recursive=True))]
    except (psutil.NoSuchProcess, ProcessLookupError, FileNotFoundError):
        return 0.0, 0.0  # one of them ended just now; the next sample is near
    return sum(whole for whole, _ in family), sum(unmapped for _, unmapped in family)


def measure_process(process: psutil.Process) -> tuple[float, float]:
    """MiB of one process, each page divided by the number of those who share it.

    Linux alone counts so; elsewhere both are what is resident, which can only be more.
    """
    if sys.platform != "linux":
        resident = process.memory_info().rss / 2**20
        return resident, resident
    lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text("ascii").splitlines()[1:]
    kilobytes = {name: int(value.split()[0]) for name, _, value in (line.partition(":") for line in lines)}
    return kilobytes.get("Pss", 0) / 1024, (kilobytes.get("Pss_Anon", 0) + kilobytes.get("Pss_Shmem", 0)) / 1024


def open_parser(description: str | None, data: str = "") -> argparse.ArgumentParser:
    """The options of every benchmark; `data` is what is expected below --data."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="a file for the figures and the promises")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared/data", help=data or "not used here")
    return parser


def print_figures(title: str, figures: Figures, places: int = 1) -> None:
    """A table with a row for each entry; a figure that is not there stays empty. The load average says how busy the
    machine was, with the benchmark itself in it."""
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[1]:.1f}"
    table = Table(title=f"{title} ({machine})")
    table.add_column("")
    columns = list(dict.fromkeys(column for row in figures.values() for column in row))
    for column in columns:
        table.add_column(column, justify="right")
    for name, row in figures.items():
        table.add_row(name, *(f"{row[column]:.{places}f}" if column in row else "" for column in columns))
    Console(width=WIDTH).print(table)


def finish(figures: Mapping[str, Figures], promises: Sequence[Promise], path: Path | None) -> NoReturn:
    """Say how the promises stand, write all of it to `path` as JSON, and exit 1 where one is not kept."""
    for promise in promises:
        print(promise.describe())
    if path:
        shown = [
            {
                "name": promise.name,
                "value": promise.value,
                "at_least": promise.at_least,
                "at_most": promise.at_most,
                "kept": promise.kept,
            }
            for promise in promises
        ]
        path.write_text(json.dumps({"figures": figures, "promises": shown}, indent=2) + "\n")
    sys.exit(0 if all(promise.kept for promise in promises) else 1)
