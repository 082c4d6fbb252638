"""Experiments as DVC runs them, in fresh clones and without PYTHONPATH: what was queued runs, and two may at once."""

import subprocess
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest
from dvc.api import DVCFileSystem
from dvc.utils.serialize import modify_yaml
from numpy.typing import NDArray
from PIL import Image

from tests.conftest import GIT_NAME, ROOT
from tests.pages import find_blocks, shows, split_commands

Run = Callable[..., subprocess.CompletedProcess[str]]
pytestmark = pytest.mark.proof

README, PAGE = ((ROOT / name).read_text("utf-8") for name in ("README.md", "docs/experiments.md"))
PATIENCE = 900  # seconds until a queue that is not done counts as hung, however busy the machine is


@pytest.fixture(autouse=True)
def no_python_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's shell has none, and with one every process would import this very checkout."""
    monkeypatch.delenv("PYTHONPATH", raising=False)


@contextmanager
def end_workers(folder: Path, run_in: Run) -> Generator[None]:
    """End the workers of the queue that are started within the block; fails where one is left."""
    try:
        yield
    finally:
        workers = list_workers(folder)
        stopped = run_in(folder, "dvc", "queue", "stop", "--kill")
        left = [worker for worker in workers if not has_ended(worker)]
        for worker in left:
            worker.kill()
    assert stopped.returncode == 0, stopped.stderr
    assert not left


def list_workers(folder: Path) -> list[psutil.Process]:
    """The processes that work on the queue of the project in `folder`."""
    workers: list[psutil.Process] = []
    for process in psutil.process_iter():
        try:
            if "queue-worker" in process.cmdline() and Path(process.cwd()) == folder:
                workers.append(process)
        except (psutil.AccessDenied, psutil.NoSuchProcess):
            continue
    return workers


def has_ended(process: psutil.Process) -> bool:
    """Whether a process ends within a minute."""
    started = time.monotonic()
    while time.monotonic() - started < 60:
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.1)
    return False


def wait_for_workers(folder: Path, count: int) -> None:
    """Wait until so many work on the queue: `dvc queue start` does not."""
    started = time.monotonic()
    while len(list_workers(folder)) < count:
        assert time.monotonic() - started < 60
        time.sleep(0.1)


def wait_for_queue(folder: Path, run_in: Run, count: int) -> None:
    """Wait until so many experiments of the queue have succeeded; fails with what it says where one has not."""
    started = time.monotonic()
    while True:
        status = run_in(folder, "dvc", "queue", "status").stdout
        if status.count("Success") >= count:
            return
        assert "Failed" not in status, status
        assert time.monotonic() - started < PATIENCE, status
        time.sleep(1)


def list_commands(page: str) -> list[tuple[str, str]]:
    """The commands in all console blocks of a page, without comments, and what it shows below each."""
    commands = (pair for block in find_blocks(page, "console") for pair in split_commands(block))
    return [(command.partition(" #")[0].rstrip(), shown) for command, shown in commands]


def test_what_the_readme_says_of_experiments_is_on_the_page() -> None:
    """But for how two of them are run, and a table as Markdown."""
    told = [command.replace("--temp", "--queue") for command, _ in list_commands(README) if command.startswith("dvc")]
    assert len(told) == 6
    shown = [command.removesuffix(" --md") for command, _ in list_commands(PAGE)]
    assert [command for command in told if command not in shown] == []


def test_the_page_shows_what_happens(clone: Path, run_in: Run) -> None:
    prepare = (("dvc", "pull", "-q"), ("git", "branch", "-M", "main"), ("git", "config", "user.name", "test"))
    for command in (*prepare, ("git", "config", "user.email", "test@localhost")):
        assert run_in(clone, *command).returncode == 0
    readme, queued = dict(list_commands(README)), 0
    with end_workers(clone, run_in):
        for command, shown in list_commands(PAGE):
            done = run_in(clone, "sh", "-c", command)
            assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
            for text in filter(str.strip, (shown, readme.get(command, ""))):
                assert shows(done.stdout, text), f"{command}\n{done.stdout}"
            queued += "--queue" in command
            if command.startswith("dvc queue start"):
                wait_for_workers(clone, 2)
                wait_for_queue(clone, run_in, queued)


def make_pictures(folder: Path) -> dict[str, NDArray[np.uint8]]:
    """24 pictures in two class folders, of a kind that is decoded by worker processes; their pixels by key."""
    pictures: dict[str, NDArray[np.uint8]] = {}
    for number in range(24):
        key = f"{('cat', 'dog')[number % 2]}/{number:02d}.bmp"
        pictures[key] = np.random.default_rng(number).integers(0, 256, (8, 8), dtype=np.uint8)
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pictures[key]).save(folder / key)
    return pictures


def test_what_was_queued_runs_whatever_is_edited_later_and_two_at_once_do_not_disturb_each_other(
    tmp_path: Path, copy_project: Callable[[Path], Path], run_in: Run
) -> None:
    """From a clone without any data. Both are trained with the same params: the same checkpoints, the same pixels."""
    origin, folder = copy_project(tmp_path / "origin"), tmp_path / "clone"
    pictures = make_pictures(origin / "data/pets")
    with modify_yaml(origin / "params.yaml") as params:
        params["fetch"] |= {"source": "folder", "path": "data/pets"}
        params["train"] |= {"model": "softmax", "epochs": 200, "batch_size": 8}
    for command in (("add", "-A"), (*GIT_NAME, "commit", "-qm", "pets"), ("clone", "-q", str(origin), str(folder))):
        assert run_in(origin, "git", *command).returncode == 0

    decoding = folder / "src/imagepipe/prepare/images.py"
    before, call = decoding.read_text("utf-8"), "decoded = convert_image(image, params, remark)\n"
    assert before.count(call) == 1
    inverted = f"{call}{' ' * 16}decoded = decoded._replace(pixels=255 - decoded.pixels)\n"
    decoding.write_text(before.replace(call, inverted), "utf-8")
    for name, count in (("first", 8), ("second", 9)):
        command = ("dvc", "exp", "run", "--queue", "-n", name, "-S", f"evaluate.gallery={count}", "train")
        queued = run_in(folder, *command)
        assert queued.returncode == 0, queued.stderr
    decoding.write_text(before, "utf-8")
    with (folder / "src/imagepipe/prepare/splits.py").open("a", encoding="utf-8") as file:
        file.write('\nraise RuntimeError("this is not what was queued")\n')

    cache = tmp_path / "cache"
    with end_workers(folder, run_in):
        assert run_in(folder, "dvc", "queue", "start", "-j", "2", IMAGEPIPE_CACHE=str(cache)).returncode == 0
        wait_for_workers(folder, 2)
        wait_for_queue(folder, run_in, 2)
    models: set[bytes] = set()
    for name in ("first", "second"):
        files = DVCFileSystem(str(folder), rev=name)
        for key, pixels in pictures.items():
            with files.open(f"data/images/{key}.png", "rb") as file, Image.open(file) as image:
                assert np.array_equal(np.asarray(image), 255 - pixels)
        models.add(files.read_bytes("models/model.safetensors"))
    assert len(models) == 1
    assert [path.name for path in cache.iterdir() if path.name != "pixels"] in ([], ["checkpoints"])
    assert not [*cache.glob("checkpoints/*"), *cache.rglob("*.part")]
    assert not (folder / "data/images").exists()
