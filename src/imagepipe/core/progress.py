"""How far a long loop over images is: a bar on a terminal, else a plain line now and then. Times are never stored."""

import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass

from rich import progress as bars
from rich.console import Console
from rich.text import Text

INTERVAL = 10.0  # seconds between two lines, and before the first: who is done by then says nothing


class RateColumn(bars.ProgressColumn):
    """Images per second, lately."""

    def render(self, task: bars.Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f} images/s" if speed else "")


def make_bar(shown: bool = True) -> bars.Progress:
    """A bar on stdout that is wiped at its end; it stays away where stdout is no terminal, or it is not to be shown."""
    return bars.Progress(
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.TaskProgressColumn(),
        RateColumn(),
        bars.TimeRemainingColumn(),
        transient=True,
        disable=not (shown and sys.stdout.isatty()),
    )


@dataclass(slots=True)
class Lines:
    """Counts images; prints a line to stdout at most every INTERVAL seconds of `clock`, with `what` as it is then."""

    what: Callable[[], str]
    total: int
    clock: Callable[[], float]
    started: float
    printed: float
    done: int = 0

    def advance(self, images: int) -> None:
        """Note that so many more are done."""
        self.done += images
        now = self.clock()
        if self.done and now - self.printed >= INTERVAL:
            self.printed = now
            print(f"{self.what()}: {describe_progress(self.done, self.total, now - self.started)}", flush=True)


@contextmanager
def open_progress(
    what: str, total: int, clock: Callable[[], float] = time.perf_counter
) -> Generator[Callable[[int], None]]:
    """A function to be told how many more of `total` images are done, each time that some are."""
    if not sys.stdout.isatty():
        now = clock()
        yield Lines(lambda: what, total, clock, started=now, printed=now).advance
        return
    with make_bar() as bar:
        task = bar.add_task(what, total=total)
        yield lambda images: bar.advance(task, images)


@contextmanager
def open_count(what: str, shown: bool) -> Generator[Callable[[int], None]]:
    """As `open_progress` where nobody knows how many images come, and stdout is for the results.

    The count is on stderr; it stays away where that is no terminal, or it is not to be shown.
    """
    columns = (bars.TextColumn("{task.description}: {task.completed:,.0f} images"), RateColumn())
    console = Console(stderr=True)
    with bars.Progress(*columns, console=console, transient=True, disable=not (shown and sys.stderr.isatty())) as bar:
        task = bar.add_task(what, total=None)
        yield lambda images: bar.advance(task, images)


def describe_progress(done: int, total: int, seconds: float) -> str:
    """How many of `total` images are done after some seconds, how fast, and how long the rest takes at that speed."""
    left = (total - done) * seconds / done
    return f"{done:,} of {total:,} images, {done / seconds:,.0f} images/s, {describe_time(left)} left"


def describe_time(seconds: float) -> str:
    """A time as people say it: in seconds below two minutes, in minutes below two hours, else in hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
