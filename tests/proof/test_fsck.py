import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from imagepipe.cli import app
from imagepipe.core.errors import InputError
from imagepipe.core.hashes import hash_file
from imagepipe.proof import fsck
from imagepipe.proof.fsck import QUARANTINE, Checked, check_project, find_gaps

STAGES = """\
stages:
  draw:
    cmd: python draw.py
    deps: [draw.py]
    outs: [images, {table.csv: {cache: true}}]
    metrics: [{metrics.json: {cache: false}}]
"""
DRAW = """\
from pathlib import Path
Path("images").mkdir()
for name in ("a", "b"):
    Path(f"images/{name}.png").write_text(name * 10)
Path("table.csv").write_text("x\\n1\\n")
Path("metrics.json").write_text("{}")
"""


def find_environment() -> dict[str, str]:
    return os.environ | {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}


def run(folder: Path, *command: str) -> str:
    done = subprocess.run(command, cwd=folder, env=find_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DVC project that has run; nobody changes it."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "dvc.yaml").write_text(STAGES, "utf-8")
    (folder / "draw.py").write_text(DRAW, "utf-8")
    run(folder, "git", "init", "-q")
    run(folder, "dvc", "init", "-q")
    run(folder, "dvc", "config", "core.analytics", "false")
    run(folder, "dvc", "repro", "-q")
    return folder


@pytest.fixture
def project(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the project, which is the present folder."""
    folder = tmp_path / "project"
    shutil.copytree(made, folder, symlinks=True)
    monkeypatch.chdir(folder)
    return folder


def find_object(output: str) -> Path:
    """The object of an output in the cache."""
    (stage,) = yaml.safe_load(Path("dvc.lock").read_text("utf-8"))["stages"].values()
    (md5,) = [out["md5"] for out in stage["outs"] if out["path"] == output]
    return Path(".dvc/cache/files/md5") / md5[:2] / md5[2:]


def overwrite(path: Path, data: bytes) -> None:
    """New content for a file that stays read-only, as a disk may do it."""
    mode = path.stat().st_mode
    path.chmod(0o644)
    path.write_bytes(data)
    path.chmod(mode)


def find_member(name: str) -> Path:
    """The object of an image in the cache."""
    listed = {entry["relpath"]: entry["md5"] for entry in json.loads(find_object("images").read_bytes())}
    return Path(".dvc/cache/files/md5") / listed[name][:2] / listed[name][2:]


def fail_to_read(monkeypatch: pytest.MonkeyPatch, *paths: Path) -> None:
    """Let a bad disk hold these files."""

    def hash_readable(path: Path, algorithm: str) -> str:
        if path in paths:
            raise OSError(errno.EIO, "Input/output error", str(path))
        return hash_file(path, algorithm)

    monkeypatch.setattr(fsck, "hash_file", hash_readable)


def list_findings(checked: Checked) -> list[str]:
    return [str(finding) for finding in checked.findings]


def test_a_project_as_it_was_made(project: Path) -> None:
    """Five objects: table, two images, their list, and the metrics, which the run-cache keeps, too."""
    assert check_project(quarantine=True) == Checked(objects=5, runs=1, outputs=3, findings=[])


def test_what_dvc_ignores_in_an_output_is_no_change(project: Path) -> None:
    """`dvc checkout --force` would not remove it either."""
    Path("images/.123@host-1.0123456789abcdef.part").write_text("aa")
    Path("images/litter").mkdir()
    Path("images/litter/c.png").write_text("c")
    (found,) = list_findings(check_project(quarantine=True))
    assert "litter/c.png" in found
    assert ".part" in found
    Path(".dvcignore").write_text(".*.part\nlitter/\n")
    assert check_project(quarantine=True).findings == []
    Path("images/d.png").write_text("d")
    (found,) = list_findings(check_project(quarantine=True))
    assert found == (
        "images (for images/d.png): is not what was made: edited, or damaged; `dvc checkout --force images`"
    )


@pytest.mark.parametrize("mode", [0o444, 0o644])
def test_what_is_corrupt_is_moved_away_and_the_command_brings_it_back(project: Path, mode: int) -> None:
    """DVC itself would check it out where it is read-only."""
    place = find_object("table.csv")
    before = place.read_bytes()
    place.chmod(mode)
    overwrite(place, before.replace(b"1", b"2"))
    (found,) = list_findings(check_project(quarantine=True))
    name = place.parent.name + place.name
    assert found == (
        f"{place} (for table.csv): is corrupt: its content has another hash, moved to {QUARANTINE / name}; the "
        "workspace still has it: `dvc commit --force table.csv`"
    )
    assert not place.exists()
    run(project, "dvc", "commit", "--force", "table.csv")
    assert place.read_bytes() == before
    assert check_project(quarantine=True).findings == []


def test_a_dry_run_moves_nothing(project: Path) -> None:
    place = find_object("table.csv")
    overwrite(place, b"x\n2\n")
    (found,) = list_findings(check_project(quarantine=False))
    assert "is corrupt: its content has another hash; the workspace still has it" in found
    assert place.read_bytes() == b"x\n2\n"
    assert not QUARANTINE.exists()


def test_what_is_cut_off_and_not_in_the_workspace_is_made_again(project: Path) -> None:
    place = find_object("table.csv")
    overwrite(place, b"x")
    Path("table.csv").unlink()
    found = list_findings(check_project(quarantine=True))
    assert found[0].startswith(f"{place} (for table.csv): is cut off after 1 of 4 bytes, moved to {QUARANTINE}/")
    assert found[0].endswith("; make it again: `dvc repro`")
    assert found[1:] == ["table.csv: is not in the workspace; make it again: `dvc repro`"]
    run(project, "dvc", "repro", "-q")
    assert check_project(quarantine=True).findings == []


def test_what_was_moved_away_before_is_kept(project: Path) -> None:
    place = find_object("table.csv")
    for content in (b"", b"x"):
        overwrite(place, content)
        check_project(quarantine=True)
        run(project, "dvc", "commit", "--force", "table.csv")
    assert sorted(path.read_bytes() for path in QUARANTINE.iterdir()) == [b"", b"x"]


def test_what_is_corrupt_is_moved_from_a_cache_on_another_disk(
    project: Path, mount_disk: Callable[[str], Path]
) -> None:
    disk = mount_disk("size=1m")
    shutil.copytree(".dvc/cache", disk, dirs_exist_ok=True)
    Path(".dvc/config.local").write_text(f"[cache]\n    dir = {disk}\n", "utf-8")
    place = disk / find_object("table.csv").relative_to(".dvc/cache")
    overwrite(place, b"x\n2\n")
    (found,) = list_findings(check_project(quarantine=True))
    moved = QUARANTINE / (place.parent.name + place.name)
    assert f"is corrupt: its content has another hash, moved to {moved}; " in found
    assert moved.read_bytes() == b"x\n2\n"
    assert not place.exists()


def test_what_cannot_be_moved_away_is_said_and_stays_once(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a shared cache in which one may only read: a copy is made, and the object cannot be removed."""

    def move_in_vain(source: Path, target: Path) -> None:
        shutil.copyfile(source, target)
        raise PermissionError(errno.EACCES, "Permission denied", str(source))

    monkeypatch.setattr(fsck.shutil, "move", move_in_vain)
    place = find_object("table.csv")
    (entry,) = Path(".dvc/cache/runs").glob("*/*/*")
    overwrite(place, b"")
    overwrite(entry, b"{")
    corrupt, run_entry = list_findings(check_project(quarantine=True))
    assert corrupt == (
        f"{place} (for table.csv): is cut off after 0 of 4 bytes, could not be moved away: Permission denied; delete "
        "it, since DVC may believe it; the workspace still has it: `dvc commit --force table.csv`"
    )
    assert run_entry == (
        f"{entry}: is corrupt, and might bring outputs that no run made, could not be moved away: Permission denied; "
        "delete it, since DVC may believe it; nothing needs it; the next `dvc repro` of that stage writes it anew"
    )
    assert place.exists()
    assert entry.exists()
    assert list(QUARANTINE.iterdir()) == []


MEND = "mend its permissions or its disk, or else delete it"


def test_an_object_that_cannot_be_read_is_not_called_corrupt_and_stays(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, image = find_object("table.csv"), find_member("b.png")
    stray = Path(".dvc/cache/files/md5/00") / ("0" * 30)
    stray.parent.mkdir()
    stray.touch()
    fail_to_read(monkeypatch, table, image, stray)
    trouble = f"cannot be read: Input/output error; {MEND}; "
    assert sorted(list_findings(check_project(quarantine=True))) == sorted(
        [
            f"{image} (for images/b.png): {trouble}the workspace still has it: `dvc commit --force images`",
            f"{stray}: {trouble}nothing in this commit needs it; for other commits `dvc pull -A` brings it back, if a "
            "remote has it",
            f"{table} (for table.csv): {trouble}the workspace still has it: `dvc commit --force table.csv`",
        ]
    )
    assert all(path.exists() for path in (table, image, stray))
    assert not QUARANTINE.exists()


def test_an_entry_of_the_run_cache_that_cannot_be_read_stays(project: Path) -> None:
    (entry,) = Path(".dvc/cache/runs").glob("*/*/*")
    entry.unlink()
    entry.mkdir()
    (found,) = list_findings(check_project(quarantine=True))
    assert found == (
        f"{entry}: cannot be read: Is a directory; {MEND}; nothing needs it; the next `dvc repro` of that stage writes "
        "it anew"
    )
    assert entry.is_dir()


def test_a_folder_of_the_cache_that_cannot_be_listed_hides_its_objects(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some of them can be read all the same, others cannot; none is called missing."""
    table, image = find_object("table.csv"), find_member("b.png")
    walk = os.walk

    def walk_in_part(top: Path, onerror: Callable[[OSError], None] | None = None, **others: bool) -> object:
        for place, folders, files in walk(top, **others):
            if onerror and Path(place) in (table.parent, image.parent):
                onerror(PermissionError(errno.EACCES, "Permission denied", place))
            else:
                yield place, folders, files

    monkeypatch.setattr(fsck.os, "walk", walk_in_part)
    fail_to_read(monkeypatch, image)
    assert sorted(list_findings(check_project(quarantine=True))) == sorted(
        [
            f"{table.parent}: cannot be read: Permission denied; mend its permissions or its disk",
            f"{image.parent}: cannot be read: Permission denied; mend its permissions or its disk",
            f"{image} (for images/b.png): cannot be read: Input/output error; {MEND}; the workspace still has it: "
            "`dvc commit --force images`",
        ]
    )


def test_outputs_that_cannot_be_read_are_not_called_edited(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_to_read(monkeypatch, Path("table.csv"), Path("images/a.png"))
    trouble = f"cannot be read: Input/output error; {MEND}; "
    assert sorted(list_findings(check_project(quarantine=True))) == [
        f"images/a.png: {trouble}`dvc checkout --force images`",
        f"table.csv: {trouble}`dvc checkout --force table.csv`",
    ]
    overwrite(Path("images/b.png"), b"z")
    assert sorted(list_findings(check_project(quarantine=True)))[0] == (
        "images (for images/b.png): is not what was made: edited, or damaged; `dvc checkout --force images`"
    )


def test_gaps_are_not_what_cannot_be_read(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = find_object("images")
    fail_to_read(monkeypatch, place)
    needed, findings = find_gaps()
    assert needed == 2
    assert list(map(str, findings)) == [
        f"{place} (for images): cannot be read: Input/output error; {MEND}; the workspace still has it: `dvc commit "
        "--force images`"
    ]


def test_a_checkout_is_proposed_only_where_the_cache_has_every_file(project: Path) -> None:
    """DVC would fail on what is missing, and bring back what is corrupt."""
    overwrite(find_member("b.png"), b"c" * 10)
    Path("images/b.png").unlink()
    corrupt, changed = list_findings(check_project(quarantine=True))
    assert corrupt.endswith("; make it again: `dvc repro`")
    assert changed == (
        "images (for images/b.png): is not what was made: edited, or damaged; make it again: `dvc repro`"
    )
    missing, _ = list_findings(check_project(quarantine=True))
    assert "(for images/b.png): is not there; make it again" in missing
    run(project, "dvc", "repro", "-q")
    assert check_project(quarantine=True).findings == []


def test_an_empty_object_is_called_so(project: Path) -> None:
    folder = find_object("images")
    overwrite(folder, b"")
    (found,) = list_findings(check_project(quarantine=False))
    assert found == (
        f"{folder} (for images): is cut off at once: it is empty; the workspace still has it: "
        "`dvc commit --force images`"
    )


def test_a_file_of_a_folder_is_named(project: Path) -> None:
    place = find_member("b.png")
    overwrite(place, b"c" * 10)
    (found,) = list_findings(check_project(quarantine=False))
    assert found.startswith(f"{place} (for images/b.png): is corrupt")
    assert found.endswith("; the workspace still has it: `dvc commit --force images`")


def test_what_is_missing_is_named_with_a_remote_to_pull_it_from(project: Path, tmp_path: Path) -> None:
    run(project, "dvc", "remote", "add", "-q", "-d", "store", str(tmp_path / "store"))
    run(project, "dvc", "push", "-q")
    place = find_object("images")
    before = place.read_bytes()
    place.unlink()
    shutil.rmtree("images")
    missing, absent = list_findings(check_project(quarantine=True))
    pull = "`dvc pull --force images`, or make it again: `dvc repro`"
    assert missing == f"{place} (for images): is not there; {pull}"
    assert absent == f"images: is not in the workspace; {pull}"
    run(project, "dvc", "pull", "-q", "--force", "images")
    assert place.read_bytes() == before
    assert check_project(quarantine=True).findings == []


def test_what_was_edited_by_hand_is_named_and_checked_out(project: Path) -> None:
    overwrite(Path("table.csv"), b"x\n9\n")
    overwrite(Path("images/a.png"), b"z")
    Path("images/c.png").write_bytes(b"new")
    overwrite(Path("metrics.json"), b"[]")
    trouble = "is not what was made: edited, or damaged"
    assert sorted(list_findings(check_project(quarantine=True))) == [
        f"images (for images/a.png, images/c.png): {trouble}; `dvc checkout --force images`",
        f"metrics.json: {trouble}; `git checkout metrics.json`, or `dvc repro`",
        f"table.csv: {trouble}; `dvc checkout --force table.csv`",
    ]
    run(project, "dvc", "checkout", "-q", "--force", "images", "table.csv")
    overwrite(Path("metrics.json"), b"{}")
    assert check_project(quarantine=True).findings == []


def test_an_object_of_another_commit_is_nobodys(project: Path) -> None:
    stray = Path(".dvc/cache/files/md5/00") / ("0" * 30)
    stray.parent.mkdir()
    stray.write_bytes(b"not that")
    (found,) = list_findings(check_project(quarantine=False))
    assert found == (
        f"{stray}: is corrupt: its content has another hash; nothing in this commit needs it; for other commits "
        "`dvc pull -A` brings it back, if a remote has it"
    )


def test_what_a_killed_command_left_is_no_object(project: Path) -> None:
    (find_object("table.csv").parent / "tmp1234").write_bytes(b"half")
    assert check_project(quarantine=True).findings == []


SPOILT = {
    "a hash": lambda text: text.replace("md5: ", "md5: 0", 1),
    "no YAML": lambda _: "{",
    "a list": lambda _: "- 1",
    "a date": lambda _: "cmd: 2020-01-01",
    "no date": lambda _: "cmd: 2020-99-99",
    "no text": lambda _: "\udcff",
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
def test_a_corrupt_entry_of_the_run_cache_is_moved_away(project: Path, spoil: Callable[[str], str]) -> None:
    (entry,) = Path(".dvc/cache/runs").glob("*/*/*")
    overwrite(entry, spoil(entry.read_text("utf-8")).encode("utf-8", "surrogateescape"))
    (found,) = list_findings(check_project(quarantine=True))
    assert found.startswith(f"{entry}: is corrupt, and might bring outputs that no run made, moved to {QUARANTINE}/")
    assert found.endswith("; nothing needs it; the next `dvc repro` of that stage writes it anew")
    assert check_project(quarantine=True) == Checked(objects=5, runs=0, outputs=3, findings=[])


def test_a_cut_lock_is_said(project: Path) -> None:
    Path("dvc.lock").write_text("schema: '2.0'\n", "utf-8")
    (found,) = list_findings(check_project(quarantine=True))
    assert found.startswith(
        "dvc.lock: has no entry for draw: it is cut off, or they have never run; `git checkout dvc."
    )


def test_a_conflicted_lock_is_said_and_the_cache_is_checked(project: Path) -> None:
    lock = Path("dvc.lock")
    overwrite(find_object("table.csv"), b"")
    lock.write_text("<<<<<<< HEAD\n" + lock.read_text("utf-8"), "utf-8")
    said, corrupt = list_findings(check_project(quarantine=True))
    assert said.startswith("dvc.lock: cannot be read (")
    assert said.endswith("; take either side of a conflict, or `git checkout dvc.lock`, then `dvc repro`")
    assert "is cut off at once: it is empty" in corrupt


@pytest.mark.parametrize("note", ['{"wri', "[]", '{"write": 3}', '{"read": {"a": [{"pid": "x"}]}}', '{"b": 1}'])
def test_a_corrupt_note_of_running_commands_is_said(project: Path, note: str) -> None:
    Path(".dvc/tmp/rwlock").write_text(note, "utf-8")
    (found,) = list_findings(check_project(quarantine=True))
    assert found.startswith(".dvc/tmp/rwlock: cannot be read (")
    assert found.endswith(", which stops every DVC command; if no DVC command runs here, delete it")


def test_a_note_of_running_commands_that_is_a_folder_is_said(project: Path) -> None:
    Path(".dvc/tmp/rwlock").unlink(missing_ok=True)
    Path(".dvc/tmp/rwlock").mkdir()
    (found,) = list_findings(check_project(quarantine=True))
    assert found.startswith(".dvc/tmp/rwlock: cannot be read (Is a directory), which stops every DVC command; ")


def test_a_note_of_a_command_that_runs_is_none(project: Path) -> None:
    note = {"write": {"a": {"pid": 1, "cmd": "dvc repro"}}, "read": {"b": [{"pid": 1, "cmd": "dvc repro"}]}}
    Path(".dvc/tmp/rwlock").write_text(json.dumps(note), "utf-8")
    assert check_project(quarantine=True).findings == []


def test_whole_caches_have_no_gaps(project: Path) -> None:
    """Four objects: table, two images and their list; nothing needs the metrics in the cache."""
    assert find_gaps() == (4, [])
    overwrite(find_object("table.csv"), b"x")  # which only rehashing finds
    assert find_gaps() == (4, [])


def test_gaps_are_named_with_what_fills_them(project: Path) -> None:
    find_member("b.png").unlink()
    find_object("table.csv").unlink()
    Path("table.csv").unlink()
    needed, findings = find_gaps()
    assert needed == 4
    trouble = "DVC's cache lacks 1 of its objects (was its disk full?)"
    assert list(map(str, findings)) == [
        f"images (for images/b.png): {trouble}; the workspace still has it: `dvc commit --force images`",
        f"table.csv (for table.csv): {trouble}; make it again: `dvc repro`",
    ]
    run(project, "dvc", "repro", "-q")
    assert find_gaps() == (4, [])
    find_object("images").unlink()
    assert [finding.concerned for finding in find_gaps()[1]] == [("images",)]
    run(project, "dvc", "commit", "-q", "--force", "images")
    assert find_gaps() == (4, [])


def test_a_list_of_files_that_is_corrupt_is_a_gap(project: Path) -> None:
    overwrite(find_object("images"), b"[")
    needed, findings = find_gaps()
    assert needed == 2
    assert [str(finding.path) for finding in findings] == ["images"]


FOLDER_ALONE = """\
stages:
  draw:
    cmd: python draw.py
    deps: [draw.py]
    outs: [images]
"""
FULL = """\
from pathlib import Path
Path("images").mkdir()
for name in ("a", "b", "c", "d"):
    Path(f"images/{name}.png").write_text(name * 50_000)
"""


def test_a_cache_whose_disk_is_full_is_noticed_although_dvc_exits_with_0(
    project: Path, mount_disk: Callable[[str], Path]
) -> None:
    disk = mount_disk("size=128k")
    run(project, "dvc", "cache", "dir", "--local", str(disk))
    Path("dvc.yaml").write_text(FOLDER_ALONE, "utf-8")
    Path("draw.py").write_text(FULL, "utf-8")
    done = subprocess.run(["dvc", "repro"], env=find_environment(), capture_output=True, text=True)
    assert done.returncode == 0
    assert "failed to transfer" in done.stdout + done.stderr
    again = subprocess.run(["dvc", "repro"], env=find_environment(), capture_output=True, text=True)
    assert again.returncode == 0
    quick = subprocess.run(["imagepipe", "fsck", "--quick"], env=find_environment(), capture_output=True, text=True)
    assert quick.returncode == 1
    assert "DVC's cache lacks" in quick.stdout
    assert "(was its disk full?); the workspace still has it: `dvc commit --force images`" in quick.stdout
    assert any("is not there; the workspace still has it" in found for found in list_findings(check_project(True)))
    subprocess.run(["mount", "-o", "remount,size=1m", disk], check=True)  # room is made
    run(project, "dvc", "commit", "-q", "--force")
    assert find_gaps()[1] == []
    assert check_project(quarantine=True).findings == []


def test_a_folder_without_a_project_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"^fsck: there is no DVC project here; run it in the folder that holds dvc"):
        check_project(quarantine=True)


@pytest.mark.parametrize("check", [lambda: check_project(quarantine=True), find_gaps])
def test_a_folder_inside_the_project_is_refused_and_left_as_it_is(
    project: Path, monkeypatch: pytest.MonkeyPatch, check: Callable[[], object]
) -> None:
    """A folder .dvc in it would make a project of it."""
    overwrite(find_object("table.csv"), b"")
    monkeypatch.chdir("images")
    with pytest.raises(InputError) as raised:
        check()
    assert str(raised.value) == f"fsck: this folder is inside the DVC project {project}; run it there: `cd {project}`."
    assert sorted(path.name for path in Path().iterdir()) == ["a.png", "b.png"]


def test_a_conflicted_config_is_said(project: Path) -> None:
    config = Path(".dvc/config")
    config.write_text("<<<<<<< HEAD\n" + config.read_text("utf-8"), "utf-8")
    with pytest.raises(
        InputError,
        match=r"^fsck: DVC cannot open the project: .*<<<<<<< HEAD.*; mend \.dvc/config \(take either side of a "
        r"conflict, or `git checkout \.dvc/config`\) and \.dvc/config\.local\.$",
    ):
        check_project(quarantine=True)


def test_the_command_ends_with_the_sum_and_says_by_its_exit_code_whether_all_is_sound(project: Path) -> None:
    done = CliRunner().invoke(app, ["fsck"])
    assert (done.exit_code, done.stdout) == (0, "fsck: 5 objects, 1 runs, 3 outputs rehashed; all as they were made\n")
    quick = CliRunner().invoke(app, ["fsck", "--quick"])
    assert (quick.exit_code, quick.stdout) == (0, "fsck: 4 objects needed; all are in DVC's cache\n")
    overwrite(find_object("table.csv"), b"")
    done = CliRunner().invoke(app, ["fsck"])
    assert done.exit_code == 1
    found, summed = done.stdout.splitlines()
    assert "(for table.csv): is cut off after 0 of 4 bytes, moved to" in found
    assert summed == "fsck: 5 objects, 1 runs, 3 outputs rehashed; findings: 1"


@pytest.mark.slow
def test_what_a_user_has_added_is_not_undone_unasked(project: Path) -> None:
    """Each remedy does what it says, in a folder whose name has a blank."""
    pets = project / "my pets"
    pets.mkdir()
    (pets / "a.png").write_text("a")
    run(project, "dvc", "add", "-q", "my pets")
    (pets / "new.png").write_text("new")
    assert list_findings(check_project(quarantine=False)) == [
        "my pets (for my pets/new.png): is not what was added: changed since, or damaged; `dvc add 'my pets'` keeps "
        "what is there now; to undo the change instead: `dvc checkout --force 'my pets'`"
    ]
    run(project, "dvc", "checkout", "--force", "my pets")
    assert [path.name for path in pets.iterdir()] == ["a.png"]
    shutil.rmtree(Path(".dvc/cache/files"))
    run(project, "dvc", "commit", "--force", "-q", "dvc.yaml")
    remedy = "the workspace still has it: `dvc add 'my pets'`"
    assert {str(finding).split("; ", 1)[1] for finding in check_project(quarantine=False).findings} == {remedy}
    run(project, "dvc", "add", "-q", "my pets")
    assert list_findings(check_project(quarantine=False)) == []
    shutil.rmtree(pets)
    shutil.rmtree(Path(".dvc/cache/files"))
    run(project, "dvc", "commit", "--force", "-q", "dvc.yaml")
    remedy = "bring it from elsewhere, then `dvc add 'my pets'`"
    assert {str(finding).split("; ", 1)[1] for finding in check_project(quarantine=False).findings} == {remedy}
