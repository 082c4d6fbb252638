"""The same bytes, whatever a run finds around it.

The stages run as DVC runs them, in fresh folders, once plainly and once under each of the circumstances, and all that
they wrote is compared byte by byte.
"""

import shutil
import sys
from collections.abc import Callable, Iterable
from itertools import zip_longest
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.circumstances import YEARS, Circumstances, Run, change_params, copy_files, make_locale, set_knobs, under
from tests.data.made import encode, turn
from tests.stages import STAGES

PETS_DIR = "data/pets"
LAYOUTS = ("single", "shards")
DATA_HALF = ("fetch", "split", "balance")
PETS = (
    ("  source: digits\n", "  source: folder\n"),
    ("  path: data/source\n", "  path: data/pets\n"),
    ("    mode: keep\n", "    mode: RGB\n"),
    ("    height: 0\n", "    height: 64\n"),
    ("    width: 0\n", "    width: 64\n"),
)
Outputs = dict[str, bytes]  # path → content
Make = Callable[..., Outputs]
Copy = Callable[[Path, Circumstances], Path]
Record = Callable[[str, object], None]
SEEDS = (
    ("  seed: 1\n  # Images", "  seed: 2\n  # Images"),
    ("  seed: 1\n  # auto", "  seed: 2\n  # auto"),
)

AROUND = {
    "time zone": Circumstances({"TZ": "Pacific/Kiritimati"}),
    "locale C": Circumstances({"LC_ALL": "C", "LANG": "C"}),
    "Turkish": Circumstances({"LC_ALL": "tr_TR.UTF-8", "LANGUAGE": "tr"}),
    "umask": Circumstances(umask=0o077),
    "hash seed": Circumstances({"PYTHONHASHSEED": "4242"}),
    "random hash seed": Circumstances({"PYTHONHASHSEED": "random"}),
    "reversed listings": Circumstances(listing="reversed", created="reversed"),
    "shuffled listings": Circumstances(listing="shuffled", created="shuffled"),
    "one process": Circumstances(jobs=1, workers=1),
    "three processes": Circumstances(jobs=3, workers=2),
    "one core": Circumstances(cores=1),
    "load": Circumstances(busy=True),
    "1996": Circumstances(clock=-30 * YEARS),
    "2056": Circumstances(clock=30 * YEARS),
    "folders of its own": Circumstances(owns=("HOME", "TMPDIR", "XDG_CACHE_HOME", "MPLCONFIGDIR")),
    "narrow terminal": Circumstances({"COLUMNS": "20", "LINES": "5", "TERM": "dumb", "NO_COLOR": "1"}),
    "long path": Circumstances(place="/".join(["a longer name with ä and ' in it"] * 5)),
    "second run": Circumstances(again=True, owns=("IMAGEPIPE_CACHE",)),
    "everything": Circumstances(
        {"TZ": "America/St_Johns", "LC_ALL": "C", "PYTHONHASHSEED": "7", "MPLBACKEND": "svg", "COLUMNS": "200"},
        umask=0o027,
        listing="shuffled",
        clock=-10 * YEARS,
        cores=1,
        jobs=2,
        workers=1,
        place="x",
        owns=("HOME", "TMPDIR", "IMAGEPIPE_CACHE"),
        created="reversed",
        busy=True,
        again=True,
    ),
}
OF_MODEL = ("one core", "load", "three processes", "reversed listings", "2056", "second run", "everything")


def draw_pets(folder: Path) -> None:
    """Three classes of twelve images, of every kind that cameras and programs write."""
    for number, name in enumerate(("cats", "Dogs", "é")):
        generator = np.random.default_rng(number)
        (folder / name).mkdir(parents=True)
        for place in range(2):
            pixels = generator.integers(0, 256, (40 + place, 70, 3), dtype=np.uint8)
            rgb, grey = Image.fromarray(pixels), Image.fromarray(pixels[:, :, 0])
            deep = Image.fromarray(generator.integers(0, 65_536, (50, 30), dtype=np.uint16))
            alpha = Image.fromarray(generator.integers(0, 256, (33, 65, 4), dtype=np.uint8))
            shifted = Image.fromarray(np.roll(pixels, 9, axis=0))
            files = {
                "photo.jpg": encode(rgb, "JPEG"),
                "turned.jpeg": turn(shifted, 6),
                "palette.png": encode(shifted.convert("P"), "PNG"),
                "deep.png": encode(deep, "PNG"),
                "alpha.png": encode(alpha, "PNG"),
                "grey.bmp": encode(grey, "BMP"),
            }
            for file, data in files.items():
                (folder / name / f"{place}-{file}").write_bytes(data)


def run_stages(around: Circumstances, project: Path, stages: Iterable[str], run_in: Run) -> None:
    """Run the stages; where a run is to find what another left, twice, with other seeds before."""

    def run_all() -> None:
        for stage in stages:
            run(project, sys.executable, f"stages/{stage}.py", *STAGES[stage])

    set_knobs(project, around)
    with under(around, run_in) as run:
        if around.again:
            change_params(project, *SEEDS)
            run_all()
            change_params(project, *((new, old) for old, new in SEEDS))
        run_all()


def read_outputs(project: Path, stages: Iterable[str]) -> Outputs:
    """Path → bytes of every file that the stages name."""
    places = {project / path for stage in stages for path in STAGES[stage]}
    files = [path for place in places for path in [place, *place.rglob("*")] if path.is_file()]
    return {str(path.relative_to(project)): path.read_bytes() for path in files}


def compare(one: Outputs, other: Outputs) -> tuple[int, list[str]]:
    """How many bytes differ, all of those of a file that only one has, and the files."""
    total = 0
    files: list[str] = []
    for name in sorted(one.keys() | other.keys()):
        first, second = one.get(name), other.get(name)
        if first != second:
            files.append(name)
            total += sum(a != b for a, b in zip_longest(first or b"", second or b"")) or 1
    return total, files


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    draw_pets(folder)
    return folder


@pytest.fixture(scope="module")
def copy_base(copy_project: Callable[[Path], Path]) -> Copy:
    """A fresh project with the params of the base, in the place that the circumstances say."""

    def copy(folder: Path, around: Circumstances) -> Path:
        project = copy_project(folder / around.place)
        shutil.copyfile(project / "recipes" / "base.yaml", project / "params.yaml")
        return project

    return copy


@pytest.fixture(scope="module")
def run_pets(pets: Path, copy_base: Copy, run_in: Run) -> Make:
    """`run_pets(folder, around, layout)`: what fetch, split and balance make of the images in a new project."""

    def run(folder: Path, around: Circumstances, layout: str) -> Outputs:
        project = copy_base(folder, around)
        copy_files(pets, project / PETS_DIR, around.created)
        change_params(project, *PETS, ("  layout: single\n", f"  layout: {layout}\n"))
        run_stages(around, project, DATA_HALF, run_in)
        return read_outputs(project, DATA_HALF)

    return run


@pytest.fixture(scope="module")
def run_digits(copy_base: Copy, run_in: Run) -> Make:
    """`run_digits(folder, around)`: what all stages make of the default data, in a new project."""

    def run(folder: Path, around: Circumstances) -> Outputs:
        project = copy_base(folder, around)
        change_params(project, ("  epochs: 20\n", "  epochs: 3\n"))
        run_stages(around, project, STAGES, run_in)
        return read_outputs(project, STAGES)

    return run


@pytest.fixture(scope="module")
def plain_pets(tmp_path_factory: pytest.TempPathFactory, run_pets: Make) -> dict[str, Outputs]:
    """Layout → what a plain run makes."""
    return {layout: run_pets(tmp_path_factory.mktemp(layout), Circumstances(), layout) for layout in LAYOUTS}


@pytest.fixture(scope="module")
def plain_digits(tmp_path_factory: pytest.TempPathFactory, run_digits: Make) -> Outputs:
    return run_digits(tmp_path_factory.mktemp("digits"), Circumstances())


def record(record_property: Record, plain: Outputs, other: Outputs) -> tuple[int, list[str]]:
    found = compare(plain, other)
    record_property("runs compared", 1)
    record_property("files", len(plain))
    record_property("bytes", sum(map(len, plain.values())))
    record_property("differing bytes", found[0])
    return found


@pytest.mark.proof
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", AROUND)
def test_fetch_split_and_balance_give_the_same_bytes(
    name: str,
    layout: str,
    plain_pets: dict[str, Outputs],
    run_pets: Make,
    tmp_path: Path,
    record_property: Record,
) -> None:
    other = run_pets(tmp_path, AROUND[name], layout)
    assert record(record_property, plain_pets[layout], other) == (0, [])


@pytest.mark.proof
@pytest.mark.parametrize("name", OF_MODEL)
def test_train_and_evaluate_give_the_same_bytes(
    name: str,
    plain_digits: Outputs,
    run_digits: Make,
    tmp_path: Path,
    record_property: Record,
) -> None:
    assert record(record_property, plain_digits, run_digits(tmp_path, AROUND[name])) == (0, [])


def test_a_byte_that_differs_would_be_found() -> None:
    assert compare({"a": b"xyz", "b": b"x"}, {"a": b"xyz!", "c": b""}) == (3, ["a", "b", "c"])


def test_a_locale_that_cannot_be_made_is_not_taken_for_another(tmp_path: Path) -> None:
    with pytest.raises(pytest.skip.Exception, match=r"the sources of locales for xx_XX\.UTF-8"):
        make_locale("xx_XX.UTF-8", tmp_path / "locales")
