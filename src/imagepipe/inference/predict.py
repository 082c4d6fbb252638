"""`imagepipe predict`: the classes of images that no manifest names, as many as there are, in the order of the inputs.

Worker processes read and convert images, and this one predicts batches of them; of both few are in memory at a time.
"""

import os
import stat
import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import joblib
import numpy as np
from numpy.typing import NDArray

from imagepipe.core.errors import EnvironmentFault, InputError
from imagepipe.core.files import write_blocks
from imagepipe.core.parallel import LocalEngine, start_fork_server
from imagepipe.core.progress import open_count
from imagepipe.data.conversion import bring_batches, read_conversion
from imagepipe.inference.inputs import Inputs
from imagepipe.inference.rows import Format, format_header, format_rows
from imagepipe.sources.names import show_name

if TYPE_CHECKING:
    from imagepipe.models.classifier import Classifier

Batch = tuple[list[str], NDArray[np.uint8]]  # paths, and pixels (B, H, W, C)


@dataclass(slots=True)
class Tally:
    """What became of the images: `predicted` by class, `unusable`, and how often which remark was made.

    `cut_off` is true where whoever read the rows has stopped.
    """

    predicted: Counter[str] = field(default_factory=Counter[str])
    unusable: int = 0
    remarks: Counter[str] = field(default_factory=Counter[str])
    cut_off: bool = False


def predict_images(
    model_path: Path, inputs: Inputs, out: Path | None, kind: Format, top: int, batch_size: int, jobs: int
) -> tuple[Tally, list[str]]:
    """[torch] Write a row for each image to `out`, or to standard output, and say on stderr which cannot be used.

    `jobs` processes convert images, as many as there are cores where it is 0. Returns the tally and the model's
    classes.

    Raises InputError where the model cannot be used, `top` is more than its classes, `out` is no plain file, or the
    inputs name no file at all; EnvironmentFault where the rows cannot be written.
    """
    start_fork_server()  # whose processes get ready while torch is imported
    # Threads that wait give way soon: spinning, they would take the cores from the processes that decode.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    from imagepipe.models.classifier import load_classifier

    model = load_classifier(model_path)
    classes = model.info.classes
    conversion = read_conversion(model.info.conversion, model.info.image, str(model_path))
    if top > len(classes):
        raise InputError(f"--top: {top}, but {model_path} has {len(classes)} classes.")
    if out is not None:
        check_plain(out)
    tally = Tally()
    engine = LocalEngine(jobs or joblib.cpu_count())
    with open_count("predict", shown=out is not None or not sys.stdout.isatty()) as advance:
        batches = bring_batches(inputs, conversion, engine, batch_size, partial(report_unusable, tally), tally.remarks)
        rows = predict_rows(model, expect_files(inputs, batches), kind, top, tally, advance)
        if out is None:
            tally.cut_off = not write_to_stdout(rows)
        else:
            write_blocks(out, rows)
    return tally, classes


def check_plain(out: Path) -> None:
    """Raise InputError where something stands at `out` that a file must not replace: a folder, a device, a FIFO."""
    if out.exists() and not stat.S_ISREG(out.stat().st_mode):
        raise InputError(f"--out: {out}: is no plain file; name another, or leave --out away for standard output.")


def report_unusable(tally: Tally, path: str, reason: str) -> None:
    """Count an image that cannot be used, and say which it is."""
    tally.unusable += 1
    print(f"{show_name(path)}: {reason}", file=sys.stderr)


def expect_files(inputs: Inputs, batches: Iterator[Batch]) -> Iterator[Batch]:
    """The batches of the inputs; raises InputError after the last where the inputs name no file at all."""
    yield from batches
    if not inputs.files:
        raise InputError("none of the paths names a file, so there is nothing to predict.")


def predict_rows(
    model: "Classifier",
    batches: Iterator[Batch],
    kind: Format,
    top: int,
    tally: Tally,
    advance: Callable[[int], None],
) -> Generator[bytes]:
    """The rows of each batch; what stands before them comes with the first, or where there is none at the end."""
    header = format_header(kind, top)
    for paths, pixels in batches:
        probabilities = predict_pixels(model, pixels, paths)
        tally.predicted.update(model.info.classes[index] for index in probabilities.argmax(axis=1).tolist())
        yield header + format_rows(kind, paths, model.info.classes, probabilities, top)
        header = b""
        advance(len(paths))
    yield header


def predict_pixels(model: "Classifier", pixels: NDArray[np.uint8], paths: Sequence[str]) -> NDArray[np.float64]:
    """[torch] The probabilities (B, classes) of uint8 pixels (B, H, W, C): the softmax of the model's float32 logits.

    Raises InputError, naming the path, where a logit is not a finite number, EnvironmentFault where memory does not
    suffice.
    """
    import torch

    from imagepipe.data.dataset import to_channels_first
    from imagepipe.models.runtime import report_memory

    with torch.inference_mode(), report_memory("images are predicted", "reduce --batch-size, or free memory"):
        logits = model(to_channels_first(pixels)).double()
        bad = (~logits.isfinite().all(dim=1)).nonzero().flatten()
    if len(bad):
        raise InputError(
            f"{show_name(paths[int(bad[0])])}: its logits are not finite numbers; the model is broken: train it again "
            "with a lower train.lr."
        )
    return torch.softmax(logits, dim=1).numpy()


def write_to_stdout(blocks: Generator[bytes]) -> bool:
    """Write as it comes; false where the reader has stopped, as `head` does when it has enough.

    Raises EnvironmentFault where it cannot be written.
    """
    with closing(blocks):  # so that the worker processes end when this does
        for block in blocks:
            try:
                sys.stdout.buffer.write(block)
                sys.stdout.buffer.flush()
            except BrokenPipeError:
                # What is left in Python's buffer goes nowhere, instead of raising this again at the very end.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                return False
            except OSError as error:
                raise EnvironmentFault(f"standard output cannot be written: {error.strerror or error}.") from error
    return True


def describe_tally(tally: Tally, classes: Sequence[str], notes: Sequence[str]) -> list[str]:
    """What to say at the end, in lines: the predicted classes in their order, what was remarkable, what was left."""
    total = tally.predicted.total()
    lines = [f"predict: {total} image{'' if total == 1 else 's'}"]
    lines += [f"  {name}: {tally.predicted[name]}" for name in classes if tally.predicted[name]]
    lines += [f"predict: {count} of them: {remark}" for remark, count in sorted(tally.remarks.items())]
    lines += [f"predict: {note}" for note in notes]
    if tally.unusable:
        lines.append(f"predict: could not be used: {tally.unusable}, each named above")
    return lines
