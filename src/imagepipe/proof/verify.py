"""A commit's results, made once more from nothing in a scratch clone, and compared with its `dvc.lock`."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, cast

import psutil

from imagepipe.core.config import PARAMS_FILE, read_yaml
from imagepipe.core.errors import EnvironmentFault, InputError, list_findings
from imagepipe.core.files import write_text
from imagepipe.core.run import expand_home, load_run_params
from imagepipe.recipes import set_run_section

LOCK = Path("dvc.lock")
METRICS = Path("reports/evaluate/metrics.json")
MEASURED = ("train", "evaluate")  # stages whose bytes are the same on one kind of processor only
GRACE = 20.0  # seconds that stages have to end in good order


class Verdict(Enum):
    """What became of an output in the second run."""

    SAME = "same bytes"
    WITHIN = "other bytes, accuracy within the interval"
    DIFFERENT = "different"
    ABSENT = "not made"


@dataclass(frozen=True, slots=True)
class Compared:
    """The verdict on each output, as (stage, path, verdict) in the order of `dvc.lock`.

    `inputs` are the inputs, as (stage, path), that had other bytes when the lock was written: then the difference may
    lie there.
    """

    outputs: list[tuple[str, str, Verdict]]
    inputs: list[tuple[str, str]]

    @property
    def is_reproduced(self) -> bool:
        """Whether every output is the same, in bytes or within the interval."""
        return all(verdict in (Verdict.SAME, Verdict.WITHIN) for _, _, verdict in self.outputs)


def verify_commit(revision: str) -> Compared:
    """Run the pipeline of a Git revision of this project in a scratch clone, with empty caches, and compare.

    What the source stage reads and Git does not have is copied from here, and so is the `run:` section. Raises
    InputError where there is no such revision, its `dvc.lock` lacks stages or hashes, its metrics are damaged, or its
    parameters lack what fetch reads or `run:`; EnvironmentFault where the run fails. Whatever ends it, neither the
    clone nor a process is left.
    """
    check_project()
    with tempfile.TemporaryDirectory(prefix="imagepipe-verify-") as name:
        scratch = Path(name).resolve()
        project = clone(revision, scratch / "project")
        lock = project / LOCK
        if not lock.is_file():
            raise InputError(f"{revision}: has no {LOCK}, with which to compare; run `dvc repro` and commit it.")
        before, metrics = read_stages(lock), read_metrics(project / METRICS)
        bring_source(project)
        bring_run_section(project)
        run_again(project, scratch)
        return compare(before, read_stages(lock), metrics, read_metrics(project / METRICS))


def check_project() -> None:
    """Raise InputError where the present folder is not the top of a Git repository with a pipeline."""
    if not Path("dvc.yaml").is_file() or not Path(".git").exists():
        raise InputError("verify: run it at the top of the repository, where dvc.yaml and .git are.")


def clone(revision: str, folder: Path) -> Path:
    """The revision in a new clone; raises InputError where there is none of this name."""
    for command in (
        ["git", "clone", "--quiet", "--no-checkout", str(Path.cwd()), str(folder)],
        ["git", "-C", str(folder), "checkout", "--quiet", "--detach", find_commit(revision)],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode:
            raise EnvironmentFault(f"verify: git failed: {done.stderr.strip()}")
    return folder


def find_commit(revision: str) -> str:
    """The full hash of a revision's commit."""
    command = ["git", "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise InputError(f"{revision}: no revision of this repository; `git log` and `git tag` name them.")
    return done.stdout.strip()


def bring_source(project: Path) -> None:
    """Copy what fetch and train read from disk and Git does not have, the source and weights to start from: as links
    where it can be, since nothing writes there.

    What the commit has stays, and what Git has here in another commit is not brought. Raises InputError where the
    commit's params.yaml does not say what fetch reads.
    """
    params = read_yaml(project / PARAMS_FILE)[0]
    section, train = (
        cast("dict[str, object]", named) if isinstance(named := params.get(name), dict) else {}
        for name in ("fetch", "train")
    )
    path, classes = section.get("path"), section.get("classes", "")  # there was no choice of classes once
    for key, value in (("path", path), ("classes", classes)):
        if not isinstance(value, str):
            found = "nothing" if value is None else repr(value)
            raise InputError(
                f"{PARAMS_FILE} of that commit: fetch.{key}: found {found}; expected the path that fetch reads. Verify "
                "a commit whose parameters are complete."
            )
        bring_files(Path(value), project)
    weights = train.get("pretrained")
    if isinstance(weights, str):  # `none` and `default` name no file
        bring_files(Path(weights), project)


def bring_files(source: Path, project: Path) -> None:
    """Copy a file, or each file and each empty folder of a folder, that neither the clone nor Git has; nothing from
    outside the project."""
    if source.is_absolute() or not source.parts or ".." in source.parts or (project / source).is_file():
        return
    files = [source]
    for place, folders, names in os.walk(source):
        files += [Path(place, name) for name in names]
        if not folders and not names:  # a class without images
            (project / place).mkdir(parents=True, exist_ok=True)
    tracked = list_tracked(source)
    for file in files:
        target = project / file
        if file.as_posix() in tracked or target.exists() or target.is_symlink():
            continue
        if file.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            link(str(file.resolve()), str(target))
        elif file.is_symlink():  # which leads nowhere: fetch is to say so there, too
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(file.readlink())


def list_tracked(path: Path) -> set[str]:
    """The files at or below a path that Git has in the present folder's index."""
    command = ["git", "ls-files", "-z", "--cached", "--", path.as_posix()]
    done = subprocess.run(command, capture_output=True, check=False)  # noqa: S603
    if done.returncode:
        raise EnvironmentFault(f"verify: git failed: {os.fsdecode(done.stderr).strip()}")
    return set(os.fsdecode(done.stdout).split("\0"))


def bring_run_section(project: Path) -> None:
    """Give the clone the `run:` section that is here, since that belongs to the machine; a mirror on disk by its full
    name.

    Raises InputError where the commit's params.yaml has none to replace.
    """
    params = project / PARAMS_FILE
    if not isinstance(read_yaml(params)[0].get("run"), dict):
        raise InputError(
            f"{PARAMS_FILE} of that commit: section `run` is missing. Verify a commit whose parameters are complete."
        )
    run = load_run_params()
    if run.mirror and "://" not in run.mirror:
        run = run.model_copy(update={"mirror": str(expand_home(run.mirror, f"{PARAMS_FILE}: run.mirror").resolve())})
    write_text(params, set_run_section(params.read_text("utf-8"), run.model_dump()))


def link(source: str, target: str) -> None:
    """Another name for a file, or a copy where the disk is another one."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def run_again(project: Path, scratch: Path) -> None:
    """`dvc repro` in the clone with caches of its own; what it prints goes to stdout."""
    environment = os.environ | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "IMAGEPIPE_CACHE": str(scratch / "cache"),
        "DVC_SITE_CACHE_DIR": str(scratch / "site"),
    }
    for command in (["dvc", "cache", "dir", "--local", str(scratch / "objects")], ["dvc", "repro"]):
        try:
            process = subprocess.Popen(command, cwd=project, env=environment)  # noqa: S603
        except FileNotFoundError as error:
            raise EnvironmentFault("verify: dvc is not installed beside this Python.") from error
        with end_with_it(process):
            process.wait()
        if process.returncode:
            raise EnvironmentFault(f"verify: `{' '.join(command[:2])}` failed in the clone; what it said stands above.")


@contextmanager
def end_with_it(process: subprocess.Popen[bytes]) -> Generator[None]:
    """Where the block is left while the process runs, end it and all that it has started, and wait for them.

    What DVC has started ends by itself when DVC has ended, and gets GRACE seconds for that.
    """
    try:
        yield
    finally:
        if process.poll() is None:
            family = list_family(process.pid)
            process.terminate()
            _, left = psutil.wait_procs(family, GRACE)
            for each in left:
                with suppress(psutil.Error):  # it has just ended
                    each.kill()
            psutil.wait_procs(left, GRACE)
            process.wait()


def list_family(number: int) -> list[psutil.Process]:
    """The process of this number, and all that it has started, directly or not."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(number)
        return [process, *process.children(recursive=True)]
    return []


def read_stages(lock: Path) -> dict[str, dict[str, Any]]:
    """The stages of a lock file; raises InputError where it is none, or has a file without its hash."""
    stages = cast("object", read_yaml(lock)[0].get("stages"))
    if not isinstance(stages, dict) or not stages:
        raise InputError(f"{LOCK}: has no stages; run `dvc repro` and commit it.")
    entries = cast("dict[str, object]", stages)
    lacking = [place for name, entry in entries.items() for place in list_unhashed(name, entry)]
    if lacking:
        heading = f"{LOCK}: has no path or no md5 where it should have both"
        raise InputError(list_findings(heading, lacking, "Run `dvc repro` and commit it."))
    return cast("dict[str, dict[str, Any]]", stages)


def list_unhashed(name: str, entry: object) -> Iterator[str]:
    """The inputs and outputs in a stage's entry that have no path, or no hash to compare."""
    if not isinstance(entry, dict):
        yield name
        return
    for kind in ("deps", "outs"):
        items = cast("dict[str, object]", entry).get(kind, [])
        for item in cast("list[object]", items) if isinstance(items, list) else [items]:
            fields = cast("dict[str, object]", item) if isinstance(item, dict) else {}
            if not all(isinstance(fields.get(key), str) for key in ("path", "md5")):
                yield f"{name}: {kind}: {fields.get('path', item)}"


def read_metrics(path: Path) -> dict[str, Any]:
    """What evaluate measured; {} where the file is not there. Raises InputError where evaluate did not write it."""
    if not path.is_file():
        return {}
    remedy = "it is damaged, or holds the marks of a conflict. Run `dvc repro` and commit it."
    try:
        metrics: Any = json.loads(path.read_bytes())
    except ValueError as error:
        raise InputError(f"{METRICS}: is not JSON ({error}); {remedy}") from error
    test: Any = metrics.get("test") if isinstance(metrics, dict) else None
    for name in ("accuracy", "accuracy_low", "accuracy_high"):
        if not isinstance(test, dict) or not isinstance(test.get(name), int | float):
            raise InputError(f"{METRICS}: has no number test.{name}; {remedy}")
    return metrics


def compare(
    before: Mapping[str, Mapping[str, Any]],
    after: Mapping[str, Mapping[str, Any]],
    metrics: Mapping[str, Any],
    again: Mapping[str, Any],
) -> Compared:
    """What became of the outputs of each stage of a lock; `metrics` and `again` are those of evaluate."""
    lacking = sorted(after.keys() - before.keys())
    if lacking:
        raise InputError(list_findings(f"{LOCK}: has no entry for stages of dvc.yaml", lacking, "Run `dvc repro`."))
    agrees = is_within(metrics, again)
    outputs: list[tuple[str, str, Verdict]] = []
    inputs: list[tuple[str, str]] = []
    for stage, entry in before.items():
        made, read = read_hashes(after.get(stage, {}), "outs"), read_hashes(after.get(stage, {}), "deps")
        own = read_hashes(entry, "outs")
        for path, md5 in own.items():
            outputs.append((stage, path, judge(stage, md5, made.get(path), agrees)))
        made_before = {path for earlier in before.values() for path in read_hashes(earlier, "outs")}
        inputs += [
            (stage, path)
            for path, md5 in read_hashes(entry, "deps").items()
            if path not in made_before and read.get(path) != md5
        ]
    return Compared(outputs, inputs)


def read_hashes(entry: Mapping[str, Any], kind: str) -> dict[str, str]:
    """The hash of each path in a stage's entry."""
    return {item["path"]: item["md5"] for item in entry.get(kind, [])}


def judge(stage: str, before: str, after: str | None, agrees: bool) -> Verdict:
    """The verdict on one output by its hashes, and by whether the accuracy is within the interval."""
    if after is None:
        return Verdict.ABSENT
    if after == before:
        return Verdict.SAME
    return Verdict.WITHIN if stage in MEASURED and agrees else Verdict.DIFFERENT


def is_within(metrics: Mapping[str, Any], again: Mapping[str, Any]) -> bool:
    """Whether the accuracy on test, measured again, lies in the interval of the first."""
    if "test" not in metrics or "test" not in again:
        return False
    first = metrics["test"]
    return first["accuracy_low"] <= again["test"]["accuracy"] <= first["accuracy_high"]


def describe(compared: Compared) -> Iterator[str]:
    """Lines for people: a row for each output, then the sum."""
    width = max(len(stage) for stage, _, _ in compared.outputs)
    for stage, path, verdict in compared.outputs:
        yield f"{stage:<{width}}  {path}: {verdict.value}"
    for stage, path in compared.inputs:
        yield f"{stage:<{width}}  {path}: this input had other bytes when {LOCK} was written"
    counts = {verdict: sum(verdict is found for _, _, found in compared.outputs) for verdict in Verdict}
    told = "; ".join(f"{count} {verdict.value}" for verdict, count in counts.items() if count)
    yield f"verify: {len(compared.outputs)} outputs: {told}"
