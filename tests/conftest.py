"""What tests of several rooms share: where things are, small images, and records made of them."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Generator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from numpy.typing import NDArray

from imagepipe.sources.records import Record
from tests.circumstances import PLAIN
from tests.forked import Forking

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"
# The same examples each time, however long a busy machine takes over one: the change is judged, not its luck.
settings.register_profile(
    "imagepipe", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("imagepipe")

GIT_NAME = ["-c", "user.name=test", "-c", "user.email=test@localhost"]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the numbers that proofs recorded (`record_property`), and their sums."""
    proved = [report for report in terminalreporter.getreports("passed") if getattr(report, "user_properties", None)]
    if not proved:
        return
    terminalreporter.section("proved")
    sums: Counter[str] = Counter()
    for report in proved:
        numbers = dict(report.user_properties)
        sums.update(numbers)
        terminalreporter.write_line(
            f"{report.nodeid}: {', '.join(f'{name} {number:,}' for name, number in numbers.items())}"
        )
    terminalreporter.write_line(f"in all: {', '.join(f'{name} {number:,}' for name, number in sums.items())}")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Generator[None]:
    """What the stages keep between runs stays out of the user's cache folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IMAGEPIPE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def root() -> Path:
    """The root of the checkout."""
    return ROOT


@pytest.fixture
def mnist_dir() -> Path:
    """The folder with MNIST's four original files; the test is skipped where it is absent."""
    folder = SHARED / "mnist"
    if not (folder / "train-images-idx3-ubyte.gz").is_file():
        pytest.skip("needs MNIST's original files in ../shared/data/mnist")
    return folder


@pytest.fixture
def cifar10_zip() -> Path:
    """An archive of class folders with 11,000 images of CIFAR-10; the test is skipped where it is absent."""
    archive = SHARED / "cifar10" / "cifar10-11k.zip"
    if not archive.is_file():
        pytest.skip("needs a part of CIFAR-10 in ../shared/data/cifar10")
    return archive


@pytest.fixture
def make_image() -> Callable[..., NDArray[np.uint8]]:
    """`make_image(number, height=4, width=5, channels=1)`: uint8 pixels that differ for every number below 256."""

    def make(number: int, height: int = 4, width: int = 5, channels: int = 1) -> NDArray[np.uint8]:
        shape = (height, width) if channels == 1 else (height, width, channels)
        image = np.zeros(shape, np.uint8)
        image.flat[0] = number
        image.flat[-1] = 255 - number
        return image

    return make


@pytest.fixture
def make_records(make_image: Callable[..., NDArray[np.uint8]]) -> Callable[..., list[Record]]:
    """`make_records({"cat": 3, "dog": 2}, part="")`: records of small images, numbered through all classes."""

    def make(counts: dict[str, int], part: str = "", first: int = 0) -> list[Record]:
        names = [name for name, count in counts.items() for _ in range(count)]
        return [
            Record(f"{number:05d}", name, part, "", f"made#{number}", make_image(number % 256))
            for number, name in enumerate(names, start=first)
        ]

    return make


@pytest.fixture
def mount_disk(tmp_path: Path) -> Generator[Callable[[str], Path]]:
    """`mount_disk("size=64k")`: an empty disk of its own in memory; the test is skipped where none may be mounted."""
    mounted: list[Path] = []

    def mount(options: str) -> Path:
        place = tmp_path / f"disk{len(mounted)}"
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "imagepipe-test", str(place)]
        if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("needs the right to mount a disk in memory")
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", "-l", place], check=True)


@pytest.fixture(scope="session")
def copy_project() -> Callable[[Path], Path]:
    """`copy_project(folder)`: the files of this checkout as a fresh Git repository with one commit, and no outputs."""

    def copy(folder: Path) -> Path:
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        )
        for name in filter(None, listed.stdout.split("\0")):
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / name, folder / name)
        for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "as it is"]):
            subprocess.run(["git", *GIT_NAME, *command], cwd=folder, check=True)
        return folder

    return copy


@pytest.fixture(scope="session")
def run_in() -> Callable[..., subprocess.CompletedProcess[str]]:
    """`run_in(folder, "dvc", "repro", **environment)`: a command of this environment, its output captured.

    What it prints goes through files: a pipe would be waited for until all that it leaves behind has ended, too.
    """

    def run(folder: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        here = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "DVC_NO_ANALYTICS": "1"}
        with (
            tempfile.TemporaryFile("w+", encoding="utf-8") as out,
            tempfile.TemporaryFile("w+", encoding="utf-8") as err,
        ):
            done = subprocess.run(
                command, cwd=folder, env=os.environ | here | environment, stdout=out, stderr=err, check=False
            )
            out.seek(0)
            err.seek(0)
            return subprocess.CompletedProcess(command, done.returncode, out.read(), err.read())

    return run


@pytest.fixture(scope="session")
def run_python(tmp_path_factory: pytest.TempPathFactory) -> Generator[Callable[..., subprocess.CompletedProcess[str]]]:
    """`run_python(folder, "a.py", "argument", **environment)`: as `run_in`, for a script whose imports take long.

    It is run in a forked process; only the first one of a kind imports. Not for code of another checkout.
    """
    out, err = (tmp_path_factory.mktemp("printed") / name for name in ("out", "err"))
    with Forking(GOMP_SPINCOUNT="10000") as python:

        def run(folder: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
            for path in (out, err):
                path.write_bytes(b"")
            os.kill(python.begin(folder, list(command), out, err, **environment), signal.SIGCONT)
            code = python.end()
            return subprocess.CompletedProcess(command, code, out.read_bytes().decode(), err.read_bytes().decode())

        yield run


@pytest.fixture(scope="session")
def project(
    tmp_path_factory: pytest.TempPathFactory,
    copy_project: Callable[[Path], Path],
    run_in: Callable[..., subprocess.CompletedProcess[str]],
) -> Path:
    """A fresh repository in which the default pipeline has run once."""
    folder = copy_project(tmp_path_factory.mktemp("one"))
    done = run_in(folder, "dvc", "repro", **PLAIN)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="session")
def origin(
    project: Path, tmp_path_factory: pytest.TempPathFactory, run_in: Callable[..., subprocess.CompletedProcess[str]]
) -> Path:
    """A repository in which the default pipeline has run and is committed; its data lie in its remote, `store`."""
    place = tmp_path_factory.mktemp("published")
    folder = shutil.copytree(project, place / "origin", symlinks=True)
    for command in (
        ("dvc", "remote", "add", "-d", "store", str(place / "store")),
        ("dvc", "push", "-q"),
        ("git", *GIT_NAME, "commit", "-qam", "next"),
    ):
        done = run_in(folder, *command)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def clone(origin: Path, tmp_path: Path, run_in: Callable[..., subprocess.CompletedProcess[str]]) -> Path:
    """A fresh clone of `origin`, without any data."""
    folder = tmp_path / "clone"
    assert run_in(tmp_path, "git", "clone", "-q", str(origin), str(folder)).returncode == 0
    return folder
