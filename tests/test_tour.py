"""The tour says what is so: its blocks run, print what it shows and draw its pictures, and the notebook is the page."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import ROOT
from tests.pages import find_blocks, list_decimals, mask_decimals

Run = Callable[..., subprocess.CompletedProcess[str]]
DOCS = ROOT / "docs"
PAGE = (DOCS / "tour.md").read_text("utf-8")
PICTURES = re.findall(r"!\[.+\]\((tour/\S+\.png)\)", PAGE)


def run_tour(run_in: Run, folder: Path, *arguments: str) -> None:
    """Run every block in the folder `docs` of a project whose pipeline has run."""
    done = run_in(folder, sys.executable, str(ROOT / ".ci/tour.py"), "--into", str(folder / "docs"), *arguments)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def toured(project: Path, tmp_path_factory: pytest.TempPathFactory, run_in: Run) -> Path:
    """A project in which the default pipeline and the tour have run."""
    folder = tmp_path_factory.mktemp("tour") / "project"
    shutil.copytree(project, folder, symlinks=True)
    for path in (folder / "docs").rglob("tour*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    run_tour(run_in, folder)
    return folder


@pytest.mark.proof
def test_the_blocks_print_what_the_page_shows(toured: Path) -> None:
    """To the letter, but for numbers with a decimal point: another processor moves their last digits."""
    made = (toured / "docs/tour.md").read_text("utf-8")
    assert mask_decimals(made) == mask_decimals(PAGE)
    assert list_decimals(made) == pytest.approx(list_decimals(PAGE), rel=0.1, abs=0.03)


@pytest.mark.proof
@pytest.mark.parametrize("name", PICTURES)
def test_the_blocks_draw_the_pictures_of_the_page(toured: Path, name: str) -> None:
    """Pixel by pixel, where every number is the same too; on another processor a curve may lie a little off."""
    made, shown = (np.asarray(Image.open(folder / name).convert("RGB"), float) for folder in (toured / "docs", DOCS))
    assert made.shape == shown.shape
    same_processor = (toured / "docs/tour.md").read_text("utf-8") == PAGE
    assert np.abs(made - shown).mean() <= (0 if same_processor else 10)


@pytest.mark.proof
def test_its_table_goes_through_the_pipeline_as_it_says(toured: Path, run_in: Run) -> None:
    [recipe] = find_blocks(PAGE, "yaml")
    (toured / "tour.yaml").write_text(recipe, "utf-8")
    for command in (["imagepipe", "use", "tour.yaml"], ["dvc", "repro", "evaluate"]):
        done = run_in(toured, *command)
        assert done.returncode == 0, done.stderr
    counts = json.loads((toured / "data/manifests/dataset.json").read_text("utf-8"))["counts"]
    assert [sum(counts[part].values()) for part in ("train", "val", "test")] == [1078, 359, 360]


@pytest.mark.proof
def test_the_blocks_run_with_mnist_too(project: Path, tmp_path: Path, mnist_dir: Path, run_in: Run) -> None:
    shutil.copytree(project / "models", tmp_path / "models")
    run_tour(run_in, tmp_path, "--mnist", str(mnist_dir))
    page = (tmp_path / "docs/tour.md").read_text("utf-8")
    assert "images: (5000, 28, 28) uint8 from 0 to 255" in page


def test_the_notebook_is_the_page(root: Path, run_in: Run) -> None:
    done = run_in(root, sys.executable, ".ci/tour.py", "--notebook")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (DOCS / "tour.ipynb").read_text("utf-8")


def test_the_notebook_has_every_block_with_its_output_and_pictures() -> None:
    notebook = json.loads((DOCS / "tour.ipynb").read_text("utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    cells = notebook["cells"]
    assert len({cell["id"] for cell in cells}) == len(cells)
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    blocks = find_blocks(PAGE, "python")
    assert [source for source in code if not source.startswith("!")] == [block.strip() for block in blocks]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    assert sum("data" in output for output in outputs) == len(PICTURES) > 10
    printed = ["".join(output["text"]) for output in outputs if "text" in output]
    assert set(find_blocks(PAGE, "text")) <= set(printed)


def test_every_picture_is_small_and_shown() -> None:
    assert sorted(PICTURES) == sorted(f"tour/{path.name}" for path in (DOCS / "tour").glob("*.png"))
    assert all((DOCS / name).stat().st_size < 60_000 for name in PICTURES)
