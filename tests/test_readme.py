"""The README says what is so: its code runs, its output is what is printed."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from dvc.utils.serialize import modify_yaml
from PIL import Image

from imagepipe.core.config import SECTIONS, read_yaml
from imagepipe.core.hashes import hash_file
from imagepipe.evaluation.metrics import describe_accuracy
from tests.conftest import GIT_NAME, ROOT
from tests.pages import find_blocks, mask_arithmetic, mask_figures, split_commands
from tests.stages import STAGES

Run = Callable[..., subprocess.CompletedProcess[str]]
README = (ROOT / "README.md").read_text("utf-8")
COMPARING = (ROOT / "docs/evaluation.md").read_text("utf-8")


@pytest.mark.slow
def test_the_notebook_example_runs_as_it_stands(project: Path, run_in: Run) -> None:
    code = next(block for block in find_blocks(README, "python") if "make_loaders" in block)
    check = "\nprint(tuple(images.shape), images.dtype, tuple(labels.shape), labels.dtype)"
    done = run_in(project, sys.executable, "-c", code + check)
    assert done.stdout.strip() == "(64, 1, 8, 8) torch.uint8 (64,) torch.int64", done.stderr


@pytest.mark.slow
def test_commands_of_imagepipe_print_what_the_readme_shows(project: Path, run_in: Run) -> None:
    blocks = [block for block in find_blocks(README, "console") if re.match(r"\$ imagepipe (?!use)", block)]
    assert len(blocks) == 4
    for block in blocks:
        ((command, output),) = split_commands(block)
        assert mask_arithmetic(run_in(project, "sh", "-c", command).stdout) == mask_arithmetic(output)


def test_the_source_of_ones_own_works_as_it_stands(tmp_path: Path, copy_project: Callable[[Path], Path]) -> None:
    folder = copy_project(tmp_path)
    code = next(block for block in find_blocks(README, "python") if "read_records" in block)
    (folder / "src/imagepipe/sources/blobs.py").write_text(code, "utf-8")
    table = folder / "src/imagepipe/sources/__init__.py"
    text = table.read_text("utf-8").replace("import digits,", "import blobs, digits,")
    table.write_text(text.replace('    "digits": digits,', '    "digits": digits,\n    "blobs": blobs,'), "utf-8")
    with modify_yaml(folder / "params.yaml") as params:
        params["fetch"]["source"] = "blobs"
    for stage in ("fetch", "split"):
        command = [sys.executable, f"stages/{stage}.py", *STAGES[stage]]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert "split: 42 train, 6 val, 12 test; 60 encoded" in done.stdout


def test_every_make_target_of_the_readme_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    named = set(re.findall(r"(?:^\$ |`)make ([a-z-]+)", README, re.MULTILINE))
    assert {"repro", "test", "bench"} <= named <= targets


def test_make_bench_hands_its_data_on() -> None:
    assert '\tpython benchmarks/all.py $(if $(DATA),--data "$(DATA)")\n' in (ROOT / "Makefile").read_text("utf-8")
    assert "`make bench DATA=folder`" in README


def test_every_recipe_and_every_known_set_is_named() -> None:
    from imagepipe.sources.torchvision_sets import SETS

    recipes = {path.stem for path in (ROOT / "recipes").glob("*.yaml")} - {"base"}
    assert all(f"`{recipe}`" in README for recipe in recipes)
    assert all(name in README for name in SETS)


def test_every_extra_is_installed_with_the_exact_versions_wherever_it_is_asked_for() -> None:
    files = [
        ROOT / "README.md",
        ROOT / "recipes/base.yaml",
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "src").rglob("*.py"),
    ]
    named = [
        (path.name, line, extra)
        for path in files
        for line, extra in re.findall(r"^(.*\[(onnx|ray|timm)\].*)$", path.read_text("utf-8"), re.MULTILINE)
    ]
    assert {extra for _, _, extra in named} == {"onnx", "ray", "timm"}
    assert [found for found in named if f"pip install -c constraints.txt -e '.[{found[2]}]'" not in found[1]] == []


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


@pytest.mark.proof
def test_two_runs_compare_as_the_page_shows(project: Path, tmp_path: Path, run_in: Run) -> None:
    folder = shutil.copytree(project, tmp_path / "copy", symlinks=True)
    assert run_in(folder, "git", *GIT_NAME, "commit", "--allow-empty", "-qam", "run").returncode == 0
    block = next(block for block in find_blocks(COMPARING, "console") if "dvc exp run" in block)
    *commands, last = re.findall(r"^\$ (.*)", block, re.MULTILINE)
    for command in commands:
        done = run_in(folder, *command.split())
        assert done.returncode == 0, done.stderr
    printed = run_in(folder, *last.split()).stdout
    shown = block.rpartition(f"$ {last}\n")[2]
    assert mask_figures(printed) == mask_figures(shown)


# What each conditional cell of the README's table speaks of: outputs, or what `fetch.path` names.
CONDITIONS = {
    "if `data/raw`, `fetch.path` or its files changed": ("data/raw", "source"),
    "if the manifests changed": ("data/manifests",),
    "if the data changed": ("data/manifests", "data/images"),
}
# A section of params.yaml with other values in it; `files` is no section but another image in the user's folder.
CHANGES = (
    ("fetch", {"max_gigabytes": 21}),
    ("fetch", {"path": "data/copied", "name": "pets"}),
    ("fetch", {"classes": "data/classes/two.csv"}),
    ("files", {}),
    ("split", {"seed": 2}),
    ("balance", {"max_ratio": 2.0}),
    ("train", {"lr": 0.02}),
    ("evaluate", {"gallery": 8}),
    ("run", {"jobs": 1}),
)
# Stands in for the stages after split: DVC looks only at what a stage reads and writes.
STAND_IN = """
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from imagepipe.core.config import read_yaml
from imagepipe.core.hashes import hash_file

stage = Path(__file__).stem
described = read_yaml(Path("dvc.yaml"))[0]["stages"][stage]
made = read_yaml(Path("params.yaml"))[0][stage], [hash_file(path) for path in sorted(Path("data/manifests").iterdir())]
for entry in described["outs"] + described["metrics"]:
    path = Path(entry if isinstance(entry, str) else next(iter(entry)))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{path} {made}")
"""


def read_rerun_table() -> dict[str, dict[str, str]]:
    """Section → stage → whether it reruns, out of the README."""
    lines = README[README.index("| section |") :].partition("\n\n")[0].splitlines()
    (_, *stages), _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return {section.strip("`"): dict(zip(stages, cells, strict=True)) for section, *cells in rows}


def write_pets(folder: Path, numbers: Iterable[int]) -> None:
    """Small images that differ, in the class folders a, b and c."""
    for number in numbers:
        path = folder / "abc"[number % 3] / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (6, 6), dtype=np.uint8)).save(path)


def read_state(project: Path) -> dict[str, object]:
    """The hash of each output; and, as `source`, what `fetch.path` names and holds."""
    stages = read_yaml(project / "dvc.lock")[0]["stages"]
    path = read_yaml(project / "params.yaml")[0]["fetch"]["path"]
    outs = {out["path"]: out["md5"] for stage in stages.values() for out in stage["outs"]}
    return outs | {"source": (path, [hash_file(file) for file in sorted((project / path).rglob("*.png"))])}


@pytest.mark.proof
def test_ones_own_images_and_what_reruns_then_are_as_the_page_says(
    tmp_path: Path, copy_project: Callable[[Path], Path], run_in: Run
) -> None:
    folder, table = copy_project(tmp_path), read_rerun_table()
    for stage in ("balance", "train", "evaluate"):
        (folder / f"stages/{stage}.py").write_text(STAND_IN, "utf-8")
    for name in ("pets", "copied"):
        write_pets(folder / "data" / name, range(30))
    (folder / "data/classes/two.csv").write_text("class,as\nc,c\na,a\n")
    (pets,) = (block for block in find_blocks(README, "yaml") if "data/pets" in block)
    (folder / "pets.yaml").write_text(pets, "utf-8")
    (command,) = (block.removeprefix("$ ") for block in find_blocks(README, "console") if "pets.yaml" in block)
    first = run_in(folder, "sh", "-c", command)
    assert first.returncode == 0, first.stderr

    assert list(table) == [*SECTIONS]
    seen: set[tuple[str, bool]] = set()
    for section, values in CHANGES:
        before = read_state(folder)
        if section == "files":
            write_pets(folder / "data/copied", [30])
        else:
            with modify_yaml(folder / "params.yaml") as params:
                params[section] |= values
        done = run_in(folder, "dvc", "repro")
        assert done.returncode == 0, done.stderr
        after, ran = read_state(folder), re.findall(r"^Running stage '(\w+)'", done.stdout, re.MULTILINE)
        for stage, cell in table["fetch" if section == "files" else section].items():
            names = CONDITIONS.get(cell, ())
            expected = cell == "yes" or any(before[name] != after[name] for name in names)
            assert (stage in ran) == expected, (section, values, stage, ran)
            seen.add((cell, expected))
    assert seen == {("yes", True), ("", False), *((cell, holds) for cell in CONDITIONS for holds in (True, False))}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_repro_ends_with_what_the_readme_shows_and_make_clean_takes_nothing_that_is_not_kept(
    project: Path, tmp_path: Path, run_in: Run
) -> None:
    """Without installing, which is done (`-o env`)."""
    folder = shutil.copytree(project, tmp_path / "copy", symlinks=True)
    done = run_in(folder, "make", "--no-print-directory", "-o", "env", "repro")
    assert done.returncode == 0, done.stderr
    shown = next(block for block in find_blocks(README, "console") if block.startswith("$ make repro\n"))
    assert done.stdout.splitlines()[-2:] == shown.splitlines()[-2:]
    planned = run_in(folder, "make", "-o", "env", "-n", "repro", "RECIPE=mnist").stdout
    assert 'imagepipe use "recipes/mnist.yaml"' in planned
    others = [folder / "models" / name for name in ("mine.pth", "model.onnx")]
    for path in (*others, folder / "models/.model.safetensors.1.part"):
        path.write_bytes(b"mine")
    assert run_in(folder, "make", "clean").returncode == 0
    assert sorted(folder.joinpath("models").iterdir()) == others
    left = [path for path in read_state(folder) if (folder / path).exists()]
    assert sorted(left) == [f"reports/{name}.json" for name in ("balance/balance", "evaluate/metrics", "train/metrics")]
    assert run_in(folder, "dvc", "checkout").returncode == 0
    assert "Data and pipelines are up to date." in run_in(folder, "dvc", "repro").stdout


@pytest.mark.slow
def test_the_model_of_ones_own_trains_as_it_stands(project: Path, tmp_path: Path, run_in: Run) -> None:
    page = (ROOT / "docs/training.md").read_text("utf-8")
    code = next(block for block in find_blocks(page, "python") if "class Squeeze" in block)
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
    done = run_in(tmp_path, sys.executable, "stages/train.py", *STAGES["train"])
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "reports/train/metrics.json").read_text())["weights"] == 64 * 8 + 8 + 8 * 10 + 10
