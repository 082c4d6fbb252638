"""How a run is followed: a bar on a terminal, else a line now and then; one plain line an epoch everywhere."""

import math
import time
from types import TracebackType

from imagepipe.core.progress import Lines, make_bar


class Progress:
    """Counts images; prints a line at the end of each epoch. Times are shown, never stored.

    Where it is not `shown`, it prints nothing: of several processes one is enough.
    """

    def __init__(self, epochs: int, images_per_epoch: int, shown: bool = True) -> None:
        now = time.perf_counter()
        total = epochs * images_per_epoch
        self.epochs = epochs
        self.images_per_epoch = images_per_epoch
        self.shown = shown
        self.images = 0
        self.epoch = 1
        self.loss = math.nan
        self.accuracy = ""
        self.started = now
        self.lines = Lines(lambda: f"train: {self.describe()}", total, time.perf_counter, started=now, printed=now)
        self.bar = make_bar(shown)
        self.task = self.bar.add_task("training", total=total)

    def __enter__(self) -> "Progress":
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def resume(self, epochs: int, updates: int) -> None:
        """Say that so many epochs and updates of an earlier process are taken up."""
        self.epoch = epochs + 1
        self.lines.total -= epochs * self.images_per_epoch
        self.bar.update(self.task, completed=epochs * self.images_per_epoch)
        self._print(f"train: goes on after epoch {epochs}, update {updates} of a run that was interrupted")

    def advance(self, images: int, loss: float) -> None:
        """Note one update."""
        self.images += images
        self.loss = loss
        if not self.bar.disable:
            self.bar.update(self.task, advance=images, description=self.describe())
        elif self.shown:
            self.lines.advance(images)

    def describe(self) -> str:
        """Where the run is."""
        return f"epoch {self.epoch}/{self.epochs}, loss {self.loss:.4f}{self.accuracy}"

    def finish_epoch(self, row: dict[str, int | float]) -> None:
        """Print the epoch's line."""
        seconds = time.perf_counter() - self.started
        self.epoch = int(row["epoch"]) + 1
        self.accuracy = f", val accuracy {100 * row['val_accuracy']:.2f} %"
        self._print(
            f"train: epoch {row['epoch']}/{self.epochs}  train loss {row['train_loss']:.4f}  "
            f"val loss {row['val_loss']:.4f}  val accuracy {100 * row['val_accuracy']:.2f} %  "
            f"({self.images / seconds:,.0f} images/s, {seconds:.1f} s)"
        )

    def _print(self, line: str) -> None:
        if self.shown:
            self.bar.console.print(line, highlight=False, soft_wrap=True)
