"""`imagepipe predict`, measured: MNIST's images as PNGs in folders of 1,000, some and six times as many.

    python benchmarks/predict.py [--data FOLDER] [--repeats 3] [--json FILE]

The network is that of the recipe `mnist`, with the weights that it starts from, which take as long as trained ones. The
command runs as users run it. What starting takes (Python, torch, the worker processes) is in the time of both runs, so
the speed is what the larger one has more, by the seconds that it takes longer. Memory is that of all its processes
together, without what is mapped from files. Both are repeated in alternation, and medians count. Needs mnist/ below
--data. Exits 1 where a promise is not kept.
"""

import statistics
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
from measure import ROOT, Contestant, Figures, Promise, Run, alternate, finish, open_parser, print_figures, run_command
from numpy.typing import NDArray
from scratch import NEEDED, require_mnist

from imagepipe.core.config import load_section
from imagepipe.core.manifest import ImageInfo
from imagepipe.models.classifier import FORMAT, ModelInfo, build_classifier, save_classifier
from imagepipe.prepare.images import encode_png
from imagepipe.prepare.params import SplitParams
from imagepipe.sources.idx import read_idx

SOME, ALL = 10_000, 60_000
FOLDER = 1_000
SPEED = 5_000  # images per second, once started
GROWTH = 1.1  # of the memory, for six times as many images


def write_images(images: NDArray[np.uint8], folder: Path) -> None:
    """PNGs of uint8 images (N, H, W) below `folder`: the first SOME in `some`, the others in `more`."""
    for number, pixels in enumerate(images):
        path = folder / ("some" if number < SOME else "more") / str(number // FOLDER) / f"{number:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_png(pixels))


def write_model(path: Path) -> None:
    """The network of the recipe `mnist`."""
    image = load_section("split", SplitParams, ROOT / "recipes/base.yaml").image
    info = ModelInfo(
        format=FORMAT,
        model="cnn",
        choices={"base": 16, "stem": "stride", "dropout": 0.0},
        normalize="unit",
        classes=[str(digit) for digit in range(10)],
        image=ImageInfo(mode="L", width=28, height=28),
        mean=[0.5],
        std=[0.5],
        manifests={},
        conversion=image.model_dump(),
    )
    save_classifier(build_classifier(info, seed=1), path)


def predict(folder: Path, names: list[str], done: list[Run]) -> float:
    """Seconds of the command for the images below the folders `names`; notes the run in `done`."""
    command = [Path(sys.executable).parent / "imagepipe", "predict", *names, "--model", "model.safetensors"]
    done.append(run_command([*command, "--out", "rows.csv"], folder))
    return done[-1].seconds


def measure(data: Path, folder: Path, repeats: int) -> Figures:
    """A row for each number of images."""
    write_images(read_idx(data / NEEDED["mnist"])[:ALL], folder)
    write_model(folder / "model.safetensors")
    runs: dict[int, list[Run]] = {SOME: [], ALL: []}
    names = {SOME: ["some"], ALL: ["some", "more"]}
    alternate({str(count): Contestant(partial(predict, folder, names[count], runs[count]), repeats) for count in runs})
    figures: Figures = {}
    for count, done in runs.items():
        seconds = statistics.median(run.seconds for run in done)
        figures[f"{count:,}"] = {"s": seconds, "MiB": statistics.median(run.peak_unmapped for run in done)}
    longer = figures[f"{ALL:,}"]["s"] - figures[f"{SOME:,}"]["s"]
    figures[f"{ALL:,}"]["images/s, once started"] = (ALL - SOME) / longer
    return figures


def main() -> None:
    """Measure, print, and exit 1 where a promise is not kept."""
    parser = open_parser(__doc__, "mnist/")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    require_mnist(arguments.data)
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(arguments.data.resolve(), Path(folder), arguments.repeats)
    print_figures("predict", figures)
    some, everything = figures[f"{SOME:,}"], figures[f"{ALL:,}"]
    promises = [
        Promise("images/s, once started", everything["images/s, once started"], at_least=SPEED),
        Promise(f"memory of {ALL:,} images by that of {SOME:,}", everything["MiB"] / some["MiB"], at_most=GROWTH),
    ]
    finish({"predict": figures}, promises, arguments.json)


if __name__ == "__main__":
    main()
