"""What the README promises, measured: every recipe through the whole pipeline, in scratch copies of this commit.

    python benchmarks/promises.py [--recipe NAME ...] [--data FOLDER] [--json FILE]

Each recipe runs twice, in two new folders with empty caches, and the hashes of all outputs are compared. Below
../shared/data are expected MNIST's four original files (mnist/) and 10,000 train and 1,000 test images of CIFAR-10 as
class folders in a zip (cifar10/cifar10-11k.zip), which stands in for the whole set, and whose cats and frogs stand in
for the cats and fish of catfish; a recipe whose data is not there is left out, which is said. Times are of this machine
as it is now; accuracies repeat.
"""

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path

from dvc.utils.serialize import modify_yaml
from rich.console import Console
from rich.table import Table

from imagepipe.core.config import read_yaml

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, slots=True)
class Promise:
    """Accuracies in percent and seconds that a recipe has to reach; None where nothing is promised."""

    test_low: float | None = None
    test_high: float | None = None
    val_low: float | None = None
    val_high: float | None = None
    train_low: float | None = None
    train_high: float | None = None
    loop_seconds: float | None = None
    total_seconds: float | None = None


PROMISES = {
    "digits": Promise(test_low=98.0, total_seconds=30),
    "mnist": Promise(test_low=99.2, loop_seconds=15),
    "raschka-mlp": Promise(test_low=70, test_high=78, val_low=70, val_high=78, train_low=88, train_high=94),
    "catfish": Promise(test_low=65),
    "cifar10": Promise(test_low=65),
}
NEEDED = {
    "digits": "",
    "mnist": "mnist/train-images-idx3-ubyte.gz",
    "raschka-mlp": "mnist/train-images-idx3-ubyte.gz",
    "catfish": "cifar10/cifar10-11k.zip",
    "cifar10": "cifar10/cifar10-11k.zip",
}


@dataclass(frozen=True, slots=True)
class Measured:
    """One recipe's two runs: accuracies in percent, seconds of the first run, outputs whose hashes differ."""

    recipe: str
    test: float
    test_low: float
    test_high: float
    val: float
    train: float
    loop_seconds: float
    total_seconds: float
    differing_outputs: list[str]
    kept: bool


def bring_data(recipe: str, data: Path, project: Path) -> None:
    """Point the recipe at the data that is at hand."""
    with modify_yaml(project / "params.yaml") as params:
        params["run"]["mirror"] = str(data / "mnist")
        if recipe == "cifar10":
            params["fetch"] |= {"source": "folder", "name": "cifar10", "path": str(data / NEEDED[recipe])}
    if recipe == "catfish":
        stand_in = {"cat": "cat", "frog": "fish"}
        with zipfile.ZipFile(data / NEEDED[recipe]) as archive:
            for name in archive.namelist():
                _, part, class_name, file = name.split("/")
                if class_name in stand_in:
                    path = project / "data/catfish" / part / stand_in[class_name] / file
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(archive.read(name))


def run_recipe(recipe: str, data: Path, folder: Path) -> tuple[float, str]:
    """Copy this commit into `folder`, run the recipe there; returns seconds of `dvc repro` and what it printed."""
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "IMAGEPIPE_CACHE": str(folder / "cache"),
        "DVC_SITE_CACHE_DIR": str(folder / "dvc"),
        "DVC_NO_ANALYTICS": "1",
    }
    project = folder / "project"
    subprocess.run(["git", "clone", "--quiet", ROOT, project], check=True)
    subprocess.run(["imagepipe", "use", f"recipes/{recipe}.yaml"], cwd=project, env=environment, check=True)
    bring_data(recipe, data, project)
    started = time.perf_counter()
    done = subprocess.run(["dvc", "repro"], cwd=project, env=environment, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if done.returncode != 0:
        sys.exit(f"{recipe}: dvc repro failed\n{done.stdout}{done.stderr}")
    return seconds, done.stdout


def read_hashes(project: Path) -> dict[str, str]:
    """Output → hash, from `dvc.lock`."""
    stages = read_yaml(project / "dvc.lock")[0]["stages"]
    return {out["path"]: out["md5"] for stage in stages.values() for out in stage["outs"]}


def measure_recipe(recipe: str, data: Path) -> Measured:
    """Both runs of a recipe."""
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory(suffix="-second") as two:
        seconds, printed = run_recipe(recipe, data, Path(one))
        run_recipe(recipe, data, Path(two))
        projects = [Path(folder) / "project" for folder in (one, two)]
        first, second = map(read_hashes, projects)
        test, train = (
            json.loads((projects[0] / f"reports/{stage}/metrics.json").read_text()) for stage in ("evaluate", "train")
        )
    loop = float(re.findall(r"images/s, ([\d.]+) s\)", printed)[-1])
    promise = PROMISES[recipe]
    figures = {
        "test": 100 * test["test"]["accuracy"],
        "val": 100 * test["val"]["accuracy"],
        "train": 100 * train["train"]["accuracy"],
        "loop_seconds": loop,
        "total_seconds": seconds,
    }
    bounds = (
        (figures["test"], promise.test_low, promise.test_high),
        (figures["val"], promise.val_low, promise.val_high),
        (figures["train"], promise.train_low, promise.train_high),
        (loop, None, promise.loop_seconds),
        (seconds, None, promise.total_seconds),
    )
    differing = sorted(path for path in first.keys() | second.keys() if first.get(path) != second.get(path))
    kept = all((low is None or value >= low) and (high is None or value <= high) for value, low, high in bounds)
    return Measured(
        recipe=recipe,
        test_low=100 * test["test"]["accuracy_low"],
        test_high=100 * test["test"]["accuracy_high"],
        differing_outputs=differing,
        kept=kept and not differing,
        **{name: round(value, 2) for name, value in figures.items()},
    )


def print_table(results: list[Measured]) -> None:
    """The results for people."""
    table = Table(title=f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores")
    for column in ("recipe", "test %", "interval", "val %", "train %", "loop s", "repro s", "differing", "kept"):
        table.add_column(column)
    for found in results:
        table.add_row(
            found.recipe,
            f"{found.test:.2f}",
            f"{found.test_low:.2f}–{found.test_high:.2f}",
            f"{found.val:.2f}",
            f"{found.train:.2f}",
            f"{found.loop_seconds:.1f}",
            f"{found.total_seconds:.1f}",
            str(len(found.differing_outputs)),
            "yes" if found.kept else "NO",
        )
    Console(width=110).print(table)


def main() -> None:
    """Measure, print, and exit 1 where a promise is not kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", action="append", choices=PROMISES)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared/data")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    recipes = arguments.recipe or list(PROMISES)
    for recipe in [recipe for recipe in recipes if not (arguments.data / NEEDED[recipe]).exists()]:
        print(f"{recipe}: {arguments.data / NEEDED[recipe]} is not there; it is not measured")
        recipes.remove(recipe)
    if shutil.which("git") is None:
        sys.exit("git is needed for the scratch copies")
    if subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True, check=True).stdout:
        print("note: what is not committed is not measured")
    results = [measure_recipe(recipe, arguments.data.resolve()) for recipe in recipes]
    print_table(results)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(found) for found in results], indent=2) + "\n")
    sys.exit(0 if all(found.kept for found in results) else 1)


if __name__ == "__main__":
    main()
