"""fetch and split, measured: seconds for a part of CIFAR-10 in a zip, and peak memory as the number of images grows.

    python benchmarks/data_half.py [--data FOLDER] [--few 1000] [--many 20000] [--json FILE]

The stages run as DVC runs them, in scratch folders; DVC's own time is not in it. Memory is that of a stage and all its
processes together. The images for it are noise, 128×128 RGB, so that all of them decoded would take 49 kB each. Exits 1
where a promise is not kept: 15 s for the zip on two cores, and a peak that grows by less than a tenth of what the
further images would take.
"""

import tempfile
from pathlib import Path

import numpy as np
from measure import Figures, Promise, finish, open_parser, print_figures
from PIL import Image
from scratch import NEEDED, make_project, run_stage

SECONDS = 15.0
SIDE = 128
DECODED = SIDE * SIDE * 3 / 2**20  # MiB of one image


def run_data_half(data: Path) -> dict[str, float]:
    """fetch and split over `data` in a scratch folder: seconds, and peak MiB, of each."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_project(folder, {"fetch.source": "folder", "fetch.path": str(data), "split.leaks": "keep"})
        fetch, split, again = (run_stage(folder, stage) for stage in ("fetch", "split", "split"))
    return {
        "fetch s": fetch.seconds,
        "split s": split.seconds,
        "split again s": again.seconds,
        "fetch peak MiB": fetch.peak,
        "split peak MiB": split.peak,
    }


def write_noise(folder: Path, count: int) -> None:
    """`count` PNGs of noise in two class folders."""
    generator = np.random.default_rng(0)
    for number in range(count):
        path = folder / f"class{number % 2}" / f"{number:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path, compress_level=0)


def main() -> None:
    """Measure, print, and exit 1 where a promise is not kept."""
    parser = open_parser(__doc__, NEEDED["cifar10"])
    parser.add_argument("--few", type=int, default=1000)
    parser.add_argument("--many", type=int, default=20_000)
    arguments = parser.parse_args()
    figures: Figures = {}
    promises: list[Promise] = []
    zipped = arguments.data / NEEDED["cifar10"]
    if zipped.is_file():
        row = figures[zipped.name] = run_data_half(zipped.resolve())
        promises.append(Promise("fetch and split of the zip, s", row["fetch s"] + row["split s"], at_most=SECONDS))
    else:
        print(f"{zipped}: not there; the time for CIFAR-10 is not measured")
    for count in (arguments.few, arguments.many):
        with tempfile.TemporaryDirectory() as folder:
            write_noise(Path(folder), count)
            figures[f"{count} images"] = run_data_half(Path(folder))
    few, many = figures[f"{arguments.few} images"], figures[f"{arguments.many} images"]
    growth = max(many[name] - few[name] for name in ("fetch peak MiB", "split peak MiB"))
    decoded = (arguments.many - arguments.few) * DECODED
    print_figures("fetch and split", figures)
    promises.append(Promise(f"growth of the peak for {decoded:.0f} MiB of pixels, MiB", growth, at_most=decoded / 10))
    finish({"fetch and split": figures}, promises, arguments.json)


if __name__ == "__main__":
    main()
