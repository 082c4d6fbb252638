"""The split stage on a Ray cluster that loses a node: its bytes are those of this machine alone."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dvc.utils.serialize import modify_yaml
from PIL import Image

from tests.conftest import ROOT
from tests.core.nodes import ON_LOOPBACK, Nodes, start_nodes

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="Ray's clusters are for POSIX")]

IMAGES = 4000  # 16 chunks: with two CPUs, only five of them are on their way when the first comes back
BROKEN = 3


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with start_nodes() as nodes:
        yield nodes


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photographs in two classes, three of them broken, fetched."""
    folder = tmp_path_factory.mktemp("project")
    generator = np.random.default_rng(0)
    for number in range(IMAGES):
        path = folder / "photos" / ("cat", "dog")[number % 2] / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (12, 12, 3), np.uint8)
        Image.fromarray(pixels).resize((96, 96)).save(path)
        if number < BROKEN:
            path.write_bytes(path.read_bytes()[:-100])
    (folder / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    with modify_yaml(str(folder / "params.yaml")) as params:
        params["fetch"] |= {"source": "folder", "path": "photos", "classes": str(ROOT / "data" / "classes" / "all.csv")}
        params["split"] |= {"max_rejected": BROKEN, "near_distance": -1}
    with start_stage(folder, "fetch", "raw") as fetch:
        fetch.communicate()
    assert fetch.returncode == 0
    return folder


def start_stage(project: Path, stage: str, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, str(ROOT / "stages" / f"{stage}.py"), *arguments],
        cwd=project,
        env=os.environ | ON_LOOPBACK,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_split(project: Path, layout: str, name: str, run: dict[str, Any]) -> "subprocess.Popen[str]":
    """Start to split into two folders below `name`."""
    with modify_yaml(str(project / "params.yaml")) as params:
        params["split"]["layout"] = layout
        params["run"] |= run
    return start_stage(project, "split", "raw", f"{name}/images", f"{name}/manifests")


def read_tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def wait_for_first(folder: Path, process: "subprocess.Popen[str]") -> None:
    """Wait until a first chunk of images lies in staging."""
    while process.poll() is None and not list(folder.glob(".*.part/*")):
        time.sleep(0.02)
    assert process.poll() is None


@pytest.mark.proof
@pytest.mark.parametrize("layout", ["single", "shards"])
def test_a_node_that_is_killed_changes_no_byte(project: Path, nodes: Nodes, layout: str) -> None:
    here, there = f"{layout}/here", f"{layout}/there"
    with start_split(project, layout, here, {"engine": "local", "jobs": 2}) as local:
        expected, _ = local.communicate()
    nodes.complete()
    with start_split(project, layout, there, {"engine": "ray", "ray_address": nodes.address}) as split:
        wait_for_first(project / there, split)
        nodes.kill()
        printed, errors = split.communicate()
    assert (local.returncode, split.returncode) == (0, 0), errors
    assert list_results(printed) == list_results(expected.replace(here, there))
    assert f"split: images that cannot be used: {BROKEN}, see {there}/manifests/rejected.csv" in list_results(printed)
    assert read_tree(project / there) == read_tree(project / here)


def list_results(printed: str) -> list[str]:
    """The lines of a stage without those that say how far it is."""
    return [line for line in printed.splitlines() if "images/s" not in line]
