"""A user's own images the whole way, by the stages themselves: odd names, missing classes, recipes, a source of one's
own."""

import html
import json
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from dvc.utils.serialize import modify_yaml
from PIL import Image
from safetensors import safe_open

from imagepipe.core.hashes import hash_file
from imagepipe.core.manifest import SPLITS, read_dataset_info, read_manifest
from imagepipe.core.tables import read_text_table
from tests.conftest import ROOT
from tests.sources.loopback import serve
from tests.stages import STAGES, command_of

Run = Callable[..., subprocess.CompletedProcess[str]]
pytestmark = pytest.mark.slow

# In the spirit of the 'big list of naughty strings' (https://github.com/minimaxir/big-list-of-naughty-strings).
NAMES = [
    "NA",
    "no",
    "null",
    "007",
    "1e5",
    "12:30",
    'it\'s "quoted"',
    "two\nlines",
    "carriage\rreturn",
    "tab\there",
    "comma, semicolon;",
    "=cmd()",
    "-1",
    "$x_1$",
    "%s {0} \\n",
    "<img src=x onerror=alert(1)>",
    "&amp;",
    "🐈‍⬛ 🐟",
    "عربى",
    "\u202ertl override",
    "Ångström",
    "田中さん",
    "label",
    "class",
    "train",
]
IN_TABLES_ONLY = ["<script>alert(1)</script>", "a/b", "../up", "..", "x" * 300, "é" * 150]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with the base's params, set to a quick model, and a file that takes all classes."""
    (tmp_path / "data/classes").mkdir(parents=True)
    shutil.copyfile(ROOT / "data/classes/all.csv", tmp_path / "data/classes/all.csv")
    shutil.copyfile(ROOT / "recipes/base.yaml", tmp_path / "params.yaml")
    with modify_yaml(tmp_path / "params.yaml") as params:
        params["train"] |= {"model": "softmax", "epochs": 4}
    return tmp_path


@pytest.fixture
def run_stages(place: Path, run_python: Run) -> Callable[..., str]:
    """`run_stages(last="evaluate")`: all stages up to the last; what they printed."""

    def run(last: str = "evaluate") -> str:
        printed = ""
        for stage in STAGES:
            done = run_python(place, *command_of(stage)[1:])
            assert done.returncode == 0, done.stderr
            printed += done.stdout + done.stderr
            if stage == last:
                break
        return printed

    return run


def write_image(path: Path, number: int) -> None:
    """A 6×6 PNG of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (6, 6), dtype=np.uint8)).save(path)


def check_names(folder: Path, names: list[str]) -> None:
    """The very names stand in dataset.json, manifests, model file, predictions, tables and page."""
    classes = read_dataset_info(folder / "data/manifests/dataset.json").classes
    assert classes == sorted(names)
    for split in SPLITS:
        manifest = read_manifest(folder / f"data/manifests/{split}.csv")
        assert set(manifest["class"]) == set(names)
        assert [classes[label] for label in manifest["label"]] == manifest["class"].tolist()
    with safe_open(folder / "models/model.safetensors", "np") as model:
        (described,) = model.metadata().values()
        assert json.loads(described)["classes"] == classes
    predictions = read_text_table(folder / "reports/evaluate/predictions.csv")
    assert set(predictions["class"]) == set(names)
    assert [name for name in predictions.columns if name.startswith("logit:")] == [f"logit:{name}" for name in classes]
    assert read_text_table(folder / "reports/evaluate/per_class.csv")["class"].tolist() == classes
    page = (folder / "reports/report.html").read_bytes().decode("utf-8")  # as bytes: no line end is translated
    (table,) = re.findall(r'<table id="per-class">(.*?)</table>', page, re.DOTALL)
    shown = re.findall(r'<th scope="row"[^>]*>(.*?)</th>', table, re.DOTALL)
    assert [html.unescape(name) for name in shown] == classes
    assert "<script>alert" not in page


def test_odd_names_of_class_folders_go_the_whole_way(place: Path, run_stages: Callable[..., str]) -> None:
    for number, name in enumerate(NAMES):
        for copy in range(4):
            write_image(place / "mine" / name / f"{copy}.png", 10 * number + copy)
    with modify_yaml(place / "params.yaml") as params:
        params["fetch"] |= {"source": "folder", "path": "mine"}
        params["split"]["fractions"] = {"train": 0.5, "val": 0.25, "test": 0.25}
    run_stages()
    check_names(place, NAMES)


def test_odd_labels_of_a_table_go_the_whole_way_with_their_columns(place: Path, run_stages: Callable[..., str]) -> None:
    names = [*NAMES, *IN_TABLES_ONLY]
    rows = ['file,label,patient\'s "age"']
    for number, name in enumerate(names):
        for copy in range(4):
            write_image(place / f"mine/{number}-{copy}.png", 10 * number + copy)
            quoted = name.replace('"', '""')
            rows.append(f'{number}-{copy}.png,"{quoted}",{number}')
    (place / "mine/labels.csv").write_bytes("\n".join(rows).encode())
    with modify_yaml(place / "params.yaml") as params:
        params["fetch"] |= {"source": "table", "path": "mine"}
        params["split"]["fractions"] = {"train": 0.5, "val": 0.25, "test": 0.25}
    run_stages()
    check_names(place, names)
    predictions = read_text_table(place / "reports/evaluate/predictions.csv")
    assert predictions.columns[-1] == 'user:patient\'s "age"'
    assert [names[int(age)] for age in predictions.iloc[:, -1]] == predictions["class"].tolist()


def test_one_class_alone_stops_split_before_any_image_is_encoded(
    place: Path, run_stages: Callable[..., str], run_python: Run
) -> None:
    for number in range(9):
        write_image(place / "data/pets/cat" / f"{number}.png", number)
    with modify_yaml(place / "params.yaml") as params:
        params["fetch"] |= {"source": "folder", "path": "data/pets"}
    run_stages("fetch")
    done = run_python(place, *command_of("split")[1:])
    assert done.returncode == 2
    assert done.stderr == (
        "error: pets: has images of 1 class only ('cat'); a classifier needs two. Is the source read as it is meant "
        "(fetch.source, fetch.path, fetch.classes)?\n"
    )
    assert not (place / "data/images").exists()


def test_a_class_that_val_lacks_shifts_no_index(place: Path, run_stages: Callable[..., str]) -> None:
    # Brightness tells the class: a model that has learnt it gets val right only if val's labels are train's.
    for part, classes in {"train": "abc", "val": "ac", "test": "abc"}.items():
        for name in classes:
            for copy in range(8):
                grey = {"a": 10, "b": 120, "c": 240}[name] + copy
                path = place / "mine" / part / name / f"{copy}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.full((6, 6), grey + {"train": 0, "val": -1, "test": 1}[part], np.uint8)).save(path)
    with modify_yaml(place / "params.yaml") as params:
        params["fetch"] |= {"source": "folder", "path": "mine"}
        params["split"]["leaks"] = "keep"  # 8 shades each: a few are the same in two parts
        params["train"] |= {"model": "mlp", "epochs": 60, "batch_size": 8}
    printed = run_stages()
    val = read_manifest(place / "data/manifests/val.csv")
    assert dict(zip(val["class"], val["label"], strict=True)) == {"a": 0, "c": 2}
    metrics = json.loads((place / "reports/evaluate/metrics.json").read_text("utf-8"))
    assert metrics["val"]["accuracy"] == metrics["test"]["accuracy"] == 1
    assert "'b'" in printed  # the balance report says that val lacks it
    assert json.loads((place / "reports/balance/balance.json").read_text("utf-8"))["violations"] > 0


def use_recipe(folder: Path, recipe: str, **fetch: str) -> None:
    """Base plus recipe in `folder`, with another source, and one epoch."""
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    imagepipe = Path(sys.executable).with_name("imagepipe")
    done = subprocess.run(
        [imagepipe, "use", f"recipes/{recipe}.yaml", "--force"], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    with modify_yaml(folder / "params.yaml") as params:
        params["fetch"] |= fetch
        params["train"]["epochs"] = 1


@pytest.mark.proof
def test_cifar10_from_a_zip_of_class_folders(place: Path, cifar10_zip: Path, run_stages: Callable[..., str]) -> None:
    use_recipe(place, "cifar10", source="folder", name="", path=str(cifar10_zip))
    with modify_yaml(place / "params.yaml") as params:
        params["train"]["model"] = "cnn"  # a tenth of the work: here the data count
    printed = run_stages()
    assert "parts of the source: test (1000 files), train (10000 files)" in printed
    counts = read_dataset_info(place / "data/manifests/dataset.json").counts
    assert {split: sum(classes.values()) for split, classes in counts.items()} == {
        "train": 9500,
        "val": 500,
        "test": 1000,
    }
    assert set(counts["train"].values()) == {950}
    source = read_manifest(place / "data/manifests/test.csv").iloc[0]
    with zipfile.ZipFile(cifar10_zip) as archive, archive.open(source["source"]) as file, Image.open(file) as image:
        expected = np.asarray(image)
    with Image.open(place / "data/images" / source["path"]) as image:
        assert np.array_equal(np.asarray(image), expected)
    metrics = json.loads((place / "reports/evaluate/metrics.json").read_text("utf-8"))
    assert metrics["test"]["accuracy"] > 0.3  # after one epoch; chance is 0.1


@pytest.mark.proof
def test_catfish_from_folders_without_a_test_part(
    place: Path, cifar10_zip: Path, run_stages: Callable[..., str]
) -> None:
    stand_in = {"cat": "cat", "frog": "fish"}
    with zipfile.ZipFile(cifar10_zip) as archive:
        for name in archive.namelist():
            _, part, class_name, file = name.split("/")
            if class_name in stand_in:
                part = {"train": "train", "test": "valid"}[part]
                path = place / "data/catfish" / part / stand_in[class_name] / file
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(archive.read(name))
    use_recipe(place, "catfish")
    printed = run_stages()
    assert "its val is test here, and val is cut from its train part" in printed
    info = read_dataset_info(place / "data/manifests/dataset.json")
    assert (info.image.mode, info.image.width, info.image.height) == ("RGB", 64, 64)
    assert {split: sum(classes.values()) for split, classes in info.counts.items()} == {
        "train": 1750,
        "val": 250,
        "test": 215,
    }


@pytest.mark.proof
def test_a_folder_that_dvc_tracks_is_read_where_it_is_and_a_new_image_costs_one(
    tmp_path: Path, copy_project: Callable[[Path], Path], run_in: Run
) -> None:
    project = copy_project(tmp_path)
    for number in range(30):
        write_image(project / "data/pets" / "abc"[number % 3] / f"{number:02d}.png", number)
    with modify_yaml(project / "params.yaml") as params:
        params["fetch"] |= {"source": "folder", "path": "data/pets"}
    assert run_in(project, "dvc", "add", "data/pets").returncode == 0
    first = run_in(project, "dvc", "repro", "balance")
    assert first.returncode == 0, first.stderr
    assert "30 encoded" in first.stdout
    assert "tracked neither" not in first.stderr
    assert sorted(path.name for path in (project / "data/raw").iterdir()) == ["source.json"]
    assert "didn't change, skipping" in run_in(project, "dvc", "repro", "balance").stdout
    write_image(project / "data/pets/a/new.png", 99)
    again = run_in(project, "dvc", "repro", "balance")
    assert again.returncode == 0, again.stderr
    assert "1 encoded, 30 kept as they were" in again.stdout
    (project / "data/classes/two.csv").write_text("class,as\nc,c\na,a\n")
    with modify_yaml(project / "params.yaml") as params:
        params["fetch"]["classes"] = "data/classes/two.csv"
    chosen = run_in(project, "dvc", "repro", "balance")
    assert chosen.returncode == 0, chosen.stderr
    info = read_dataset_info(project / "data/manifests/dataset.json")
    assert info.classes == ["c", "a"]
    assert sum(sum(counts.values()) for counts in info.counts.values()) == 21
    (project / "data/classes/two.csv").write_text("class,as\nc,pet\na,pet\nb,b\n")  # its content counts, not its name
    assert run_in(project, "dvc", "repro", "balance").returncode == 0
    assert read_dataset_info(project / "data/manifests/dataset.json").classes == ["pet", "b"]


# What a shell would run, open, change or stumble over, and what DVC's own templates would.
SHELL_WORDS = 'it\'s "x" $(touch owned) `touch owned` $HOME ${fetch.name} \\${y} ; touch owned\n&& touch owned # *'


def test_a_path_that_a_shell_would_run_is_a_path(
    tmp_path: Path, copy_project: Callable[[Path], Path], run_in: Run
) -> None:
    project = copy_project(tmp_path)
    for number in range(30):
        write_image(project / "data" / SHELL_WORDS / "abc"[number % 3] / f"{number:02d}.png", number)
    classes = f"data/classes/{SHELL_WORDS}.csv"
    (project / classes).write_text("class,as\nc,c\na,a\n")
    with modify_yaml(project / "params.yaml") as params:
        params["fetch"] |= {"source": "folder", "path": f"data/{SHELL_WORDS}", "classes": classes}
    done = run_in(project, "dvc", "repro", "balance")
    assert done.returncode == 0, done.stderr
    assert not [*project.rglob("owned*")]
    info = read_dataset_info(project / "data/manifests/dataset.json")
    assert (info.source["name"], info.classes) == (SHELL_WORDS, ["c", "a"])
    assert "20 encoded" in done.stdout
    assert "Data and pipelines are up to date." in run_in(project, "dvc", "repro", "balance").stdout


def test_an_archive_behind_a_url_needs_its_hash_once(
    place: Path, tmp_path: Path, run_stages: Callable[..., str]
) -> None:
    archive = tmp_path / "pets.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for number in range(30):
            write_image(tmp_path / "one.png", number)
            packed.write(tmp_path / "one.png", f"pets/{'abc'[number % 3]}/{number:02d}.png")
    with serve() as server:
        server.answers["/pets.zip"] = lambda handler: handler.answer(200, archive.read_bytes())
        with modify_yaml(place / "params.yaml") as params:
            params["fetch"] |= {"source": "folder", "url": f"{server.url}/pets.zip"}
            params["run"]["cache_dir"] = str(tmp_path / "cache")
        asked = subprocess.run(command_of("fetch"), cwd=place, capture_output=True, text=True)
        assert asked.returncode == 2
        (found,) = re.findall(r"sha256: ([0-9a-f]{64})", asked.stderr)
        assert found == hash_file(archive)
        assert not (place / "data/raw").exists()
        with modify_yaml(place / "params.yaml") as params:
            params["fetch"]["sha256"] = found
    printed = run_stages("balance")  # the server is gone, the download was kept
    assert "fetch: pets: classes: 3 ('a', 'b', 'c')" in printed
    assert "30 encoded" in printed
