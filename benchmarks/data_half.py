"""fetch and split, measured: seconds for a part of CIFAR-10 in a zip, and peak memory as the number of images grows.

    python benchmarks/data_half.py [--cifar ZIP] [--few 1000] [--many 20000] [--json FILE]

The stages run as DVC runs them, in scratch folders; DVC's own time is not in it. Memory is that of a stage and all its
processes together, sampled every 20 ms (resident, so that pages which they share count for each). The images for it are
noise, 128×128 RGB, so that all of them decoded would take 49 kB each. Exits 1 where a promise is not kept: 15 s for the
zip on two cores, and a peak that grows by less than a tenth of what the further images would take.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
from dvc.utils.serialize import modify_yaml
from PIL import Image
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 15.0
SIDE = 128
DECODED = SIDE * SIDE * 3 / 2**20  # MiB of one image


def make_project(folder: Path, data: Path) -> None:
    """What the two stages need: params of the base, with the folder or archive `data` as the source."""
    (folder / "data/classes").mkdir(parents=True)
    shutil.copyfile(ROOT / "recipes/base.yaml", folder / "params.yaml")
    shutil.copyfile(ROOT / "data/classes/all.csv", folder / "data/classes/all.csv")
    with modify_yaml(folder / "params.yaml") as params:
        params["fetch"] |= {"source": "folder", "path": str(data)}
        params["split"]["leaks"] = "keep"


def run_stage(folder: Path, stage: str, *arguments: str) -> tuple[float, float]:
    """Seconds of a stage, and the largest sum of its processes' resident memory in MiB."""
    started = time.perf_counter()
    command = [sys.executable, str(ROOT / "stages" / f"{stage}.py"), *arguments]
    peak = 0.0
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        whole = psutil.Process(process.pid)
        while process.poll() is None:
            try:
                family = [whole, *whole.children(recursive=True)]
                peak = max(peak, sum(member.memory_info().rss for member in family) / 2**20)
            except psutil.NoSuchProcess:
                pass  # one of them ended just now; the next sample is 20 ms away
            time.sleep(0.02)
        _, errors = process.communicate()
    if process.returncode != 0:
        sys.exit(f"{stage} failed\n{errors}")
    return time.perf_counter() - started, peak


def run_data_half(data: Path) -> dict[str, float]:
    """fetch and split over `data` in a scratch folder: seconds, and peak MiB, of each."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_project(folder, data)
        fetch = run_stage(folder, "fetch", str(data), "data/raw")
        split = run_stage(folder, "split", str(data), "data/raw", "data/images", "data/manifests")
        again = run_stage(folder, "split", str(data), "data/raw", "data/images", "data/manifests")
    return {
        "fetch_seconds": fetch[0],
        "split_seconds": split[0],
        "split_again_seconds": again[0],
        "fetch_peak": fetch[1],
        "split_peak": split[1],
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar", type=Path, default=ROOT.parent / "shared/data/cifar10/cifar10-11k.zip")
    parser.add_argument("--few", type=int, default=1000)
    parser.add_argument("--many", type=int, default=20_000)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found: dict[str, dict[str, float]] = {}
    if arguments.cifar.is_file():
        found["cifar10-11k.zip"] = run_data_half(arguments.cifar.resolve())
    else:
        print(f"{arguments.cifar}: not there; the time for CIFAR-10 is not measured")
    for count in (arguments.few, arguments.many):
        with tempfile.TemporaryDirectory() as folder:
            write_noise(Path(folder), count)
            found[f"{count} images"] = run_data_half(Path(folder))
    table = Table(title=f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores")
    for column in ("data", "fetch s", "split s", "split again s", "fetch peak MiB", "split peak MiB"):
        table.add_column(column)
    for name, figures in found.items():
        table.add_row(name, *(f"{value:.1f}" for value in figures.values()))
    Console(width=110).print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")
    few, many = found[f"{arguments.few} images"], found[f"{arguments.many} images"]
    growth = max(many[name] - few[name] for name in ("fetch_peak", "split_peak"))
    decoded = (arguments.many - arguments.few) * DECODED
    print(f"the peak grows by {growth:.0f} MiB for {decoded:.0f} MiB of further pixels")
    cifar = found.get("cifar10-11k.zip")
    seconds = cifar["fetch_seconds"] + cifar["split_seconds"] if cifar else 0.0
    sys.exit(0 if seconds < SECONDS and growth < decoded / 10 else 1)


if __name__ == "__main__":
    main()
