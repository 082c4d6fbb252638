"""Every stage as the number of images grows, measured: time per image and peak memory, up to a million images.

    python benchmarks/growth.py [--most 1000000] [--json FILE]

The images are noise, 28×28 grey, as PNGs in the ten class folders of one plain tar, which is the source; split writes
shards, and train fits `softmax` for one epoch. The stages run as DVC runs them, in a scratch folder with an empty
cache; DVC's own time is not in it.

Time per image is given plain, and without start-up: less what the stage takes for 100 images, which is what grows
afterwards. Memory is that of a stage and all its processes together. What is mapped from files does not count: such
pages belong to the system's cache of files and are dropped when memory is short. So that this holds for all decoded
pixels, `run.memory_gigabytes` is 0 here; its default reads up to 4 GB of them into memory. What counts are anonymous
and shared pages, by smaps_rollup (Linux; elsewhere everything resident counts). Exits 1 where a promise is not kept:
time per image at most 1.3 times that of 10,000 images, and without start-up at most 1.3 times that of 100,000; 1.5 GB
of memory.
"""

import struct
import tempfile
import zlib
from pathlib import Path

import numpy as np
from measure import Figures, Promise, finish, open_parser, print_figures
from scratch import PLACES, make_project, run_stage

from imagepipe.core.shards import make_member

SIDE = 28
CLASSES = 10
START = 100  # images that take next to no time
FEW = 10_000
SOME = 100_000
SLOWER = 1.3  # times as long per image, at most
GIGABYTES = 1.5
AT_ONCE = 10_000  # images made at once


def write_tar(path: Path, count: int) -> None:
    """`count` PNGs of noise as members `class<n>/<number>.png`."""
    generator = np.random.default_rng(0)
    with path.open("wb") as file:
        for first in range(0, count, AT_ONCE):
            noise = generator.integers(0, 256, (min(AT_ONCE, count - first), SIDE, 1 + SIDE), dtype=np.uint8)
            noise[:, :, 0] = 0  # each row of a PNG begins with its filter: none
            for number, rows in enumerate(noise, start=first):
                file.write(make_member(f"class{number % CLASSES}/{number:07d}.png", pack_png(rows.tobytes())))
        file.write(bytes(1024))


def pack_png(rows: bytes) -> bytes:
    """A grey PNG of 8 bits (https://www.w3.org/TR/png/), not compressed; quicker than Pillow's."""
    header = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 0)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def measure_stages(count: int) -> Figures:
    """Of each stage, over `count` images: seconds, also per image, and peak GB without and with pages of files."""
    figures: Figures = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tar(folder / "images.tar", count)
        source = {"fetch.source": "folder", "fetch.path": str(folder / "images.tar"), "split.layout": "shards"}
        training = {"train.model": "softmax", "train.epochs": 1, "train.batch_size": 256, "run.memory_gigabytes": 0.0}
        make_project(folder, source | training)
        for stage in PLACES:
            run = run_stage(folder, stage)
            figures[stage] = {
                "s": run.seconds,
                "µs/image": run.seconds / count * 1e6,
                "peak GB": run.peak_unmapped * 2**20 / 1e9,
                "with files GB": run.peak * 2**20 / 1e9,
            }
    columns = ("s", "µs/image")
    figures["all"] = {column: sum(row[column] for row in figures.values()) for column in columns}
    return figures


def judge(found: dict[int, Figures], most: int) -> list[Promise]:
    """How the promises stand for `most` images."""
    promises: list[Promise] = []
    for stage in found[most]:
        few, many = found[FEW][stage]["µs/image"], found[most][stage]["µs/image"]
        name = f"{stage}: time per image, {most:,} over {FEW:,}"
        promises.append(Promise(name, many / few, at_most=SLOWER))
    if most > SOME:
        some, many = (found[count]["all"]["without start-up µs/image"] for count in (SOME, most))
        name = f"all: time per image without start-up, {most:,} over {SOME:,}"
        promises.append(Promise(name, many / some, at_most=SLOWER))
    for stage in PLACES:
        name = f"{stage}: peak of memory at {most:,}, GB"
        promises.append(Promise(name, found[most][stage]["peak GB"], at_most=GIGABYTES))
    return promises


def main() -> None:
    """Measure, print, and exit 1 where a promise is not kept."""
    parser = open_parser(__doc__)
    parser.add_argument("--most", type=int, default=1_000_000, help=f"more than {FEW}")
    arguments = parser.parse_args()
    if arguments.most <= FEW:
        parser.error(f"--most {arguments.most}; expected more than {FEW}")
    most: int = arguments.most
    found: dict[int, Figures] = {}
    for count in (START, FEW, *([SOME] if most > SOME else []), most):
        found[count] = measure_stages(count)
        for stage, row in found[count].items():
            row["without start-up µs/image"] = (row["s"] - found[START][stage]["s"]) / count * 1e6
        print_figures(f"{count:,} images", found[count], places=2)
    finish({str(count): figures for count, figures in found.items()}, judge(found, most), arguments.json)


if __name__ == "__main__":
    main()
