"""Each stage is killed at every call that changes a disk, or its disk is full there; the next run mends all of it."""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from imagepipe.core.config import read_yaml
from tests.conftest import ROOT
from tests.proof.injection import Done, Fault, Runner, open_runner
from tests.stages import STAGES, list_outputs

pytestmark = [
    pytest.mark.proof,
    pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace, which injects the faults"),
]

FULL, BROKEN = "ENOSPC", "EIO"
ERRORS = {"write": FULL, "sendfile": FULL, "copy_file_range": FULL, "mkdir": FULL, "rename": BROKEN, "fsync": BROKEN}
FAULTY = re.compile(r"error: \S+: cannot be written: (No space left on device \(.+ free\)|Input/output error)\. ")
GROWING = {"history.csv", "steps.csv"}  # rewritten after each epoch, with more rows
PART = re.compile(r"\.[0-9]+@.*\.part")

Tree = dict[str, bytes | None]


def write_params(project: Path, layout: str, classes: str, side: int, seed: int, lr: float) -> None:
    """A dozen images of two classes, and all else as small as it can be."""
    values: dict[str, Any] = read_yaml(ROOT / "recipes/base.yaml")[0]
    values["fetch"] |= {"classes": f"data/classes/{classes}.csv"}
    values["split"] |= {"first": 12, "strategy": "stratified", "seed": seed, "layout": layout}
    values["split"] |= {"fractions": {"train": 0.5, "val": 0.25, "test": 0.25}, "leaks": "keep"}
    values["split"]["image"] |= {"height": side, "width": side}
    values["train"] |= {"model": "softmax", "epochs": 2, "batch_size": 4, "lr": lr, "threads": 1}
    values["evaluate"] |= {"threads": 1, "gallery": 2, "resamples": 100}
    values["run"] |= {"jobs": 1, "checkpoint_minutes": 0}
    (project / "params.yaml").write_text(json.dumps(values), "utf-8")


def read_tree(top: Path) -> Tree:
    """Each path below a folder, or a file, with its bytes; None for a folder. Locks stay, and are nobody's output."""
    if top.is_file():
        return {".": top.read_bytes()}
    paths = (path for path in sorted(top.rglob("*")) if path.suffix != ".lock")
    return {path.relative_to(top).as_posix(): path.read_bytes() if path.is_file() else None for path in paths}


class Proof:
    """The pipeline has run with old values; then it ran with new ones: what there was `before` a stage and `after`."""

    def __init__(self, folder: Path, runner: Runner, layout: str) -> None:
        self.runner = runner
        self.before = {stage: folder / "before" / stage for stage in STAGES}
        self.after = {stage: folder / "after" / stage for stage in STAGES}
        self.calls: dict[str, list[tuple[str, int, str]]] = {}
        project = self.runner.project
        for name in ("data/source", "data/classes", ".dvc"):
            (project / name).mkdir(parents=True)
        (project / "data/source/README.md").write_text("digits come with scikit-learn", "utf-8")
        (project / "data/classes/old.csv").write_text("class,as\n0,zero\n1,one\n", "utf-8")
        (project / "data/classes/new.csv").write_text("class,as\n0,nought\n1,one\n", "utf-8")
        write_params(project, layout, "old", 8, 1, 0.01)
        for stage in STAGES:
            self.run_well(stage)
        write_params(project, layout, "new", 6, 2, 0.1)
        for stage in STAGES:
            shutil.copytree(self.runner.scratch, self.before[stage])
            self.calls[stage] = self.runner.list_calls(self.run_well(stage, traced=True).trace)
            shutil.copytree(self.runner.scratch, self.after[stage])

    def run_well(self, stage: str, traced: bool = False) -> Done:
        done = self.runner.run(stage, traced)
        assert done.code == 0, done.printed
        return done

    def restore(self, stage: str) -> None:
        """Bring back what there was before a stage."""
        shutil.rmtree(self.runner.scratch)
        shutil.copytree(self.before[stage], self.runner.scratch)

    def inject(self, stage: str, fault: Fault) -> bool:
        """Run a stage with a fault, and once more without; whether the fault came to pass."""
        self.restore(stage)
        done = self.runner.run(stage, traced=True, fault=fault)
        for out in list_outputs(stage):
            self.check_output(stage, out)
        if fault.error:
            self.check_end(stage, done, fault)
        again = self.runner.run(stage)
        assert again.code == 0, f"{fault}: {again.printed}"
        assert read_tree(self.runner.scratch) == read_tree(self.after[stage]), fault
        return done.code == -9 or any("(INJECTED)" in line for line in done.trace)

    def check_output(self, stage: str, out: str) -> None:
        """It is the old one, the new one, or not there; where files are written one by one, each of them is."""
        found, old, new = (
            read_tree(scratch / "project" / out)
            for scratch in (self.runner.scratch, self.before[stage], self.after[stage])
        )
        if out in ("data/images", "reports/train"):
            for name, data in found.items():
                if not PART.fullmatch(Path(name).name) and data is not None:
                    assert data in (old.get(name), new.get(name)) or is_earlier(name, data, new), name
        else:
            assert found in ({}, old, new)

    def check_end(self, stage: str, done: Done, fault: Fault) -> None:
        """One message that names path and reason; for the pixel cache, a warning; none where all is as it should be, as
        after making a folder that is there. Nothing half-written is left."""
        if done.code:
            assert done.code == 3, f"{fault}: {done.printed}"
            assert FAULTY.search(done.printed), f"{fault}: {done.printed}"
            assert "Traceback" not in done.printed
        elif "decoded images are held in memory and not kept in" not in done.printed:
            assert read_tree(self.runner.scratch) == read_tree(self.after[stage]), f"{fault}: {done.printed}"
        assert not [path for path in self.runner.scratch.rglob("*") if PART.fullmatch(path.name)], fault


def is_earlier(name: str, data: bytes, new: Tree) -> bool:
    """Whether a table or metrics of training are those of an earlier epoch, whole."""
    if name == "metrics.json":
        return json.loads(data)["epochs"] == 1
    whole = new.get(name) or b""
    return name in GROWING and data.endswith(b"\n") and whole.startswith(data)


@pytest.fixture(scope="module")
def prepare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Proof]]:
    """Gives the proof with a layout of images, for all tests the same one."""
    with ExitStack() as runners:

        @cache
        def prepare(layout: str) -> Proof:
            folder = tmp_path_factory.mktemp("faults")
            return Proof(folder, runners.enter_context(open_runner(folder / "scratch")), layout)

        yield prepare


@pytest.mark.parametrize(
    ("stage", "layout", "least"),
    [
        ("evaluate", "single", 90),
        ("split", "single", 80),
        ("train", "single", 80),
        ("balance", "single", 40),
        ("fetch", "single", 15),
        ("split", "shards", 60),
    ],
)
@pytest.mark.parametrize("error", [False, True], ids=["killed", "refused"])
def test_a_fault_anywhere_leaves_old_or_new_and_the_next_run_the_same_bytes(
    prepare: Callable[[str], Proof],
    record_property: Callable[[str, object], None],
    stage: str,
    layout: str,
    error: bool,
    least: int,
) -> None:
    proof = prepare(layout)
    calls = proof.calls[stage]
    assert len(calls) >= least
    if layout == "shards":
        assert {call for call, _, path in calls if path.endswith(".tar")} >= {"write", "fsync", "chmod", "rename"}
    if error:
        faults = [Fault(call, number, ERRORS[call]) for call, number, _ in calls if call in ERRORS]
    else:
        faults = [Fault(call, number) for call, number, _ in calls]
    came = [fault for fault in faults if proof.inject(stage, fault)]
    record_property("faults", len(came))
    assert len(came) > 0.9 * len(faults)


@pytest.mark.parametrize("stamp", [0, 4_000_000_000], ids=["1970", "2096"])
def test_times_of_files_decide_nothing(prepare: Callable[[str], Proof], stamp: int) -> None:
    """As after a clock that jumped."""
    proof = prepare("single")
    for stage in STAGES:
        proof.restore(stage)
        for path in proof.runner.scratch.rglob("*"):
            os.utime(path, (stamp, stamp))
        proof.run_well(stage)
        assert read_tree(proof.runner.scratch) == read_tree(proof.after[stage])
