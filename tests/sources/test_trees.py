import errno
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from imagepipe.core.errors import EnvironmentFault, InputError
from imagepipe.core.hashes import hash_file
from imagepipe.core.slices import FileSlice
from imagepipe.sources.params import FetchParams
from imagepipe.sources.trees import (
    describe_tree,
    list_folder,
    make_tree,
    obtain_tree,
    open_tree,
    show_place,
    warn_untracked,
)
from tests.sources.made import RUN, make_params, pack, write_files

OUTSIDE = pytest.mark.filterwarnings("ignore:.* lies outside the project")


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Git repository without files, which is the working folder."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    git("init", "-q")
    return folder


def git(*command: str) -> None:
    subprocess.run(["git", *command], check=True)


def list_warnings(path: str) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_untracked(Path(path))
    return [str(warning.message) for warning in caught]


def fail(params: FetchParams, raw_dir: Path, message: str) -> None:
    with pytest.raises(InputError, match=message):
        obtain_tree(params, RUN, raw_dir)
    assert not list(raw_dir.glob("*.tar"))


# What other workspaces see


def test_a_folder_that_git_does_not_track_is_warned_of(repository: Path) -> None:
    write_files(repository, "photos/cat/1.jpg")
    (warning,) = list_warnings("photos")
    assert warning == (
        "photos is tracked neither by Git nor by DVC: `dvc repro` works, but queued experiments and other clones will "
        "not see it all (`dvc add photos` changes that)"
    )


def test_the_advice_can_be_pasted_into_a_shell_whatever_the_name(repository: Path) -> None:
    write_files(repository, "$(touch owned)/cat/1.jpg")
    (warning,) = list_warnings("$(touch owned)")
    assert "(`dvc add '$(touch owned)'` changes that)" in warning


def test_the_warning_reaches_whoever_fetches(repository: Path) -> None:
    write_files(repository, "photos/cat/1.jpg", "raw/x")
    with pytest.warns(UserWarning, match="photos is tracked neither by Git nor by DVC"):
        assert list(obtain_tree(make_params("folder", "photos"), RUN, repository / "raw").files) == ["cat/1.jpg"]


@pytest.mark.parametrize("name", ["photos", "pho*s [1]", ":photos", "-photos", "bilder/é"])
def test_a_folder_that_git_tracks_is_not_warned_of(repository: Path, name: str) -> None:
    write_files(repository, f"{name}/cat/1.jpg", "phoxs 1/x")
    git("add", "--", f"./{name}")
    assert list_warnings(name) == []
    assert list_warnings(str(repository / name)) == []


def test_what_git_lacks_of_a_tracked_folder_is_counted(repository: Path) -> None:
    write_files(repository, "photos/cat/1.jpg")
    git("add", "photos")
    write_files(repository, "photos/cat/2.jpg", "photos/dog/1.jpg", "photos/dog/2.jpg", "photos/.DS_Store")
    (repository / "photos" / "empty").mkdir()
    (warning,) = list_warnings("photos")
    first = str(Path("photos/cat/2.jpg"))
    assert warning.startswith(f"2 entries in photos, {first} first, are tracked neither by Git nor by DVC")


@pytest.mark.parametrize("marker", ["photos.dvc", "photos/cat.dvc", "photos/cat/1.jpg.dvc"])
def test_a_folder_that_dvc_tracks_is_not_warned_of(repository: Path, marker: str) -> None:
    write_files(repository, "photos/cat/1.jpg", marker)
    write_files(repository, ".gitignore")
    (repository / ".gitignore").write_text("*.jpg\n", "utf-8")
    git("add", marker)
    assert list_warnings("photos") == []


def test_an_archive_is_looked_for_as_a_folder_is(repository: Path) -> None:
    write_files(repository, "photos.zip", "more.zip", "more.zip.dvc", "kept.zip")
    git("add", "kept.zip")
    assert [len(list_warnings(name)) for name in ("photos.zip", "more.zip", "kept.zip")] == [1, 0, 0]


def test_without_a_repository_nothing_is_tracked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    write_files(tmp_path, "photos/cat/1.jpg")
    assert list_warnings("photos")[0].startswith("photos is tracked neither by Git nor by DVC")


def test_without_git_nothing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    write_files(tmp_path, "photos/cat/1.jpg")
    assert list_warnings("photos") == []


def test_outside_the_project_dvc_add_is_no_advice(repository: Path, tmp_path: Path) -> None:
    write_files(tmp_path, "photos/cat/1.jpg")
    (warning,) = list_warnings(str(tmp_path / "photos"))
    assert warning == (
        f"{tmp_path / 'photos'} lies outside the project: `dvc repro` works here, but other machines and clones will "
        "not find it (copy it into the project and `dvc add` it there, or set fetch.url to its address)"
    )


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_a_link_that_leads_out_of_the_project_is_outside(repository: Path, tmp_path: Path) -> None:
    write_files(tmp_path, "photos/cat/1.jpg")
    (repository / "photos").symlink_to(tmp_path / "photos", target_is_directory=True)
    git("add", "photos")
    assert "lies outside the project" in list_warnings("photos")[0]


# What params may name


@OUTSIDE
def test_a_folder_is_read_in_place(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "photos", "b/2", "b/1", "a/deep/1", "0")
    (tmp_path / "raw").mkdir()
    params = make_params("folder", folder)
    tree = obtain_tree(params, RUN, tmp_path / "raw")
    assert list(tree.files) == ["0", "a/deep/1", "b/1", "b/2"]
    assert tree.folders == {"a", "a/deep", "b"}
    assert list((tmp_path / "raw").iterdir()) == []
    info = describe_tree(params, tmp_path / "raw", ["a"], ["note"])
    assert (info.name, info.files, info.homepage, info.notes) == ("photos", {}, "not stated", ["note"])
    assert open_tree(folder, tmp_path / "raw", info) == tree


@OUTSIDE
@pytest.mark.parametrize(
    ("name", "called"), [("photos.zip", "photos"), ("v1.2.tar.gz", "v1.2"), ("photos.tar.xz", "photos")]
)
def test_the_members_of_an_archive_are_put_into_the_raw_folder(tmp_path: Path, name: str, called: str) -> None:
    folder = write_files(tmp_path / "photos", "b/2", "b/1", "a/deep/1", "0")
    archive = pack(folder, tmp_path / name)
    (tmp_path / "raw").mkdir()
    params = make_params("folder", archive, sha256=hash_file(archive))
    tree = obtain_tree(params, RUN, tmp_path / "raw")
    assert list(tree.files) == ["0", "a/deep/1", "b/1", "b/2"]
    assert tree.folders == {"a", "a/deep", "b"}
    assert {part.path for part in tree.files.values()} == {tmp_path / "raw" / "files.tar"}
    info = describe_tree(params, tmp_path / "raw", ["a"], [])
    assert info.name == called
    assert info.files == {"files.tar": hash_file(tmp_path / "raw" / "files.tar")}
    assert open_tree(archive, tmp_path / "raw", info) == tree


@OUTSIDE
def test_another_checksum_gives_both(tmp_path: Path) -> None:
    archive = pack(write_files(tmp_path / "photos", "a/1"), tmp_path / "a.zip")
    message = (
        rf"a\.zip: SHA-256 is {hash_file(archive)}, but fetch\.sha256 in params\.yaml is {'0' * 64}; put the right"
    )
    fail(make_params("folder", archive, sha256="0" * 64), tmp_path, message)


def test_a_folder_has_no_checksum(tmp_path: Path) -> None:
    write_files(tmp_path / "photos", "a/1")
    message = r"fetch\.sha256 is that of an archive, but .*photos is a folder; set it to ''"
    fail(make_params("folder", tmp_path / "photos", sha256="0" * 64), tmp_path, message)


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    fail(
        make_params("folder", tmp_path / "gone"), tmp_path, r"fetch\.path: .*gone is not there; name a folder or an ar"
    )


@pytest.mark.skipif(sys.platform == "win32", reason="there are no FIFOs")
def test_a_path_that_is_a_fifo(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    fail(
        make_params("folder", tmp_path / "pipe"), tmp_path, r"fetch\.path: .*pipe is neither a folder nor a file; name"
    )


@OUTSIDE
def test_a_file_that_is_no_archive(tmp_path: Path) -> None:
    write_files(tmp_path, "labels.txt")
    fail(make_params("folder", tmp_path / "labels.txt"), tmp_path, r"labels\.txt: .*expected .*\.zip")


def test_options_are_refused(tmp_path: Path) -> None:
    message = r"fetch\.options: the source `table` has none; set it to ''"
    fail(make_params("table", tmp_path, options="a=1"), tmp_path, message)


def test_a_url_and_a_path_are_one_too_many(tmp_path: Path) -> None:
    message = r"fetch\.path is photos and fetch\.url is given too; with a url it is data/source"
    fail(make_params("folder", "photos", url="https://example.org/a.zip"), tmp_path, message)


def test_a_url_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGEPIPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("imagepipe.sources.download.PAUSE", 0)
    params = make_params("folder", url="http://127.0.0.1:9/a.zip", sha256="0" * 64)
    with pytest.raises(EnvironmentFault, match=r"127\.0\.0\.1:9/a\.zip"):
        obtain_tree(params, RUN, tmp_path)


def test_a_signed_url_that_does_not_answer_keeps_its_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGEPIPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("imagepipe.sources.download.PAUSE", 0)
    params = make_params("folder", url="http://127.0.0.1:9/a.zip?key=s3cret", sha256="0" * 64)
    with pytest.raises(EnvironmentFault, match=r"127\.0\.0\.1:9/a\.zip\?…") as caught:
        obtain_tree(params, RUN, tmp_path)
    assert "s3cret" not in str(caught.value)


def test_secrets_of_an_address_are_not_shown(tmp_path: Path) -> None:
    params = make_params("folder", url="https://me:secret@example.org:8080/sets/pets.tar.gz?key=secret#x")
    assert show_place(params) == "https://example.org:8080/sets/pets.tar.gz"
    (tmp_path / "files.tar").write_bytes(b"")
    info = describe_tree(params, tmp_path, [], [])
    assert (info.name, info.homepage) == ("pets", "https://example.org:8080/sets/pets.tar.gz")


def test_a_tree_is_sorted_and_knows_its_folders() -> None:
    part = FileSlice(Path("x"), 0, 1)
    tree = make_tree({"b/1": part, "a/c/2": part, "0": part}, ["note"])
    assert list(tree.files) == ["0", "a/c/2", "b/1"]
    assert tree.folders == {"a", "a/c", "b"}
    assert make_tree({"a/b/c/d": part}).folders == {"a", "a/b", "a/b/c"}
    assert tree.notes == ("note",)


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"gone: cannot be read: No such file or directory\. Name a folder that can be"
    ):
        list_folder(tmp_path / "gone")


@pytest.mark.parametrize(("name", "place"), [("scandir", "photos"), ("stat", "photos/cat\\.jpg")])
def test_the_machine_is_named_where_it_is_at_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, place: str
) -> None:
    def fail(_: object) -> object:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    folder = write_files(tmp_path / "photos", "cat.jpg")
    expected = rf"{place}: cannot be read: Input/output error\. Check the disk"
    with monkeypatch.context() as patch:
        patch.setattr(os, name, fail)
        with pytest.raises(EnvironmentFault, match=expected):
            list_folder(folder)


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such links and pipes there")
def test_links_to_folders_and_what_is_no_file_have_a_note_of_their_own(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "photos", "cat/1.jpg", "cat/.DS_Store")
    (folder / "cat" / "up").symlink_to(folder, target_is_directory=True)
    tree = list_folder(folder)
    assert (list(tree.files), tree.folders) == (["cat/1.jpg"], {"cat"})
    assert tree.notes == (
        "left out 1 file that no dataset needs: .DS_Store",
        "links to folders and what is no plain file are not followed or read (1):\n  cat/up",
    )
    for number in reversed(range(22)):
        os.mkfifo(folder / "cat" / f"pipe{number:02d}\x1b")
    lines = list_folder(folder).notes[1].splitlines()
    assert lines[0].endswith("are not followed or read (23):")
    assert lines[1:3] == [r"  cat/pipe00\x1b", r"  cat/pipe01\x1b"]
    assert lines[-1] == "  … and 3 more"


@OUTSIDE
@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_links_that_lead_out_of_the_folder_are_warned_of(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "photos", "cat/1.jpg")
    write_files(tmp_path / "elsewhere", "x.jpg")
    (folder / "cat/inside.jpg").symlink_to("1.jpg")
    (folder / "cat/gone.jpg").symlink_to(tmp_path / "gone.jpg")
    assert obtain_tree(make_params("folder", folder), RUN, tmp_path).links == ("cat/inside.jpg",)
    for number in range(4):
        (folder / f"cat/out{number}.jpg").symlink_to(tmp_path / "elsewhere/x.jpg")
    message = (
        r"photos: links to files outside of it are followed \(4\): cat/out0\.jpg, cat/out1\.jpg, cat/out2\.jpg, …; "
        "other clones may not have those files: put copies in place of the links, unless they are meant$"
    )
    with pytest.warns(UserWarning, match=message):
        tree = obtain_tree(make_params("folder", folder), RUN, tmp_path)
    assert tree.files["cat/out0.jpg"].read() == b"x.jpg"
    (tmp_path / "photos.dvc").touch()  # then DVC may have made them
    obtain_tree(make_params("folder", folder), RUN, tmp_path)


def test_a_table_in_place_of_its_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("file,label\n")
    with pytest.raises(InputError) as caught:
        obtain_tree(make_params("table", tmp_path / "labels.csv"), RUN, tmp_path)
    assert str(caught.value) == (
        f"params.yaml: fetch.path: {tmp_path}/labels.csv is a table; name its folder there, set fetch.source to "
        "`table` and fetch.table.file to labels.csv."
    )
