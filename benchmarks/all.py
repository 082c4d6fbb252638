"""Every benchmark, one after the other, and at the end the promises that are not kept.

    python benchmarks/all.py [--data FOLDER] [--json FOLDER]

Takes more than an hour on two cores. With --json, each leaves its figures in that folder. Exits 1 where a promise is
not kept or a benchmark fails.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from measure import ROOT, open_parser

BENCHMARKS = ("promises", "data_half", "loaders", "split", "predict", "repro", "growth", "training")


def run_benchmark(name: str, data: Path, folder: Path) -> list[str]:
    """Run one, which prints what it finds; returns the promises that it did not keep."""
    print(f"\n{name}", flush=True)
    found = folder / f"{name}.json"
    found.unlink(missing_ok=True)
    command = [sys.executable, ROOT / "benchmarks" / f"{name}.py", "--data", data, "--json", found]
    done = subprocess.run(command)
    if not found.is_file():
        return [f"{name}: ended with exit code {done.returncode} before it had measured"]
    promises = json.loads(found.read_text())["promises"]
    return [f"{name}: {promise['name']}: {promise['value']:.4g}" for promise in promises if not promise["kept"]]


def main() -> None:
    """Run all, and exit 1 where a promise is not kept."""
    arguments = open_parser(__doc__, "mnist/ and cifar10/cifar10-11k.zip").parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder: Path = arguments.json or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        broken = [line for name in BENCHMARKS for line in run_benchmark(name, arguments.data, folder)]
    print("\n" + "\n".join(["promises that are not kept:", *broken] if broken else ["every promise is kept"]))
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
