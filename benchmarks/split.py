"""The split stage, measured: MNIST's 70,000 images into shards and into single PNGs, from nothing and after changes.

    python benchmarks/split.py [--data FOLDER] [--repeats 3] [--json FILE]

The stage runs as DVC runs it, in scratch folders; starting Python, reading the source, manifests and index are in its
time, DVC's own is not. Beside it stand Pillow's encoder alone (the same images to PNG at level 6 in one thread, in
memory) and the disk alone (as many files of the size of such PNGs as it makes in one thread). Then follow runs after a
change: another seed, one per cent more images, one damaged byte (after which the bytes have to be those of before). All
are repeated in alternation, and medians count. Needs mnist/ below --data. Exits 1 where a promise is not kept.
"""

import io
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from measure import Contestant, Figures, Promise, alternate, finish, open_parser, print_figures, take_medians
from numpy.typing import NDArray
from PIL import Image
from scratch import NEEDED, change_params, make_project, require_mnist, run_stage

from imagepipe.core.config import read_yaml
from imagepipe.core.hashes import hash_file
from imagepipe.sources.idx import read_idx

COUNT = 70_000
FEWER = COUNT * 100 // 101
ENCODED = 10_000  # images that the encoder alone and the disk alone are timed on
PNG_BYTES = 300  # of a digit, about
SPEEDS = {"shards": 12_000, "single": 8_000}  # images per second from nothing
SEED_SECONDS = 5


def encode_alone(images: NDArray[np.uint8]) -> float:
    """Seconds of Pillow for `images` (N, H, W)."""
    started = time.perf_counter()
    for pixels in images:
        Image.fromarray(pixels).save(io.BytesIO(), "PNG", compress_level=6)
    return time.perf_counter() - started


def make_files(folder: Path) -> float:
    """Seconds of the disk for as many small files, each made and written and nothing else."""
    os.sync()
    folder.mkdir()
    started = time.perf_counter()
    for number in range(ENCODED):
        with (folder / f"{number:05d}.png").open("wb") as file:
            file.write(bytes(PNG_BYTES))
    seconds = time.perf_counter() - started
    shutil.rmtree(folder)
    return seconds


def time_split(folder: Path) -> float:
    """Seconds of the stage, while the disk is not busy with what was written or removed before."""
    os.sync()
    return run_stage(folder, "split").seconds


def split_anew(folder: Path) -> float:
    """Seconds from nothing."""
    for name in ("images", "manifests"):
        shutil.rmtree(folder / "data" / name, ignore_errors=True)
    return time_split(folder)


def split_other_seed(folder: Path) -> float:
    """Seconds after another seed."""
    seed = read_yaml(folder / "params.yaml")[0]["split"]["seed"]
    change_params(folder, {"split.seed": seed + 1})
    return time_split(folder)


def split_more(folder: Path) -> float:
    """Seconds after one per cent more images."""
    change_params(folder, {"split.first": FEWER})
    run_stage(folder, "split")
    change_params(folder, {"split.first": 0})
    return time_split(folder)


def split_damaged(folder: Path) -> float:
    """Seconds after a byte in the middle of one file has changed; exits where the stage does not mend it."""
    path = min(path for path in (folder / "data/images").rglob("*") if path.suffix in (".png", ".tar"))
    before = hash_file(path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)
    seconds = time_split(folder)
    if hash_file(path) != before:
        sys.exit(f"split did not mend {path.name}")
    return seconds


CHANGES: dict[str, Callable[[Path], float]] = {
    "from nothing s": split_anew,
    "new seed s": split_other_seed,
    "1 % more s": split_more,
    "damaged s": split_damaged,
}


def measure_layouts(data: Path, folder: Path, repeats: int) -> Figures:
    """A row for each layout."""
    images = read_idx(data / NEEDED["mnist"])[:ENCODED]
    contestants = {
        "encoder": Contestant(partial(encode_alone, images), repeats),
        "files": Contestant(partial(make_files, folder / "files"), repeats),
    }
    for layout in SPEEDS:
        changes = {"split.layout": layout, "fetch.source": "torchvision", "fetch.name": "MNIST"}
        make_project(folder / layout, changes | {"split.fractions.test": 0.0, "split.fractions.val": 0.05})
        change_params(folder / layout, {"split.fractions.train": 0.95, "run.mirror": str(data / "mnist")})
        run_stage(folder / layout, "fetch")
    for change, run in CHANGES.items():
        for layout in SPEEDS:
            contestants[f"{layout}: {change}"] = Contestant(partial(run, folder / layout), repeats)
    medians = take_medians(alternate(contestants))
    figures: Figures = {}
    for layout in SPEEDS:
        row = {change: medians[f"{layout}: {change}"] for change in CHANGES}
        speed, alone = COUNT / row["from nothing s"], ENCODED / medians["encoder"]
        beside = {"encoder alone, images/s": alone, "files alone, files/s": ENCODED / medians["files"]}
        figures[layout] = {"images/s": speed} | beside | {"× the encoder": speed / alone} | row
    return figures


def main() -> None:
    """Measure, print, and exit 1 where a promise is not kept."""
    parser = open_parser(__doc__, "mnist/")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    require_mnist(arguments.data)
    with tempfile.TemporaryDirectory() as folder:
        figures = measure_layouts(arguments.data.resolve(), Path(folder), arguments.repeats)
    print_figures(f"split of {COUNT} images", figures, places=2)
    promises: list[Promise] = []
    for layout, speed in SPEEDS.items():
        row = figures[layout]
        promises.append(Promise(f"{layout}: images/s from nothing", row["images/s"], at_least=speed))
        promises.append(Promise(f"{layout}: s after another seed", row["new seed s"], at_most=SEED_SECONDS))
    finish({"split": figures}, promises, arguments.json)


if __name__ == "__main__":
    main()
