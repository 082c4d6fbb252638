"""How a run is followed: a bar on a terminal, one plain line an epoch everywhere."""

import time
from types import TracebackType

from imagepipe.core.progress import make_bar


class Progress:
    """Counts images; prints a line at the end of each epoch. Times are shown, never stored."""

    def __init__(self, epochs: int, images_per_epoch: int) -> None:
        self.epochs = epochs
        self.images = 0
        self.started = time.perf_counter()
        self.bar = make_bar()
        self.task = self.bar.add_task("training", total=epochs * images_per_epoch)

    def __enter__(self) -> "Progress":
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def advance(self, images: int, loss: float) -> None:
        """Note one update."""
        self.images += images
        self.bar.update(self.task, advance=images, description=f"loss {loss:.4f}")

    def finish_epoch(self, row: dict[str, int | float]) -> None:
        """Print the epoch's line."""
        seconds = time.perf_counter() - self.started
        self.bar.console.print(
            f"train: epoch {row['epoch']}/{self.epochs}  train loss {row['train_loss']:.4f}  "
            f"val loss {row['val_loss']:.4f}  val accuracy {100 * row['val_accuracy']:.2f} %  "
            f"({self.images / seconds:,.0f} images/s, {seconds:.1f} s)",
            highlight=False,
            soft_wrap=True,
        )
