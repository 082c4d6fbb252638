"""What CI runs: its files have the form that they must have, and their scripts do here what they do there."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from dvc.utils.serialize import modify_yaml, parse_yaml

from tests.conftest import GIT_NAME

Run = Callable[..., subprocess.CompletedProcess[str]]
FILES = {".github/workflows/pipeline.yml": ["vendor.github-workflows"], ".gitlab-ci.yml": ["vendor.gitlab-ci"]}


def run_script(run_in: Run, folder: Path, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run_in(folder, sys.executable, f".ci/{name}.py", *arguments)


@pytest.mark.parametrize("name", FILES)
def test_the_files_of_ci_have_their_form(name: str, root: Path, run_in: Run) -> None:
    done = run_in(root, "check-jsonschema", "--builtin-schema", *FILES[name], name)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", FILES)
def test_a_mistake_in_them_would_be_found(name: str, root: Path, tmp_path: Path, run_in: Run) -> None:
    text = (root / name).read_text("utf-8").replace("paths:", "pahts:").replace("runs-on:", "run-on:")
    (tmp_path / "ci.yml").write_text(text, "utf-8")
    assert run_in(tmp_path, "check-jsonschema", "--builtin-schema", *FILES[name], "ci.yml").returncode == 1


@pytest.mark.parametrize("name", FILES)
def test_the_scripts_that_they_call_are_there(name: str, root: Path) -> None:
    called = set(re.findall(r"\.ci/[\w.]+", (root / name).read_text("utf-8")))
    assert called >= {".ci/install.py", ".ci/gate.py", ".ci/run", ".ci/reproduce.py", ".ci/summary.py"}
    assert all((root / script).is_file() for script in called)


@pytest.mark.parametrize("script", ["gate", "reproduce", "summary"])
def test_without_the_environment_they_say_so(script: str, root: Path) -> None:
    command = [sys.executable, f".ci/{script}.py", *(["HEAD"] if script == "summary" else [])]
    done = subprocess.run(command, cwd=root, env={"PATH": ""}, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == f"{script}: dvc is not on PATH; activate the environment: source .venv/bin/activate\n"


def test_a_revision_that_ci_does_not_have_is_not_compared_with(root: Path, run_in: Run) -> None:
    for revision in ("0" * 40, ""):
        done = run_script(run_in, root, "summary", revision)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == (
            "## What changed\n\nCI names no revision before this one (a first push, say): nothing to compare with.\n\n"
        )


def test_gitlab_runs_for_merge_requests_whose_base_it_names_then_and_gives_the_proofs_their_time(root: Path) -> None:
    described = parse_yaml((root / ".gitlab-ci.yml").read_text("utf-8"), ".gitlab-ci.yml")
    assert [rule["if"] for rule in described["workflow"]["rules"]] == [
        '$CI_PIPELINE_SOURCE == "merge_request_event"',
        "$CI_COMMIT_BRANCH == $CI_DEFAULT_BRANCH",
    ]
    assert described["tests"]["timeout"] == "2h"
    assert "${CI_MERGE_REQUEST_DIFF_BASE_SHA:-$CI_COMMIT_BEFORE_SHA}" in described["pipeline"]["script"][1]


@pytest.mark.skipif(sys.platform == "win32", reason="a script of a POSIX shell")
def test_run_is_make_test_and_make_prove_in_the_checkout_wherever_it_is_called(root: Path, tmp_path: Path) -> None:
    for name in ("make", "chromium", "strace", "zsh", "fish"):  # what is there is not installed
        (tmp_path / name).write_text('#!/bin/sh\necho "${0##*/} $* in $PWD"\n', "utf-8")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "locales").mkdir()
    (tmp_path / "locales/tr_TR").touch()
    environment = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "I18NPATH": str(tmp_path)}
    done = subprocess.run([root / ".ci/run"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout == f"make test in {root}\nmake prove in {root}\n", done.stderr


INSTALLED = ["apt-get update -qq", *(f"apt-get install {name}" for name in ("zsh", "strace", "locales"))]
SUDO = {
    "root": ("0", None, INSTALLED),
    "sudo": ("1000", "exec", INSTALLED),
    "password": ("1000", "refuse", []),
    "neither": ("1000", None, []),
}


@pytest.mark.skipif(sys.platform == "win32", reason="a script of a POSIX shell")
@pytest.mark.parametrize(("user", "sudo", "installed"), SUDO.values(), ids=SUDO)
def test_run_installs_what_is_missing_as_root_or_by_a_sudo_that_asks_for_no_password(
    user: str, sudo: str | None, installed: list[str], root: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    scripts = {
        "make": "",
        "chromium": "",
        "fish": "",
        "id": f"echo {user}",
        "apt-get": f'test "$5" != fish && echo "apt-get $1 ${{5:-$2}}" >> {log}; test "$5" != zsh',
    }
    if sudo:
        scripts["sudo"] = 'test "$1" = -n && shift && exec "$@"' if sudo == "exec" else "exit 1"
    for name, script in scripts.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n", "utf-8")
        (tmp_path / name).chmod(0o755)
    for name in ("bash", "dirname", "true"):
        (tmp_path / name).symlink_to(shutil.which(name) or name)
    environment = {"PATH": str(tmp_path), "I18NPATH": str(tmp_path)}
    done = subprocess.run([root / ".ci/run"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert sorted(log.read_text("utf-8").splitlines() if log.exists() else []) == sorted(installed)
    expected = (
        "could not be installed: zsh; the tests that need it are skipped\n"
        if installed
        else "not there, and not installed without apt-get and root: strace zsh locales; "
        "the tests that need them are skipped\n"
    )
    assert done.stderr == expected


@pytest.mark.slow
def test_the_gate_lets_the_committed_lock_pass(
    tmp_path: Path, copy_project: Callable[[Path], Path], run_in: Run
) -> None:
    done = run_script(run_in, copy_project(tmp_path), "gate")
    assert (done.returncode, done.stdout) == (0, "gate: dvc.lock is that of this commit\n")


@pytest.mark.slow
def test_the_gate_names_what_was_changed_without_a_run(clone: Path, run_in: Run) -> None:
    with modify_yaml(clone / "params.yaml") as params:
        params["train"]["lr"] = 0.5
    with (clone / "src/imagepipe/report/plots.py").open("a", encoding="utf-8") as file:
        file.write("# more\n")
    pipeline = clone / "dvc.yaml"
    pipeline.write_text(pipeline.read_text("utf-8").replace("stages/fetch.py data", "stages/fetch.py  data"), "utf-8")
    done = run_script(run_in, clone, "gate")
    assert done.returncode == 1
    assert done.stdout.splitlines()[0] == (
        "gate: dvc.lock is not that of this commit (5); run `dvc repro` and commit dvc.lock:"
    )
    assert sorted(done.stdout.splitlines()[1:]) == [
        "  balance: changed deps: src/imagepipe/report modified",
        "  evaluate: changed deps: params.yaml: train modified",
        "  evaluate: changed deps: src/imagepipe/report modified",
        "  fetch: changed command",
        "  train: changed deps: params.yaml: train modified",
    ]


def list_lost(done: subprocess.CompletedProcess[str]) -> list[str]:
    """What the gate says is not here; other lines are of code that was changed since the last run."""
    lines = done.stdout.splitlines()
    heads = [number for number, line in enumerate(lines) if line.startswith("gate: not here")]
    return lines[heads[0] :] if heads else []


@pytest.mark.slow
def test_the_gate_names_what_only_git_keeps_and_is_not_here(
    tmp_path: Path, copy_project: Callable[[Path], Path], run_in: Run
) -> None:
    """Before and after the commit; outputs that no clone has are no finding, nor a source that Git ignores."""
    folder = copy_project(tmp_path)
    assert list_lost(run_script(run_in, folder, "gate")) == []
    gone = ("data/source/README.md", "data/classes/all.csv", "reports/balance/balance.json")
    assert run_in(folder, "git", "rm", "-q", *gone).returncode == 0
    done = run_script(run_in, folder, "gate")
    assert done.returncode == 1
    lost = list_lost(done)
    assert lost[0] == "gate: not here, and only Git keeps it (4); bring it back and commit it:"
    assert sorted(lost[1:]) == [
        "  balance: changed outs: reports/balance/balance.json deleted",
        "  fetch: changed deps: data/classes/all.csv deleted",
        "  fetch: changed deps: data/source deleted",
        "  split: changed deps: data/source deleted",
    ]
    assert run_in(folder, "git", *GIT_NAME, "commit", "-qm", "gone").returncode == 0
    assert list_lost(run_script(run_in, folder, "gate")) == lost
    ignored = folder / ".gitignore"
    ignored.write_text(ignored.read_text("utf-8") + "/data/source/\n", "utf-8")
    assert list_lost(run_script(run_in, folder, "gate"))[1:] == [
        line for line in lost[1:] if not line.endswith("data/source deleted")
    ]


@pytest.mark.slow
def test_the_gate_does_not_ask_for_a_source_that_git_never_had(
    tmp_path: Path, copy_project: Callable[[Path], Path], run_in: Run
) -> None:
    folder = copy_project(tmp_path)
    with modify_yaml(folder / "params.yaml") as params:
        params["fetch"] |= {"path": "data/pets", "classes": "data/classes/pets.csv"}
    lock = folder / "dvc.lock"
    text = lock.read_text("utf-8").replace("path: data/source\n", "path: data/pets\n")
    lock.write_text(text.replace("path: data/classes/all.csv\n", "path: data/classes/pets.csv\n"), "utf-8")
    done = run_script(run_in, folder, "gate")
    assert list_lost(done)[1:] == ["  fetch: changed deps: data/classes/pets.csv deleted"]


@pytest.mark.slow
def test_the_gate_names_what_nobody_has_pushed(clone: Path, run_in: Run, tmp_path: Path) -> None:
    assert run_script(run_in, clone, "gate").returncode == 0
    elsewhere = ("dvc", "remote", "modify", "--local", "store", "url", str(tmp_path / "empty"))
    assert run_in(clone, *elsewhere).returncode == 0
    done = run_script(run_in, clone, "gate")
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert re.fullmatch(r"gate: outputs that the remote does not have \(\d+\); run `dvc push`:", lines[0])
    assert "  models/model.safetensors" in lines


@pytest.mark.slow
def test_a_clone_gets_everything_from_the_remote_and_runs_nothing(clone: Path, run_in: Run) -> None:
    """And says what changed since the commit before: nothing."""
    done = run_script(run_in, clone, "reproduce")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Running stage" not in done.stdout
    assert done.stdout.endswith("all are in DVC's cache\n")
    assert (clone / "reports/report.html").is_file()
    summary = run_script(run_in, clone, "summary", "HEAD").stdout
    assert summary.startswith(
        "## Parameters\n\nno change\n\n## Metrics\n\nno change\n\n## More than chance?\n\n| run | test"
    )
    assert "no evidence of a difference between HEAD and workspace" in summary


@pytest.mark.proof
def test_without_a_remote_the_pipeline_runs(tmp_path: Path, copy_project: Callable[[Path], Path], run_in: Run) -> None:
    """`dvc repro --pull` would end with an error."""
    folder = copy_project(tmp_path)
    with modify_yaml(folder / "params.yaml") as params:
        params["train"]["epochs"] = 1
    done = run_script(run_in, folder, "reproduce")
    assert done.returncode == 0, done.stdout + done.stderr
    summary = run_script(run_in, folder, "summary", "HEAD").stdout
    assert "| params.yaml | train.epochs | 30" in summary
    assert "| reports/train/metrics.json" in summary
    assert "neither in DVC's cache here nor in its remote" in summary


@pytest.mark.skipif(sys.platform == "win32", reason="scripts of a POSIX shell")
@pytest.mark.parametrize(
    ("run", "checked", "code", "said"),
    [
        (0, 0, 0, "dvc repro\nimagepipe fsck --quick\n"),
        (0, 1, 1, "dvc repro\nimagepipe fsck --quick\n"),
        (3, 0, 3, "dvc repro\n"),
    ],
)
def test_a_run_ends_with_the_question_whether_the_cache_has_all(
    run: int, checked: int, code: int, said: str, root: Path, tmp_path: Path
) -> None:
    """With a full disk, DVC exits with 0."""
    for name, ends in (("dvc", run), ("imagepipe", checked)):
        body = f'[ "$1" = remote ] && exit\necho "${{0##*/}} $*"\nexit {ends}\n'
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}", "utf-8")
        (tmp_path / name).chmod(0o755)
    command = [sys.executable, root / ".ci/reproduce.py"]
    done = subprocess.run(command, cwd=tmp_path, env={"PATH": str(tmp_path)}, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (code, said, "")


def test_each_file_of_proofs_has_its_row_and_its_minutes(root: Path) -> None:
    """The proofs take less than 40 minutes in all, installing and the tests at most 15."""
    page = (root / "CONTRIBUTING.md").read_text("utf-8")
    rows = re.findall(r"^\| [^|]+ \| `([^`]+)` \| [^|]+ \| (\d+) \|", page, re.MULTILINE)
    proving = [(command, int(minutes)) for command, minutes in rows if " -m proof " in command]
    assert sum(minutes for _, minutes in proving) < 40
    assert sum(int(minutes) for _, minutes in rows) - sum(minutes for _, minutes in proving) <= 15
    named = " ".join(command.partition(" -m proof ")[2] for command, _ in proving).split()
    marked = re.compile(r"^(@|pytestmark = |    )pytest\.mark\.proof,?$", re.MULTILINE)
    proofs = [path for path in (root / "tests").rglob("test_*.py") if marked.search(path.read_text("utf-8"))]
    assert sorted(named) == sorted(path.relative_to(root).as_posix() for path in proofs)


@pytest.mark.parametrize(
    ("body", "ci", "counts", "fault"),
    [
        ("pass", "true", "1 ran, 0 skipped", ""),
        ("raise ValueError", "", "1 ran, 0 skipped", "prove: failed: one, two\n"),
        ("pytest.skip('needs a moon')", "", "0 ran, 1 skipped", ""),
        (
            "pytest.skip('needs a moon')",
            "true",
            "0 ran, 1 skipped",
            "prove: every test was skipped: one, two; CI is set, where each group has to run: install what the reasons "
            "above name\n",
        ),
    ],
    ids=["pass", "fail", "skip", "skip in CI"],
)
def test_proofs_say_what_they_took_beside_what_they_may(
    body: str, ci: str, counts: str, fault: str, root: Path, tmp_path: Path, run_in: Run
) -> None:
    (tmp_path / ".ci").mkdir()
    shutil.copyfile(root / ".ci" / "prove.py", tmp_path / ".ci" / "prove.py")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = proof\n")
    (tmp_path / "one.py").write_text(f"import pytest\n\n@pytest.mark.proof\ndef test_it():\n    {body}\n")
    rows = [f"| {name} | `pytest -m proof one.py` | all | {minutes} | |" for name, minutes in (("one", 60), ("two", 0))]
    (tmp_path / "CONTRIBUTING.md").write_text("\n".join(["| tests | `pytest -m 'not proof'` | all | 5 | |", *rows]))
    done = run_in(tmp_path, sys.executable, ".ci/prove.py", CI=ci)
    assert re.search(
        rf"\n  one: \d+\.\d of 60 minutes; {counts}\n  two: \d+\.\d of 0 minutes, more than it may; {counts}\n$",
        done.stdout,
    )
    assert ("SKIPPED [1] one.py:5: needs a moon\n" in done.stdout) == counts.startswith("0")
    assert (done.returncode, done.stderr) == (1 if fault else 0, fault)
