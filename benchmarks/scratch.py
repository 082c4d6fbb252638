"""Scratch projects for the benchmarks: a folder in which single stages run, or a copy of this commit with DVC in it."""

import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dvc.utils.serialize import modify_yaml
from measure import ROOT, Run, run_command

# What each stage reads and writes, as `dvc.yaml` calls it.
PLACES = {
    "fetch": "data/raw",
    "split": "data/raw data/images data/manifests",
    "balance": "data/manifests reports/balance",
    "train": "data/manifests data/images models/model.safetensors reports/train",
    "evaluate": (
        "models/model.safetensors data/manifests data/images reports/balance reports/train reports/evaluate "
        "reports/report.html"
    ),
}
# Of each recipe, the data that it needs below --data.
NEEDED = {
    "digits": "",
    "mnist": "mnist/train-images-idx3-ubyte.gz",
    "mnist-best": "mnist/train-images-idx3-ubyte.gz",
    "raschka-mlp": "mnist/train-images-idx3-ubyte.gz",
    "catfish": "cifar10/cifar10-11k.zip",
    "cifar10": "cifar10/cifar10-11k.zip",
}


def require_mnist(data: Path) -> None:
    """Exit where MNIST's files are not below `data`."""
    if not (data / NEEDED["mnist"]).exists():
        sys.exit(f"{data / NEEDED['mnist']} is not there; name the folder above it with --data")


def make_project(folder: Path, changes: Mapping[str, object]) -> None:
    """What the stages need to run in `folder` without DVC: the base's params with `changes` (`section.key` → value)."""
    for name in ("data/classes", "data/source", "models"):
        (folder / name).mkdir(parents=True)
    shutil.copyfile(ROOT / "recipes/base.yaml", folder / "params.yaml")
    shutil.copyfile(ROOT / "data/classes/all.csv", folder / "data/classes/all.csv")
    change_params(folder, changes)


def change_params(folder: Path, changes: Mapping[str, object]) -> None:
    """Set values in `params.yaml`, `section.key` → value."""
    with modify_yaml(folder / "params.yaml") as params:
        for name, value in changes.items():
            *sections, key = name.split(".")
            place = params
            for section in sections:
                place = place[section]
            if key not in place:
                raise KeyError(f"params.yaml has no {name}")
            place[key] = value


def run_stage(folder: Path, stage: str) -> Run:
    """Run one stage in a scratch project as DVC runs it; its caches are in the project, too."""
    environment = os.environ | {"IMAGEPIPE_CACHE": str(folder / "cache")}
    return run_command([sys.executable, ROOT / "stages" / f"{stage}.py", *PLACES[stage].split()], folder, environment)


@dataclass(frozen=True, slots=True)
class Copy:
    """A copy of this commit, and the environment in which DVC runs there with caches of its own."""

    folder: Path
    environment: dict[str, str]


@dataclass(frozen=True, slots=True)
class Repro:
    """What `dvc repro` printed, its seconds, and the stages that it ran."""

    printed: str
    seconds: float
    stages: list[str]


def copy_commit(folder: Path, recipe: str, data: Path) -> Copy:
    """Copy this commit into `folder` and point it at `recipe` and the data that is at hand; the caches are empty."""
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "IMAGEPIPE_CACHE": str(folder / "cache"),
        "DVC_SITE_CACHE_DIR": str(folder / "dvc"),
        "DVC_NO_ANALYTICS": "1",
    }
    copy = Copy(folder / "project", environment)
    subprocess.run(["git", "clone", "--quiet", ROOT, copy.folder], check=True)
    subprocess.run(["imagepipe", "use", f"recipes/{recipe}.yaml"], cwd=copy.folder, env=environment, check=True)
    bring_data(recipe, data, copy.folder)
    return copy


def bring_data(recipe: str, data: Path, project: Path) -> None:
    """Point the recipe at the data that is at hand."""
    change_params(project, {"run.mirror": str(data / "mnist")})
    if recipe == "cifar10":
        zipped = str(data / NEEDED[recipe])
        change_params(project, {"fetch.source": "folder", "fetch.name": "cifar10", "fetch.path": zipped})
    if recipe == "catfish":
        stand_in = {"cat": "cat", "frog": "fish"}
        with zipfile.ZipFile(data / NEEDED[recipe]) as archive:
            for name in archive.namelist():
                _, part, class_name, file = name.split("/")
                if class_name in stand_in:
                    path = project / "data/catfish" / part / stand_in[class_name] / file
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(archive.read(name))


def reproduce(copy: Copy) -> Repro:
    """`dvc repro` in a copy; where it fails, exit with what it said."""
    started = time.perf_counter()
    done = subprocess.run(["dvc", "repro"], cwd=copy.folder, env=copy.environment, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if done.returncode != 0:
        sys.exit(f"{copy.folder}: dvc repro failed\n{done.stdout}{done.stderr}")
    return Repro(done.stdout, seconds, re.findall(r"^Running stage '(\w+)'", done.stdout, re.MULTILINE))


def check_commit() -> None:
    """Say where the copies differ from what is in the working tree; exit where there is no Git."""
    if shutil.which("git") is None:
        sys.exit("git is needed for the scratch copies")
    if subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True, check=True).stdout:
        print("note: what is not committed is not measured")
