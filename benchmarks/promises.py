"""What the README promises, measured: every recipe through the whole pipeline, in scratch copies of this commit.

    python benchmarks/promises.py [--recipe NAME ...] [--seeds N] [--data FOLDER] [--json FILE]

Each recipe runs twice, in two new folders with empty caches, and the hashes of all outputs are compared. Below
../shared/data are expected MNIST's four original files (mnist/) and 10,000 train and 1,000 test images of CIFAR-10 as
class folders in a zip (cifar10/cifar10-11k.zip), which stands in for the whole set, and whose cats and frogs stand in
for the cats and fish of catfish; a recipe whose data is not there is left out, which is said. Times are of this machine
as it is now; accuracies repeat.

With --seeds N each recipe is instead trained and evaluated N times, with `train.seed` 1 to N, after one fetch and
split: each seed's figures, their mean and standard deviation are printed, and the promises hold for the mean.

Exits 1 where a promise is not kept.
"""

import json
import re
import statistics
import tempfile
from pathlib import Path

from measure import Figures, Promise, finish, open_parser, print_figures
from scratch import NEEDED, Repro, change_params, check_commit, copy_commit, reproduce

from imagepipe.core.config import read_yaml

# Recipe → figure → the least and the most of it: accuracies in percent, seconds.
PROMISES: dict[str, dict[str, tuple[float | None, float | None]]] = {
    "digits": {"test %": (98.0, None), "repro s": (None, 30)},
    "mnist": {"test %": (99.4, None), "loop s": (None, 60)},
    "mnist-best": {"test %": (99.6, None), "loop s": (None, 600)},
    "raschka-mlp": {"test %": (70, 78), "val %": (70, 78), "train %": (88, 94)},
    "catfish": {"test %": (65, None)},
    "cifar10": {"test %": (82, None), "loop s": (None, 600)},
}


def measure_recipe(recipe: str, data: Path) -> tuple[dict[str, float], list[str]]:
    """The figures of a recipe's first run, and the outputs whose hashes differ in the second."""
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory(suffix="-second") as two:
        copies = [copy_commit(Path(folder), recipe, data) for folder in (one, two)]
        done, _ = map(reproduce, copies)
        first, second = (read_hashes(copy.folder) for copy in copies)
        figures = read_figures(copies[0].folder, done)
    return figures, sorted(path for path in first.keys() | second.keys() if first.get(path) != second.get(path))


def measure_seeds(recipe: str, data: Path, seeds: int) -> Figures:
    """The figures of each seed, in one copy; then their mean and standard deviation."""
    figures: Figures = {}
    with tempfile.TemporaryDirectory() as folder:
        copy = copy_commit(Path(folder), recipe, data)
        for seed in range(1, seeds + 1):
            change_params(copy.folder, {"train.seed": seed})
            figures[f"{recipe}, seed {seed}"] = read_figures(copy.folder, reproduce(copy))
    rows = list(figures.values())
    for name, condense in (("mean", statistics.mean), ("deviation", statistics.stdev)):
        # Only the first one's time contains fetch and split.
        columns = {column: [row[column] for row in rows] for column in rows[0] if column != "repro s"}
        figures[f"{recipe}, {name}"] = {column: condense(values) for column, values in columns.items()}
    return figures


def read_figures(project: Path, done: Repro) -> dict[str, float]:
    """Of the run that was `done` last."""
    test, train = (
        json.loads((project / f"reports/{stage}/metrics.json").read_text()) for stage in ("evaluate", "train")
    )
    return {
        "test %": 100 * test["test"]["accuracy"],
        "from %": 100 * test["test"]["accuracy_low"],
        "to %": 100 * test["test"]["accuracy_high"],
        "val %": 100 * test["val"]["accuracy"],
        "train %": 100 * train["train"]["accuracy"],
        "loop s": float(re.findall(r"images/s, ([\d.]+) s\)", done.printed)[-1]),
        "repro s": done.seconds,
    }


def read_hashes(project: Path) -> dict[str, str]:
    """Output → hash, from `dvc.lock`."""
    stages = read_yaml(project / "dvc.lock")[0]["stages"]
    return {out["path"]: out["md5"] for stage in stages.values() for out in stage["outs"]}


def main() -> None:
    """Measure, print, and exit 1 where a promise is not kept."""
    parser = open_parser(__doc__, "mnist/ and cifar10/cifar10-11k.zip")
    parser.add_argument("--recipe", action="append", choices=PROMISES)
    parser.add_argument("--seeds", type=int, default=0, help="2 or more; 0 runs each recipe twice with its own seed")
    arguments = parser.parse_args()
    if arguments.seeds == 1:
        parser.error("--seeds 1; one seed has no deviation: expected 2 or more, or 0")
    check_commit()
    figures: Figures = {}
    promises: list[Promise] = []
    for recipe in arguments.recipe or PROMISES:
        if not (arguments.data / NEEDED[recipe]).exists():
            print(f"{recipe}: {arguments.data / NEEDED[recipe]} is not there; it is not measured")
            continue
        if arguments.seeds:
            figures |= measure_seeds(recipe, arguments.data.resolve(), arguments.seeds)
            row = figures[f"{recipe}, mean"]
        else:
            row, differing = measure_recipe(recipe, arguments.data.resolve())
            figures[recipe] = row
            named = f" ({', '.join(differing)})" if differing else ""
            promises.append(Promise(f"{recipe}: outputs that differ in two runs{named}", len(differing), at_most=0))
        for name, (low, high) in PROMISES[recipe].items():
            if name in row:
                promises.append(Promise(f"{recipe}: {name}", row[name], low, high))
    print_figures("recipes", figures, places=2)
    finish({"recipes": figures}, promises, arguments.json)


if __name__ == "__main__":
    main()
