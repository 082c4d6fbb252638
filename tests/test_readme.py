"""The README says what is so: its code runs, its output is what is printed."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from dvc.utils.serialize import modify_yaml

from imagepipe.evaluation.metrics import describe_accuracy
from tests.conftest import GIT_NAME, ROOT

Run = Callable[..., subprocess.CompletedProcess[str]]
README = (ROOT / "README.md").read_text("utf-8")
COMPARING = (ROOT / "docs/evaluation.md").read_text("utf-8")


def find_blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.mark.slow
def test_the_notebook_example_runs_as_it_stands(project: Path, run_in: Run) -> None:
    code = next(block for block in find_blocks("python") if "make_loaders" in block)
    check = "\nprint(tuple(images.shape), images.dtype, tuple(labels.shape), labels.dtype)"
    done = run_in(project, sys.executable, "-c", code + check)
    assert done.stdout.strip() == "(64, 1, 8, 8) torch.uint8 (64,) torch.int64", done.stderr


@pytest.mark.slow
def test_commands_of_imagepipe_print_what_the_readme_shows(project: Path, run_in: Run) -> None:
    shown = [block for block in find_blocks("console") if block.startswith("$ imagepipe")]
    assert shown
    for block in shown:
        command, _, output = block.removeprefix("$ ").partition("\n")
        assert mask_arithmetic(run_in(project, *command.split()).stdout) == mask_arithmetic(output)


def mask_arithmetic(output: str) -> str:
    """Without the digits that the last bits of floating-point sums decide: another processor gives others."""
    return re.sub(r"\b0\.\d{6}\b|\b\d\.\de-\d\d\b", "#", output)


def test_the_source_of_ones_own_works_as_it_stands(tmp_path: Path, copy_project: Callable[[Path], Path]) -> None:
    folder = copy_project(tmp_path)
    code = next(block for block in find_blocks("python") if "read_records" in block)
    (folder / "src/imagepipe/sources/blobs.py").write_text(code, "utf-8")
    table = folder / "src/imagepipe/sources/__init__.py"
    text = table.read_text("utf-8").replace("import digits,", "import blobs, digits,")
    table.write_text(text.replace('    "digits": digits,', '    "digits": digits,\n    "blobs": blobs,'), "utf-8")
    with modify_yaml(folder / "params.yaml") as params:
        params["fetch"]["source"] = "blobs"
    for stage, *places in (
        ["fetch", "data/raw"],
        ["split", "data/raw", "data/images", "data/manifests"],
    ):
        command = [sys.executable, f"stages/{stage}.py", *places]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert "split: 42 train, 6 val, 12 test; 60 encoded" in done.stdout


def test_every_make_target_of_the_readme_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    named = set(re.findall(r"(?:^\$ |`)make ([a-z-]+)", README, re.MULTILINE))
    assert {"repro", "test", "bench"} <= named <= targets


def test_every_recipe_and_every_known_set_is_named() -> None:
    from imagepipe.sources.torchvision_sets import SETS

    recipes = {path.stem for path in (ROOT / "recipes").glob("*.yaml")} - {"base"}
    assert all(f"`{recipe}`" in README for recipe in recipes)
    assert all(name in README for name in SETS)


def test_every_recipe_says_at_its_head_what_it_reaches() -> None:
    for path in (ROOT / "recipes").glob("*.yaml"):
        head = "".join(line for line in path.read_text("utf-8").splitlines(True) if line.startswith("#"))
        assert path.stem == "base" or re.search(rf"make repro RECIPE={path.stem}\n#\n# Reaches \d\d\.\d+ %", head)


def test_the_default_result_is_the_committed_one() -> None:
    test = json.loads((ROOT / "reports/evaluate/metrics.json").read_text("utf-8"))["test"]
    assert describe_accuracy(test, 0.95) in README
    accuracy, low, high = (f"{100 * test[name]:.2f} %" for name in ("accuracy", "accuracy_low", "accuracy_high"))
    assert f"{accuracy}, {low.removesuffix(' %')}–" in README
    for page in (README, COMPARING):
        assert f"| HEAD | {accuracy} | {low} to {high} | {test['images']} |" in page


@pytest.mark.slow
def test_two_runs_compare_as_the_page_shows(project: Path, tmp_path: Path, run_in: Run) -> None:
    folder = shutil.copytree(project, tmp_path / "copy", symlinks=True)
    assert run_in(folder, "git", *GIT_NAME, "commit", "--allow-empty", "-qam", "run").returncode == 0
    block = next(block for block in re.findall(r"```console\n(.*?)```", COMPARING, re.DOTALL) if "dvc exp run" in block)
    *commands, last = re.findall(r"^\$ (.*)", block, re.MULTILINE)
    for command in commands:
        done = run_in(folder, *command.split())
        assert done.returncode == 0, done.stderr
    printed = run_in(folder, *last.split()).stdout
    shown = block.rpartition(f"$ {last}\n")[2]
    assert mask_figures(printed) == mask_figures(shown)


def mask_figures(output: str) -> str:
    """The runs, the verdict and the params without their figures; classes and images differ by processor."""
    before, _, _ = output.partition("| class |")
    return re.sub(r"[-+]?\d+(\.\d+)?", "#", before)


def test_the_rerun_table_has_every_section() -> None:
    sections = re.findall(r"^\| `([a-z]+)` \|", README, re.MULTILINE)
    assert sections[-6:] == ["fetch", "split", "balance", "train", "evaluate", "run"]


@pytest.mark.slow
def test_the_model_of_ones_own_trains_as_it_stands(project: Path, tmp_path: Path, run_in: Run) -> None:
    page = (ROOT / "docs/training.md").read_text("utf-8")
    code = next(block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "class Squeeze" in block)
    for folder in ("src", "stages", "data"):
        shutil.copytree(project / folder, tmp_path / folder)
    shutil.copy(project / "params.yaml", tmp_path)
    (tmp_path / "src/imagepipe/models/squeeze.py").write_text(code, "utf-8")
    table = tmp_path / "src/imagepipe/models/bodies.py"
    text = table.read_text("utf-8").replace('    "cnn": Cnn,', '    "cnn": Cnn,\n    "squeeze": Squeeze,')
    text = text.replace(
        "from imagepipe.models.timm", "from imagepipe.models.squeeze import Squeeze\nfrom imagepipe.models.timm", 1
    )
    table.write_text(text, "utf-8")
    with modify_yaml(tmp_path / "params.yaml") as params:
        params["train"] |= {"model": "squeeze", "epochs": 2}
    places = ["data/manifests", "data/images", "models/model.safetensors", "reports/train"]
    done = run_in(tmp_path, sys.executable, "stages/train.py", *places)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "reports/train/metrics.json").read_text())["weights"] == 64 * 8 + 8 + 8 * 10 + 10
