import os
import subprocess
from itertools import count, islice
from pathlib import Path

import pytest

from imagepipe.core.slices import FileSlice
from imagepipe.core.unfinished import make_unfinished, name_unfinished
from imagepipe.data.conversion import Foreign, cut_chunks
from imagepipe.inference.inputs import Inputs, fits


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: a/1.png, a/2.jpg, a/deep/3.png and b.png, a byte each."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a" / "deep").mkdir(parents=True)
    for name in ("a/2.jpg", "a/1.png", "a/deep/3.png", "b.png"):
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def find(*arguments: str, lines: list[bytes] | None = None) -> list[str]:
    """The paths that are found; what cannot be read stands with its reason."""
    found = Inputs(arguments, lines or [])
    return [image.path if isinstance(image.file, FileSlice) else f"{image.path}: {image.file}" for image in found]


def test_files_come_in_the_order_in_which_they_are_named(here: Path) -> None:
    assert find("b.png", "a/1.png", "b.png") == ["b.png", "a/1.png", "b.png"]
    assert list(Inputs(["b.png"])) == [Foreign("b.png", FileSlice("b.png", 0, 1))]


def test_folders_are_gone_through_in_the_order_of_names(here: Path) -> None:
    assert find("a") == ["a/1.png", "a/2.jpg", "a/deep/3.png"]
    assert find(str(here / "a" / "deep")) == [f"{here}/a/deep/3.png"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.png", ["b.png"]),
        ("a/*", ["a/1.png", "a/2.jpg", "a/deep/3.png"]),
        ("a/[12].*", ["a/1.png", "a/2.jpg"]),
        ("a/**/*.png", ["a/1.png", "a/deep/3.png"]),
        ("**/*.png", ["./a/1.png", "./a/deep/3.png", "./b.png"]),
        ("a/**", ["a/1.png", "a/2.jpg", "a/deep/3.png"]),
        ("a/*.gif", ["a/*.gif: no file fits this pattern"]),
        ("a/**/*.gif", ["a/**/*.gif: no file fits this pattern"]),
    ],
)
def test_patterns_are_those_of_a_shell(here: Path, pattern: str, expected: list[str]) -> None:
    assert find(pattern) == expected


def test_a_name_that_looks_like_a_pattern_is_a_name_first(here: Path) -> None:
    (here / "a" / "[1].png").write_bytes(b"x")
    assert find("a/[1].png") == ["a/[1].png"]


def test_a_list_names_one_path_on_each_line(here: Path) -> None:
    lines = [b"b.png\n", b"\n", b"a/deep\r\n", b"a/1.png"]
    assert find("-", "b.png", lines=lines) == ["b.png", "a/deep/3.png", "a/1.png", "b.png"]
    assert find("-", lines=[b"a.png\0b.png\0"]) == [
        "a.png\0b.png\0: a path holds no NUL; a list has one path on each line"
    ]


def test_what_is_no_plain_file_is_said_of_what_was_named_and_noted_of_a_folder(here: Path) -> None:
    os.mkfifo(here / "a" / "pipe")
    (here / "a" / "deep" / "loop").symlink_to("..")
    assert find("a/pipe") == ["a/pipe: is no plain file"]
    found = Inputs(["a"])
    assert [image.path for image in found] == ["a/1.png", "a/2.jpg", "a/deep/3.png"]
    assert found.notes == ["links to folders and what is no plain file are not followed (2):\n  a/deep/loop\n  a/pipe"]
    assert find("a/deep/loop") == ["a/deep/loop/1.png", "a/deep/loop/2.jpg", "a/deep/loop/deep/3.png"]
    assert find("a/**/3.png") == ["a/deep/3.png"]


def test_what_the_system_and_split_leave_in_folders_is_noted(here: Path) -> None:
    for name in (".DS_Store", "Thumbs.db", "index.arrow"):
        (here / "a" / name).write_bytes(b"x")
    found = Inputs(["a"])
    assert len(list(found)) == found.files == 3
    assert found.notes == ["left out 3 files that no dataset needs: .DS_Store, Thumbs.db, index.arrow"]
    assert find("a/.DS_Store") == ["a/.DS_Store"]


def test_what_is_being_written_is_not_noted(here: Path) -> None:
    (here / "a" / name_unfinished()).write_bytes(b"x")
    make_unfinished(here / "a").joinpath("4.png").write_bytes(b"x")
    found = Inputs(["a"])
    assert [image.path for image in found] == ["a/1.png", "a/2.jpg", "a/deep/3.png"]
    assert (found.files, found.notes) == (3, [])


def test_files_that_are_not_there_are_images_that_cannot_be_read(here: Path) -> None:
    (here / "a" / "dangling.png").symlink_to("gone")
    found = Inputs(["nope.png", "a/dangling.png"])
    assert list(found) == [
        Foreign("nope.png", FileSlice("nope.png", 0, None)),
        Foreign("a/dangling.png", FileSlice("a/dangling.png", 0, None)),
    ]
    assert found.files == 0


def test_an_empty_folder_and_one_that_cannot_be_read_are_said(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "empty").mkdir()
    assert find("empty") == ["empty: no file lies in this folder"]

    def refuse(folder: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refuse)
    assert find("a") == ["a: cannot be read: Permission denied"]


def test_names_that_are_not_utf_8_are_found(here: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    (here / "a" / "deep" / name).write_bytes(b"x")
    assert find("a/deep") == ["a/deep/3.png", f"a/deep/{name}"]
    assert find("-", lines=[b"a/deep/caf\xe9.png\n"]) == [f"a/deep/{name}"]


def test_folders_may_be_nested_deeper_than_python_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    depth = 1100
    try:
        for _ in range(depth):
            Path("a").mkdir()
            os.chdir("a")
        Path("1.png").write_bytes(b"x")
        os.chdir(tmp_path)
        assert find("a") == ["a/" * depth + "1.png"]
    finally:  # pytest itself cannot remove so deep a tree
        subprocess.run(["rm", "-rf", tmp_path / "a"], check=True)


@pytest.mark.parametrize(
    ("path", "pattern", "expected"),
    [
        ("a", "a", True),
        ("a/b", "a", False),
        ("a", "a/b", False),
        ("b.png", "**/*.png", True),
        ("x/y/b.png", "**/*.png", True),
        ("x/y/b.png", "**/y/*.png", True),
        ("x/y/b.png", "x/**/**/b.png", True),
        ("x/y/b.png", "**/x/*.png", False),
        ("x/b.png", "**", True),
    ],
)
def test_patterns_of_any_depth(path: str, pattern: str, expected: bool) -> None:
    assert fits(path.split("/"), pattern.split("/")) is expected


def test_chunks_are_cut_as_images_come(here: Path) -> None:
    read = count()
    lines = (b"b.png\n" for _ in read)
    found = Inputs(["-"], lines)
    assert len(list(islice(cut_chunks(found, 10), 3))) == 3
    assert next(read) <= 31
