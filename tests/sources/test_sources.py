import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ruamel.yaml import YAML

from imagepipe.core.errors import InputError
from imagepipe.sources import SOURCES, fetch_source, read_records
from tests.sources.made import RUN, fetch_and_read, make_params, pack, write_chosen, write_files

OUTSIDE = pytest.mark.filterwarnings("ignore:.* lies outside the project")
SOURCE = Path("data/source")
RunIn = Callable[..., "subprocess.CompletedProcess[str]"]


def test_every_source_can_fetch_and_read() -> None:
    assert set(SOURCES) >= {"digits", "torchvision", "folder", "table"}
    for module in SOURCES.values():
        assert callable(module.fetch)
        assert callable(module.read_records)


def test_what_is_fetched_is_described_and_can_be_read(tmp_path: Path) -> None:
    fetched = fetch_source(make_params(), RUN, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["digits.csv.gz", "source.json"]
    records, info = read_records(SOURCE, tmp_path)
    assert info == fetched
    assert len(records) == 1797


def test_two_fetches_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        fetch_source(make_params(), RUN, tmp_path / name)
    for name in ("digits.csv.gz", "source.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@OUTSIDE
def test_two_fetches_of_an_archive_give_the_same_bytes(tmp_path: Path) -> None:
    archive = pack(write_files(tmp_path / "x", "cat/1.jpg", "dog/2.jpg"), tmp_path / "x.zip")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        fetch_source(make_params("folder", archive), RUN, tmp_path / name)
    for name in ("files.tar", "source.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_an_unknown_source_in_the_params_gets_a_suggestion(tmp_path: Path) -> None:
    expected = (
        r"fetch\.source: unknown source `digit`; did you mean `digits`\? Known: digits, folder, table, torchvision"
    )
    with pytest.raises(InputError, match=expected):
        fetch_source(make_params("digit"), RUN, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_source_in_the_description_names_the_file(tmp_path: Path) -> None:
    info = fetch_source(make_params(), RUN, tmp_path)
    (tmp_path / "source.json").write_text(json.dumps(info.model_dump() | {"source": "folders"}), "utf-8")
    with pytest.raises(InputError, match=r"source\.json: source: unknown source `folders`; .*Known: digits"):
        read_records(SOURCE, tmp_path)


def test_a_folder_that_the_source_would_not_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"fetch\.path: found photos, but the source `digits` reads no folder; exp"):
        fetch_source(make_params(path="photos"), RUN, tmp_path)


@pytest.mark.parametrize("changes", [{"url": "https://example.org/x.zip"}, {"sha256": "0" * 64}])
def test_an_address_that_the_source_would_not_read_is_refused(tmp_path: Path, changes: dict[str, str]) -> None:
    expected = r"fetch\.url and fetch\.sha256: the source `digits` has its own addresses; set both to ''"
    with pytest.raises(InputError, match=expected):
        fetch_source(make_params(**changes), RUN, tmp_path)


# Which classes are taken


def test_the_order_of_the_labels_is_that_of_the_file(tmp_path: Path) -> None:
    chosen = write_chosen(tmp_path / "c.csv", {"9": "nine", "0": "zero"})
    records, info = fetch_and_read(make_params(classes=chosen), tmp_path / "raw")
    assert info.list_classes() == ["nine", "zero"]
    assert [record.class_name for record in records].count("nine") == 180
    assert len(records) == 180 + 178  # records of other classes are gone
    assert (records[0].key, records[1].key) == ("00000", "00009")  # and the others keep their keys


def test_two_classes_become_one(tmp_path: Path) -> None:
    chosen = write_chosen(tmp_path / "c.csv", {"1": "odd", "2": "even", "3": "odd"})
    records, info = fetch_and_read(make_params(classes=chosen), tmp_path / "raw")
    assert info.list_classes() == ["odd", "even"]
    assert [record.class_name for record in records].count("odd") == 182 + 183


def test_pixels_are_those_of_the_source(tmp_path: Path) -> None:
    chosen = write_chosen(tmp_path / "c.csv", {"0": "zero"})
    records, _ = fetch_and_read(make_params(classes=chosen), tmp_path / "raw")
    assert isinstance(records[0].image, np.ndarray)
    assert records[0].image[0].tolist() == [0, 0, 80, 207, 143, 16, 0, 0]


def test_a_class_that_the_source_lacks_is_refused(tmp_path: Path) -> None:
    chosen = write_chosen(tmp_path / "c.csv", {"00": "zero"})
    with pytest.raises(
        InputError, match=r"c\.csv: classes that the source lacks \(1\):\n  '00'; did you mean `0`\? Known"
    ):
        fetch_and_read(make_params(classes=chosen), tmp_path / "raw")
    assert not (tmp_path / "raw" / "source.json").exists()


# What was fetched and is another now


@OUTSIDE
@pytest.mark.parametrize("damage", ["changed", "absent"])
def test_members_that_are_not_those_that_were_fetched_are_refused(tmp_path: Path, damage: str) -> None:
    archive = pack(write_files(tmp_path / "x", "cat/1.jpg", "dog/2.jpg"), tmp_path / "x.zip")
    fetch_and_read(make_params("folder", archive), tmp_path / "raw")
    held = tmp_path / "raw" / "files.tar"
    data = held.read_bytes()
    held.unlink()
    if damage == "changed":
        held.write_bytes(data.replace(b"cat/1.jpg", b"cat/1.jpX"))
    found = "absent" if damage == "absent" else "[0-9a-f]{64}"
    expected = (
        rf"files changed .*\(1\):\n  .*files\.tar: SHA-256 is {found}, expected [0-9a-f]{{64}}\nRun the fetch stage"
    )
    with pytest.raises(InputError, match=expected):
        read_records(archive, tmp_path / "raw")


# The stage itself


def write_project(folder: Path, root: Path, **fetch: Any) -> Path:
    """A working folder of the stage: params.yaml and the file of the classes."""
    values = YAML(typ="safe").load((root / "recipes" / "base.yaml").read_text("utf-8"))
    values["fetch"] |= fetch
    folder.mkdir()
    with (folder / "params.yaml").open("w", encoding="utf-8") as file:
        YAML(typ="safe").dump(values, file)
    (folder / "data" / "classes").mkdir(parents=True)
    shutil.copyfile(root / "data" / "classes" / "all.csv", folder / "data" / "classes" / "all.csv")
    return folder


@pytest.mark.parametrize("before", [False, True])
def test_a_wrong_table_ends_the_stage_with_2_and_leaves_everything_as_it_was(
    tmp_path: Path, root: Path, run_in: RunIn, before: bool
) -> None:
    folder = write_project(tmp_path / "project", root, source="table", path="photos")
    write_files(folder, "photos/a.png", "photos/labels.csv")
    (folder / "photos" / "labels.csv").write_text("file,label\na.png,\n", "utf-8")
    if before:
        write_files(folder, "data/raw/kept")
    done = run_in(folder, sys.executable, str(root / "stages" / "fetch.py"), "data/raw")
    assert done.returncode == 2
    assert "error: rows without a label (1):\n  labels.csv, line 2: a.png\n" in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in (folder / "data").iterdir()) == ["classes", *(["raw"] if before else [])]
    assert sorted(path.name for path in (folder / "data").rglob("*")) == [
        "all.csv",
        "classes",
        *["kept", "raw"][: 2 * before],
    ]


def test_a_refused_archive_ends_the_stage_with_2_and_leaves_nothing(tmp_path: Path, root: Path, run_in: RunIn) -> None:
    folder = write_project(tmp_path / "project", root, source="folder", path="photos.zip", sha256="0" * 64)
    pack(write_files(tmp_path / "x", "cat/1.jpg", "dog/2.jpg"), folder / "photos.zip")
    done = run_in(folder, sys.executable, str(root / "stages" / "fetch.py"), "data/raw")
    assert done.returncode == 2
    assert "error: photos.zip: SHA-256 is " in done.stderr
    assert [path.name for path in (folder / "data").iterdir()] == ["classes"]


def test_the_stage_says_what_it_left_out(tmp_path: Path, root: Path, run_in: RunIn) -> None:
    folder = write_project(tmp_path / "project", root, source="folder", path="photos")
    write_files(folder, "photos/cat/1.jpg", "photos/dog/2.jpg", "photos/dog/.DS_Store", "photos/README")
    done = run_in(
        folder,
        *(sys.executable, str(root / "stages" / "fetch.py"), "data/raw"),
        GIT_CEILING_DIRECTORIES=str(tmp_path),
        LC_ALL="C",
    )
    assert (done.returncode, done.stderr.count("\n")) == (0, 1)
    assert done.stderr.startswith("warning: photos is tracked neither by Git nor by DVC: `dvc repro` works, but")
    assert done.stdout.splitlines() == [
        "fetch: photos: classes: 2 ('cat', 'dog'); licence: not stated",
        "fetch: left out 1 file that no dataset needs: .DS_Store",
        "fetch: files in no class folder were left out (1):",
        "  README",
    ]
    assert [path.name for path in (folder / "data" / "raw").iterdir()] == ["source.json"]


def test_the_stage_names_ten_classes_and_what_columns_were_taken_for(tmp_path: Path, root: Path, run_in: RunIn) -> None:
    folder = write_project(tmp_path / "project", root, source="table", path="photos")
    write_files(folder, "photos/a.png", "photos/labels.csv")
    rows = "".join(f"{number}.png,{number:02d}\n" for number in range(12))
    (folder / "photos" / "labels.csv").write_text(f"file,label\na.png,it's\n{rows}", "utf-8")
    done = run_in(folder, sys.executable, str(root / "stages" / "fetch.py"), "data/raw")
    shown = ", ".join(f"'{number:02d}'" for number in range(10))
    assert done.stdout.splitlines()[:3] == [
        f"fetch: photos: classes: 13 ({shown} … and 3 more); licence: not stated",
        "fetch: labels.csv: files from `file`, labels from `label`",
        "fetch: rows whose file is missing (12):",
    ]
