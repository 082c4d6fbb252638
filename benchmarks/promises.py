"""What the README promises, measured: every recipe through the whole pipeline, in scratch copies of this commit.

    python benchmarks/promises.py [--recipe NAME ...] [--data FOLDER] [--json FILE]

Each recipe runs twice, in two new folders with empty caches, and the hashes of all outputs are compared. Below
../shared/data are expected MNIST's four original files (mnist/) and 10,000 train and 1,000 test images of CIFAR-10 as
class folders in a zip (cifar10/cifar10-11k.zip), which stands in for the whole set, and whose cats and frogs stand in
for the cats and fish of catfish; a recipe whose data is not there is left out, which is said. Times are of this machine
as it is now; accuracies repeat. Exits 1 where a promise is not kept.
"""

import json
import re
import tempfile
from pathlib import Path

from measure import Figures, Promise, finish, open_parser, print_figures
from scratch import NEEDED, check_commit, copy_commit, reproduce

from imagepipe.core.config import read_yaml

# Recipe → figure → the least and the most of it: accuracies in percent, seconds.
PROMISES: dict[str, dict[str, tuple[float | None, float | None]]] = {
    "digits": {"test %": (98.0, None), "repro s": (None, 30)},
    "mnist": {"test %": (99.2, None), "loop s": (None, 15)},
    "raschka-mlp": {"test %": (70, 78), "val %": (70, 78), "train %": (88, 94)},
    "catfish": {"test %": (65, None)},
    "cifar10": {"test %": (65, None)},
}


def measure_recipe(recipe: str, data: Path) -> tuple[dict[str, float], list[str]]:
    """The figures of a recipe's first run, and the outputs whose hashes differ in the second."""
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory(suffix="-second") as two:
        copies = [copy_commit(Path(folder), recipe, data) for folder in (one, two)]
        done, _ = map(reproduce, copies)
        first, second = (read_hashes(copy.folder) for copy in copies)
        test, train = (
            json.loads((copies[0].folder / f"reports/{stage}/metrics.json").read_text())
            for stage in ("evaluate", "train")
        )
    figures = {
        "test %": 100 * test["test"]["accuracy"],
        "from %": 100 * test["test"]["accuracy_low"],
        "to %": 100 * test["test"]["accuracy_high"],
        "val %": 100 * test["val"]["accuracy"],
        "train %": 100 * train["train"]["accuracy"],
        "loop s": float(re.findall(r"images/s, ([\d.]+) s\)", done.printed)[-1]),
        "repro s": done.seconds,
    }
    return figures, sorted(path for path in first.keys() | second.keys() if first.get(path) != second.get(path))


def read_hashes(project: Path) -> dict[str, str]:
    """Output → hash, from `dvc.lock`."""
    stages = read_yaml(project / "dvc.lock")[0]["stages"]
    return {out["path"]: out["md5"] for stage in stages.values() for out in stage["outs"]}


def main() -> None:
    """Measure, print, and exit 1 where a promise is not kept."""
    parser = open_parser(__doc__, "mnist/ and cifar10/cifar10-11k.zip")
    parser.add_argument("--recipe", action="append", choices=PROMISES)
    arguments = parser.parse_args()
    check_commit()
    figures: Figures = {}
    promises: list[Promise] = []
    for recipe in arguments.recipe or PROMISES:
        if not (arguments.data / NEEDED[recipe]).exists():
            print(f"{recipe}: {arguments.data / NEEDED[recipe]} is not there; it is not measured")
            continue
        figures[recipe], differing = measure_recipe(recipe, arguments.data.resolve())
        for name, (low, high) in PROMISES[recipe].items():
            promises.append(Promise(f"{recipe}: {name}", figures[recipe][name], low, high))
        named = f" ({', '.join(differing)})" if differing else ""
        promises.append(Promise(f"{recipe}: outputs that differ in two runs{named}", len(differing), at_most=0))
    print_figures("recipes", figures, places=2)
    finish({"recipes": figures}, promises, arguments.json)


if __name__ == "__main__":
    main()
