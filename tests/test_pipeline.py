"""The whole way, with a real Git and a real DVC: one command, no second work, the same bytes twice."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pytest

from imagepipe.core.config import read_yaml
from tests.circumstances import Circumstances, set_knobs, under

Run = Callable[..., subprocess.CompletedProcess[str]]
pytestmark = pytest.mark.slow

# All that must not matter and that DVC bears, other than in the first folder; tests/proof/ has the rest, one by one.
TWISTED = Circumstances(
    {"TZ": "Pacific/Kiritimati", "LC_ALL": "C", "PYTHONHASHSEED": "4242", "MPLBACKEND": "svg"},
    umask=0o077,
    jobs=1,
    workers=2,
    place="a longer name",
)


def read_hashes(project: Path) -> dict[str, str]:
    """Output → hash, for every output in `dvc.lock`."""
    stages = read_yaml(project / "dvc.lock")[0]["stages"]
    return {out["path"]: out["md5"] for stage in stages.values() for out in stage["outs"]}


def test_the_default_run_reaches_98_percent(project: Path) -> None:
    metrics = json.loads((project / "reports/evaluate/metrics.json").read_text())
    assert metrics["test"]["accuracy"] >= 0.98
    assert metrics["test"]["accuracy_low"] < metrics["test"]["accuracy"] < metrics["test"]["accuracy_high"]
    assert metrics["test"]["images"] == 359


def test_the_data_half_has_the_committed_hashes(project: Path, root: Path) -> None:
    data_half = ("data/raw", "data/images", "data/manifests", "reports/balance/balance.json")
    committed, found = read_hashes(root), read_hashes(project)
    assert {path: committed[path] for path in data_half} == {path: found[path] for path in data_half}


def test_a_second_run_does_nothing_and_says_so(project: Path, run_in: Run) -> None:
    done = run_in(project, "dvc", "repro")
    assert "Data and pipelines are up to date." in done.stdout
    assert "Running stage" not in done.stdout


def test_git_sees_nothing_but_the_lock_and_the_metrics(project: Path) -> None:
    status = ["git", "status", "--porcelain", "--untracked-files=all"]
    changed = subprocess.run(status, cwd=project, capture_output=True, text=True).stdout.split("\n")
    allowed = {
        "dvc.lock",
        *(f"reports/{name}.json" for name in ("balance/balance", "train/metrics", "evaluate/metrics")),
    }
    assert {line[3:] for line in changed if line} <= allowed


def test_another_folder_gives_the_same_bytes(
    project: Path, tmp_path: Path, copy_project: Callable[[Path], Path], run_in: Run
) -> None:
    twin = copy_project(tmp_path / TWISTED.place)
    set_knobs(twin, TWISTED)
    with under(TWISTED, run_in) as run:
        run(twin, "dvc", "repro")
    assert read_hashes(twin) == read_hashes(project)


def test_metrics_hold_no_time_and_no_path(project: Path) -> None:
    for path in (project / "reports").rglob("*"):
        if path.suffix in (".json", ".csv", ".html"):
            text = path.read_text("utf-8")
            assert str(project) not in text
            assert date.today().isoformat() not in text
            assert not re.search("seconds|duration|hostname", text)


def test_dvc_draws_every_declared_plot(project: Path, run_in: Run) -> None:
    done = run_in(project, "dvc", "plots", "show", "--json")
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert not shown.get("errors")
    names = set(shown["data"])
    assert {"loss by epoch", "accuracy by epoch", "class balance", "confusion on test"} <= names
    assert {"reports/balance/balance.png", "reports/evaluate/mistakes.png"} <= names
    balance = shown["data"]["class balance"][0]["content"]
    assert balance["encoding"]["y"]["scale"] == {"zero": True}


def test_dvc_shows_metrics_and_params(project: Path, run_in: Run) -> None:
    metrics = json.loads(run_in(project, "dvc", "metrics", "show", "--json").stdout)
    files = metrics[""]["data"]
    assert set(files) == {f"reports/{name}.json" for name in ("balance/balance", "train/metrics", "evaluate/metrics")}
    params = json.loads(run_in(project, "dvc", "params", "diff", "--all", "--json").stdout)
    assert params["params.yaml"]["train.lr"]["new"] == 0.01


def test_a_new_learning_rate_reruns_train_and_evaluate_only(project: Path, run_in: Run) -> None:
    params = project / "params.yaml"
    text = params.read_text("utf-8")
    params.write_text(text.replace("lr: 0.01", "lr: 0.02").replace("epochs: 30", "epochs: 2"), "utf-8")
    done = run_in(project, "dvc", "repro")
    params.write_text(text, "utf-8")
    assert done.returncode == 0, done.stderr
    ran = {line.split("'")[1] for line in done.stdout.splitlines() if line.startswith("Running stage")}
    assert ran == {"train", "evaluate"}
    again = run_in(project, "dvc", "repro")  # the former model comes back from DVC's cache
    assert again.returncode == 0, again.stderr
    assert json.loads((project / "reports/train/metrics.json").read_text())["epochs"] == 30


@pytest.mark.proof
def test_dvc_killed_in_mid_training_and_run_again_gives_the_same_bytes(
    project: Path, tmp_path: Path, copy_project: Callable[[Path], Path], run_in: Run
) -> None:
    """By SIGKILL, when a first checkpoint is there; its stage, which is not, ends all the same."""
    copy = copy_project(tmp_path)
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "DVC_NO_ANALYTICS": "1",
        "IMAGEPIPE_CACHE": str(tmp_path / "cache"),
    }
    with subprocess.Popen(
        ["dvc", "repro"], cwd=copy, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as dvc:
        while not list((tmp_path / "cache").glob("checkpoints/*/*.ckpt")):
            assert dvc.poll() is None
            time.sleep(0.02)
        dvc.kill()
        printed, _ = dvc.communicate()  # to the end of the stage, which holds the same pipe
    assert printed.endswith("error: ended by SIGTERM; nothing half-written is left. Run it again.\n")
    assert not (copy / "models/model.safetensors").exists()
    done = run_in(copy, "dvc", "repro", IMAGEPIPE_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    assert "of a run that was interrupted" in done.stdout
    assert read_hashes(copy) == read_hashes(project)
    assert not list((tmp_path / "cache").glob("checkpoints/*"))


@pytest.mark.proof
@pytest.mark.parametrize("runs", ["kept", "gone"])
def test_outputs_that_were_edited_come_back_with_the_same_bytes(
    project: Path, tmp_path: Path, run_in: Run, runs: str
) -> None:
    """Also where the lock knows nothing of the later stages: from DVC's cache of runs, or where that is gone, too, from
    the stages."""
    copy = shutil.copytree(project, tmp_path / "copy", symlinks=True)
    png = sorted((copy / "data/images").glob("*.png"))[0]
    edited = [png, copy / "data/manifests/val.csv", copy / "models/model.safetensors"]
    for path in edited:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    lock = copy / "dvc.lock"
    text = lock.read_text("utf-8")
    lock.write_text(text[: text.index("  split:\n")], "utf-8")
    if runs == "gone":
        shutil.rmtree(copy / ".dvc/cache/runs")
    done = run_in(copy, "dvc", "repro")
    assert done.returncode == 0, done.stderr
    assert ("Running stage 'train'" in done.stdout) == (runs == "gone")
    assert lock.read_text("utf-8") == text
    for path in edited:
        assert path.read_bytes() == (project / path.relative_to(copy)).read_bytes()
    assert run_in(copy, "dvc", "status").stdout == "Data and pipelines are up to date.\n"


def test_a_wrong_param_stops_the_stage_with_its_line(project: Path, run_in: Run) -> None:
    params = project / "params.yaml"
    text = params.read_text("utf-8")
    before = read_hashes(project)
    params.write_text(text.replace("  max_ratio: 1.5", "  max_ration: 1.5"), "utf-8")
    done = run_in(project, "dvc", "repro", "balance")
    params.write_text(text, "utf-8")
    assert done.returncode != 0
    assert "balance.max_ration: unknown key; did you mean `max_ratio`?" in done.stderr
    assert read_hashes(project) == before
    assert run_in(project, "dvc", "repro").returncode == 0  # DVC took the outputs away before the stage ran
