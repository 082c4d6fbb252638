"""`dvc repro` of the mnist recipe, measured in scratch copies of this commit: cold, with nothing to do, and after a
change of train.lr.

    python benchmarks/repro.py [--layout NAME ...] [--data FOLDER] [--json FILE]

Cold is with empty caches; the files of MNIST come from the disk (mnist/ below --data). Nothing to do is repeated three
times, and the median counts. All of DVC's own work is in the times, but for that of evaluate, which runs once more by
itself, with the images to decode anew; beside it stands the size of its page. Exits 1 where a promise is not kept, all
of which are made for shards: DVC works on each single PNG by itself.
"""

import statistics
import tempfile
from pathlib import Path

from measure import Figures, Promise, finish, open_parser, print_figures
from scratch import change_params, check_commit, copy_commit, reproduce, require_mnist, run_stage

LAYOUTS = ("shards", "single")
REPEATS = 3
COLD_SECONDS = 45
EVALUATE_SECONDS = 15
PAGE_MB = 3
IDLE_SECONDS = 1.5
TRAINING = {"train", "evaluate"}  # all that another learning rate may run


def measure_layout(layout: str, data: Path) -> dict[str, float]:
    """Seconds of each `dvc repro`, and how many stages ran that should not have, or did not that should."""
    with tempfile.TemporaryDirectory() as folder:
        copy = copy_commit(Path(folder), "mnist", data)
        change_params(copy.folder, {"split.layout": layout})
        cold = reproduce(copy)
        idle = [reproduce(copy) for _ in range(REPEATS)]
        change_params(copy.folder, {"train.lr": 0.019})
        changed = reproduce(copy)
        evaluated = run_stage(copy.folder, "evaluate")
        page = (copy.folder / "reports/report.html").stat().st_size
    return {
        "cold s": cold.seconds,
        "nothing to do s": statistics.median(one.seconds for one in idle),
        "other lr s": changed.seconds,
        "evaluate s": evaluated.seconds,
        "page MB": page / 1e6,
        "stages run idle": max(len(one.stages) for one in idle),
        "stages wrong after lr": len(TRAINING.symmetric_difference(changed.stages)),
    }


def main() -> None:
    """Measure, print, and exit 1 where a promise is not kept."""
    parser = open_parser(__doc__, "mnist/")
    parser.add_argument("--layout", action="append", choices=LAYOUTS)
    arguments = parser.parse_args()
    require_mnist(arguments.data)
    check_commit()
    figures: Figures = {
        layout: measure_layout(layout, arguments.data.resolve()) for layout in arguments.layout or LAYOUTS
    }
    print_figures("dvc repro of mnist", figures, places=2)
    promises: list[Promise] = []
    for layout, row in figures.items():
        promises.append(Promise(f"{layout}: stages that run with nothing to do", row["stages run idle"], at_most=0))
        wrong = f"{layout}: stages beside train and evaluate after another lr, or missing"
        promises.append(Promise(wrong, row["stages wrong after lr"], at_most=0))
        if layout == "shards":
            promises.append(Promise("shards: s cold", row["cold s"], at_most=COLD_SECONDS))
            promises.append(Promise("shards: s of evaluate", row["evaluate s"], at_most=EVALUATE_SECONDS))
            promises.append(Promise("shards: MB of its page", row["page MB"], at_most=PAGE_MB))
            promises.append(Promise("shards: s with nothing to do", row["nothing to do s"], at_most=IDLE_SECONDS))
    finish({"dvc repro": figures}, promises, arguments.json)


if __name__ == "__main__":
    main()
