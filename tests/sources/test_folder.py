import os
import re
import sys
import unicodedata
from pathlib import Path

import pytest

from imagepipe.core.errors import InputError
from imagepipe.core.slices import FileSlice
from imagepipe.sources import folder as folder_source
from imagepipe.sources.records import Record, SourceInfo
from tests.sources.made import RUN, fetch_and_read, make_params, pack, read_bytes, write_chosen, write_files

pytestmark = pytest.mark.filterwarnings("ignore:.* lies outside the project")
ARCHIVES = ["a.zip", "a.tar", "a.tar.gz", "a.tar.xz", "a.tar.bz2"]
only_posix = pytest.mark.skipif(sys.platform == "win32", reason="such names and links are not to be had on Windows")


def read(folder: Path, **changes: object) -> tuple[list[Record], SourceInfo]:
    """The records of a folder or archive, and its description; `data/raw` lies beside it."""
    return fetch_and_read(make_params("folder", folder, **changes), folder.with_name(f"raw of {folder.name}"))


def fail(folder: Path, message: str, **changes: object) -> None:
    with pytest.raises(InputError, match=message):
        read(folder, **changes)


def list_rows(records: list[Record]) -> list[tuple[str, str, str]]:
    return [(record.key, record.class_name, record.part) for record in records]


# Where classes and parts are


def test_class_folders(tmp_path: Path) -> None:
    records, info = read(write_files(tmp_path / "pets", "dog/2.png", "cat/1.jpg", "cat/10.JPG"))
    assert list_rows(records) == [("cat/1.jpg", "cat", ""), ("cat/10.JPG", "cat", ""), ("dog/2.png", "dog", "")]
    assert [record.source for record in records] == ["cat/1.jpg", "cat/10.JPG", "dog/2.png"]
    assert [read_bytes(record) for record in records] == [b"cat/1.jpg", b"cat/10.JPG", b"dog/2.png"]
    assert {(record.group, len(record.columns)) for record in records} == {("", 0)}
    assert (info.source, info.name, info.classes, info.files, info.notes) == ("folder", "pets", ["cat", "dog"], {}, [])
    assert (info.licence, info.published, info.options) == ("not stated", False, {})


def test_what_records_share_is_one_string(tmp_path: Path) -> None:
    first, second = read(write_files(tmp_path / "pets", "train/big cat/1.jpg", "train/big cat/2.jpg"))[0]
    assert first.class_name is second.class_name
    assert first.columns is second.columns
    (third,) = read(write_files(tmp_path / "more", "big cat/1.jpg"))[0]
    assert third.source is third.key


def test_the_name_is_the_params_where_they_give_one(tmp_path: Path) -> None:
    assert read(write_files(tmp_path / "pets.v2", "cat/1.jpg"))[1].name == "pets.v2"
    assert read(write_files(tmp_path / "more", "cat/1.jpg"), name="My pets")[1].name == "My pets"


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [("train", "val", "test"), ("Train", "VALID", "Test"), ("training", "validation", "testing"), ("TRAIN", "dev", "")],
)
def test_parts_above_the_classes(tmp_path: Path, train: str, val: str, test: str) -> None:
    folder = write_files(tmp_path / "pets", f"{train}/cat/1.jpg", f"{train}/dog/2.jpg", f"{val}/cat/3.jpg")
    expected = [("cat/1.jpg", "cat", "train"), ("cat/3.jpg", "cat", "val"), ("dog/2.jpg", "dog", "train")]
    if test:
        write_files(folder, f"{test}/dog/4.jpg")
        expected.append(("dog/4.jpg", "dog", "test"))
    records, info = read(folder)
    assert sorted(list_rows(records)) == expected
    (note,) = info.notes
    assert note.startswith("parts of the source: ")
    assert f"{train} (2 files)" in note
    assert f"{val} (1 files)" in note


def test_a_path_that_several_parts_have_keeps_its_part(tmp_path: Path) -> None:
    records, _ = read(write_files(tmp_path / "pets", "train/cat/1.jpg", "val/cat/1.jpg", "val/cat/2.jpg"))
    assert [record.key for record in records] == ["train/cat/1.jpg", "val/cat/1.jpg", "cat/2.jpg"]
    assert [record.source for record in records] == ["train/cat/1.jpg", "val/cat/1.jpg", "val/cat/2.jpg"]


@pytest.mark.parametrize("part", ["", "train/"])
def test_folders_inside_a_class_are_part_of_the_path_only(tmp_path: Path, part: str) -> None:
    records, info = read(
        write_files(tmp_path / "pets", f"{part}cat/2019/may/1.jpg", f"{part}cat/2.jpg", f"{part}dog/3")
    )
    assert [record.key for record in records] == ["cat/2.jpg", "cat/2019/may/1.jpg", "dog/3"]
    assert info.classes == ["cat", "dog"]


@pytest.mark.parametrize("beside", [[], ["README.md"], ["pets/README.md"], ["README.md", "pets/set/notes.txt"]])
@pytest.mark.parametrize("part", ["", "train/"])
def test_a_folder_that_wraps_everything_is_passed_through(tmp_path: Path, beside: list[str], part: str) -> None:
    names = [f"pets/set/{part}cat/1.jpg", f"pets/set/{part}dog/2.jpg"]
    records, info = read(write_files(tmp_path / "x", *names, *beside))
    assert list_rows(records) == [("cat/1.jpg", "cat", part[:-1]), ("dog/2.jpg", "dog", part[:-1])]
    assert info.notes[0] == "classes and parts were looked for in `pets/set/`"
    left_out = [
        note for note in info.notes if note.startswith(f"files in no class folder were left out ({len(beside)})")
    ]
    assert len(left_out) == bool(beside)
    assert all(name in left_out[0] for name in beside)


def test_a_single_class_folder_is_no_wrapper(tmp_path: Path) -> None:
    assert read(write_files(tmp_path / "x", "cat/1.jpg"))[1].classes == ["cat"]


@pytest.mark.parametrize("name", ["train", "Test", "dev"])
def test_a_class_among_others_may_be_called_as_a_part(tmp_path: Path, name: str) -> None:
    records, info = read(write_files(tmp_path / "vehicles", f"{name}/1.jpg", "car/2.jpg", "ship/3.jpg"))
    assert {record.class_name for record in records} == {name, "car", "ship"} == set(info.classes)
    assert {record.part for record in records} == {""}
    assert info.notes == [f"taken for classes, since classes lie beside them: {name}"]


def test_a_class_below_parts_may_be_called_as_a_part(tmp_path: Path) -> None:
    records, _ = read(write_files(tmp_path / "x", "train/test/1.jpg", "train/car/2.jpg", "val/test/1.jpg"))
    assert sorted(list_rows(records)) == [
        ("car/2.jpg", "car", "train"),
        ("train/test/1.jpg", "test", "train"),
        ("val/test/1.jpg", "test", "val"),
    ]


def test_parts_mixed_with_classes_are_refused(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "pets", "train/cat/1.jpg", "val/cat/2.jpg", "dog/3.jpg")
    fail(folder, r"pets: the folders train, val look like parts, but beside them lie dog; expected either parts or cl")


def test_a_part_that_holds_class_folders_is_no_class(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "pets", "train/cat/1.jpg", "train/dog/2.jpg", "docs/3.jpg")
    fail(folder, r"pets: the folders train look like parts, but beside them lie docs; expected either parts or classes")


def test_parts_without_class_folders_are_no_classes(tmp_path: Path) -> None:
    fail(write_files(tmp_path / "pets", "train/1.jpg", "test/2.jpg"), r"holds no class folders with files")


def test_two_folders_for_one_part_are_refused(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "pets", "train/cat/1.jpg", "val/cat/2.jpg", "valid/dog/3.jpg")
    fail(folder, r"pets: the folders val and valid are the same part; make them one\.")


def test_parts_without_train_are_refused(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "pets", "val/cat/1.jpg", "test/cat/2.jpg")
    fail(folder, r"pets: has the parts test, val, but no train; add it\.")


@pytest.mark.parametrize("wrapper", ["", "pets/set/"])
@pytest.mark.parametrize("tops", [["test_set", "training_set"], ["seg-test", "seg-train"], ["a", "b", "images_val"]])
def test_folders_called_like_parts_that_hold_the_same_folders_are_no_classes(
    tmp_path: Path, wrapper: str, tops: list[str]
) -> None:
    names = [f"{wrapper}{top}/{kind}/1.jpg" for top in tops for kind in ("cats", "dogs", f"{top} only")]
    folder = write_files(tmp_path / "x", *names, "README")
    with pytest.raises(InputError) as caught:
        read(folder)
    assert str(caught.value) == (
        f"{folder}: the classes would be {', '.join(tops)}, and each of them holds the folders cats, dogs. If they are "
        "parts, call them train, val and test."
    )


def test_classes_that_hold_the_same_folders_are_said(tmp_path: Path) -> None:
    names = [f"{top}/{kind}/1.jpg" for top in ("day", "night") for kind in ("cats", "dogs")]
    _, info = read(write_files(tmp_path / "x", *names))
    assert info.classes == ["day", "night"]
    assert info.notes == [
        "the classes are day, night, and each of them holds the folders cats, dogs; if those are meant, name one of "
        "the outer folders in fetch.path"
    ]


def test_the_remedies_for_folders_that_are_no_classes_work(tmp_path: Path) -> None:
    names = [f"{top}/{kind}/1.jpg" for top in ("training_set", "test_set") for kind in ("cats", "dogs")]
    folder = write_files(tmp_path / "x", *names)
    assert read(folder / "test_set")[1].classes == ["cats", "dogs"]
    (folder / "raw of test_set" / "source.json").unlink()
    (folder / "raw of test_set").rmdir()
    (folder / "training_set").rename(folder / "train")
    (folder / "test_set").rename(folder / "test")
    records, info = read(folder)
    assert info.classes == ["cats", "dogs"]
    assert {record.part for record in records} == {"train", "test"}


@pytest.mark.parametrize(
    "names",
    [
        ["cat/large/1.jpg", "dog/large/1.jpg"],
        ["cat/2019/1.jpg", "cat/2020/1.jpg", "dog/2020/1.jpg", "dog/2021/1.jpg"],
        ["cat/2019/1.jpg", "cat/2020/1.jpg", "dog/2019/1.jpg", "dog/2020/1.jpg", "emu/1.jpg"],
        ["cat/x/2019/1.jpg", "cat/x/2020/1.jpg", "dog/x/2019/1.jpg", "dog/x/2020/1.jpg"],
        [f"{part}/{kind}/{year}/1.jpg" for part in ("train", "test") for kind in ("cat", "dog") for year in (1, 2)],
    ],
)
def test_classes_may_hold_folders_of_their_own(tmp_path: Path, names: list[str]) -> None:
    records, _ = read(write_files(tmp_path / "x", *names))
    assert len(records) == len(names)
    assert {record.class_name for record in records} >= {"cat", "dog"}


def test_files_outside_class_folders_are_left_out_and_said(tmp_path: Path) -> None:
    records, info = read(write_files(tmp_path / "a", "cat/1.jpg", "dog/2.jpg", "labels.csv", "b\x1b[2J.txt"))
    assert len(records) == 2
    assert info.notes == ["files in no class folder were left out (2):\n  b\\x1b[2J.txt\n  labels.csv"]
    records, info = read(write_files(tmp_path / "b", "train/cat/1.jpg", "train/0.jpg", "test/cat/1.jpg", "test/x", "y"))
    assert len(records) == 2
    assert info.notes[-1] == "files in no class folder were left out (3):\n  test/x\n  train/0.jpg\n  y"


def test_of_many_files_that_are_left_out_twenty_are_shown(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "a", "cat/1.jpg", *(f"{number:02d}.jpg" for number in range(25)))
    (note,) = read(folder)[1].notes
    assert note.startswith("files in no class folder were left out (25):\n  00.jpg\n")
    assert note.endswith("\n  19.jpg\n  … and 5 more")


@pytest.mark.parametrize("names", [[], ["1.jpg", "2.jpg"], ["train/1.jpg", "test/2.jpg"]])
def test_no_class_folders(tmp_path: Path, names: list[str]) -> None:
    (tmp_path / "pets").mkdir()
    found = ", ".join(sorted(names)) or "nothing"
    fail(
        write_files(tmp_path / "pets", *names),
        rf"pets: holds no class folders with files; expected `cat/…`, `dog/…`, or those below `train/`, `val/` and "
        rf"`test/`\. Found: {found}\. The other way is a table of files and labels, with fetch\.source `table` in "
        r"params\.yaml\.$",
    )


@pytest.mark.parametrize(
    ("names", "shown"), [(["labels.csv"], r"labels\.csv"), (["b.TSV", "a.parquet"], r"a\.parquet, b\.TSV")]
)
def test_a_table_in_place_of_class_folders_is_pointed_to(tmp_path: Path, names: list[str], shown: str) -> None:
    fail(
        write_files(tmp_path / "pets", "Foto 000.png", *names),
        rf"pets: holds no class folders with files; expected .* Found: .*Foto 000\.png.*\. It holds {shown}: if that "
        r"names files and labels, set fetch\.source to `table` in params\.yaml \(`imagepipe evaluate` is given the "
        r"table itself\)\.$",
    )


def test_empty_class_folders_are_said_and_are_no_classes(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "pets", "cat/1.jpg", "dog/2.jpg")
    (folder / "bird" / "deep").mkdir(parents=True)
    _, info = read(folder)
    assert info.notes == ["class folders that are empty (1):\n  bird"]
    assert info.list_classes() == ["cat", "dog"]


def test_an_empty_class_that_is_listed_is_kept(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "pets", "train/cat/1.jpg", "train/dog/2.jpg", "test/cat/1.jpg")
    (folder / "train" / "bird").mkdir()
    chosen = write_chosen(tmp_path / "c.csv", {"dog": "dog", "bird": "bird", "cat": "cat"})
    records, info = read(folder, classes=chosen)
    assert info.list_classes() == ["dog", "bird", "cat"]
    assert len(records) == 3


def test_a_class_that_one_part_lacks_is_not_empty(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "pets", "train/cat/1.jpg", "train/dog/2.jpg", "test/cat/1.jpg")
    (folder / "test" / "dog").mkdir()
    assert read(folder)[1].empty_classes == []


# What lies in folders


def test_litter_is_left_out_and_said(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "pets", "cat/1.jpg", "cat/.DS_Store", "dog/2.jpg", "dog/.DS_Store", "dog/Thumbs.db")
    write_files(folder, "__MACOSX/cat/._1.jpg", ".git/config", "cat/._1.jpg")
    records, info = read(folder)
    assert [record.key for record in records] == ["cat/1.jpg", "dog/2.jpg"]
    assert info.classes == ["cat", "dog"]
    (note,) = info.notes
    assert "left out 6 files that no dataset needs" in note
    for name in (".DS_Store (2)", "Thumbs.db", "__MACOSX", ".git", "._*"):
        assert name in note


@only_posix
@pytest.mark.filterwarnings("ignore:.* links to files outside of it")
def test_links_to_files_are_followed(tmp_path: Path) -> None:
    write_files(tmp_path, "elsewhere/x.bin")
    folder = write_files(tmp_path / "pets", "dog/2.jpg", "cat/9.jpg")
    (folder / "cat" / "1.jpg").symlink_to(tmp_path / "elsewhere" / "x.bin")
    records, _ = read(folder)
    assert [(record.key, read_bytes(record)) for record in records] == [
        ("cat/1.jpg", b"elsewhere/x.bin"),
        ("cat/9.jpg", b"cat/9.jpg"),
        ("dog/2.jpg", b"dog/2.jpg"),
    ]


@only_posix
@pytest.mark.parametrize("target", ["gone.jpg", "1.jpg"])
def test_a_link_that_leads_nowhere_is_an_image_that_is_missing(tmp_path: Path, target: str) -> None:
    folder = write_files(tmp_path / "pets", "cat/2.jpg", "dog/3.jpg")
    (folder / "cat" / "1.jpg").symlink_to(target)
    records, _ = read(folder)
    assert [record.key for record in records] == ["cat/1.jpg", "cat/2.jpg", "dog/3.jpg"]
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        read_bytes(records[0])


@only_posix
def test_links_to_folders_and_fifos_are_left_out_and_said(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "pets", "cat/2.jpg", "dog/3.jpg")
    (folder / "cat" / "up").symlink_to(folder, target_is_directory=True)
    os.mkfifo(folder / "cat" / "pipe.jpg")
    records, info = read(folder)
    assert [record.key for record in records] == ["cat/2.jpg", "dog/3.jpg"]
    assert info.notes == [
        "links to folders and what is no plain file are not followed or read (2):\n  cat/pipe.jpg\n  cat/up"
    ]


@only_posix
def test_a_file_that_changed_since_it_was_listed_cannot_be_read(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "pets", "cat/1.jpg")
    records, _ = read(folder)
    (folder / "cat" / "1.jpg").write_bytes(b"something longer than before")
    with pytest.raises(OSError, match="it changed while it was read"):
        read_bytes(records[0])


def test_a_folder_that_is_gone_at_the_split_is_named(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "pets", "cat/1.jpg")
    (tmp_path / "raw").mkdir()
    info = folder_source.fetch(make_params("folder", folder), RUN, tmp_path / "raw")
    folder.rename(tmp_path / "moved")
    with pytest.raises(InputError, match=r"pets: cannot be read: No such file.*fetch\.path in params\.yaml"):
        folder_source.read_records(folder, tmp_path / "raw", info)


# Names


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_file_names_that_are_not_utf8_are_escaped(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "pets", os.fsdecode(b"cat/caf\xe9.jpg"), "dog/1.jpg")
    records, _ = read(folder)
    assert (records[0].key, records[0].source) == ("cat/caf%E9.jpg", "cat/caf\\xe9.jpg")
    assert read_bytes(records[0]) == b"cat/caf\xe9.jpg"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_class_folders_that_are_not_utf8_are_refused(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "pets", os.fsdecode(b"caf\xe9/1.jpg"), "dog/1.jpg")
    fail(folder, r"class folders whose names are not UTF-8 \(1\):\n  caf\\xe9\nRename them\.")


def test_the_order_in_which_files_were_made_does_not_matter(tmp_path: Path) -> None:
    names = [f"{kind}/{number}.jpg" for kind in ("b", "a", "c") for number in range(20)]
    forth, info = read(write_files(tmp_path / "x" / "pets", *names))
    back, same = read(write_files(tmp_path / "y" / "pets", *reversed(names)))
    assert list_rows(forth) == list_rows(back)
    assert [record.source for record in forth] == sorted(names)
    assert info == same


ODD_NAMES = ["NA", "no", "007", "1e5", "null", "😀", "שלום", "it's", "..name", "a b", "a,b", "=cmd()", "%41", "Ä" * 100]
POSIX_NAMES = ['say "hi"', "two\nlines", "back\\slash", "CON", "aux.txt", "q?", " led", "trailed ", "dot.", "a\x01b"]


@pytest.mark.parametrize("name", ODD_NAMES + [pytest.param(name, marks=only_posix) for name in POSIX_NAMES])
def test_class_names_stay_what_they_are(tmp_path: Path, name: str) -> None:
    folder = write_files(tmp_path / "x", f"{name}/1.jpg", "other/2.jpg")
    if name.startswith("."):
        records, info = read(folder)  # hidden, so no data
        assert info.classes == ["other"]
        return
    records, info = read(folder)
    assert sorted(info.classes) == sorted([name, "other"])
    (record,) = (record for record in records if record.class_name == name)
    assert read_bytes(record) == f"{name}/1.jpg".encode()
    assert record.source == f"{name}/1.jpg"


@pytest.mark.skipif(sys.platform != "linux", reason="other disks do not tell them apart")
@pytest.mark.parametrize("names", [["cat", "Cat"], ["cat", "cat "], ["é", unicodedata.normalize("NFD", "é")]])
def test_classes_that_differ_by_case_space_or_form_have_to_be_listed(tmp_path: Path, names: list[str]) -> None:
    folder = write_files(tmp_path / "pets", *(f"{name}/1.jpg" for name in names), "dog/1.jpg")
    shown = ", ".join(repr(name) if unicodedata.is_normalized("NFC", name) else ascii(name) for name in sorted(names))
    message = (
        rf"classes that differ only in case, spaces or the form of their accents \(1\):\n  {re.escape(shown)}\nMake"
    )
    fail(folder, message)
    (tmp_path / "raw of pets").rmdir()
    chosen = write_chosen(tmp_path / "c.csv", dict.fromkeys(names, "cat"))
    records, info = read(folder, classes=chosen)
    assert [record.class_name for record in records] == ["cat", "cat"]
    assert info.list_classes() == ["cat"]
    assert len({unicodedata.normalize("NFC", record.key).casefold() for record in records}) == 2


# Archives


TREE = ["pets/train/cat/1.jpg", "pets/train/dog/1.jpg", "pets/train/dog/é/2.jpg", "pets/test/cat/1.jpg", "pets/README"]


@pytest.mark.parametrize("name", ARCHIVES)
def test_an_archive_gives_the_records_of_its_folder(tmp_path: Path, name: str) -> None:
    folder = write_files(tmp_path / "plain", *TREE)
    expected, described = read(folder)
    records, info = read(pack(folder, tmp_path / name))
    assert list_rows(records) == list_rows(expected)
    assert [record.source for record in records] == [record.source for record in expected]
    assert [read_bytes(record) for record in records] == [read_bytes(record) for record in expected]
    assert (info.classes, info.notes) == (described.classes, described.notes)
    assert info.name == "a"
    assert list(info.files) == ["files.tar"]


def test_two_kinds_of_archive_give_the_same_bytes_but_for_their_order(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "plain", *TREE)
    _, zipped = read(pack(folder, tmp_path / "a.zip"))
    _, tarred = read(pack(folder, tmp_path / "a.tar.gz"))
    assert zipped == tarred


def test_the_archive_is_not_needed_any_more_once_it_was_fetched(tmp_path: Path) -> None:
    archive = pack(write_files(tmp_path / "plain", *TREE), tmp_path / "a.zip")
    records, _ = read(archive)
    archive.unlink()
    assert [len(read_bytes(record)) for record in records] == [len(record.source.encode()) for record in records]
    assert all(isinstance(record.image, FileSlice) for record in records)
