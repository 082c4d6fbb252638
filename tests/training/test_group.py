import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import nn
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.elastic.rendezvous import RendezvousClosedError

from imagepipe.core.errors import EnvironmentFault, InputError
from imagepipe.models.classifier import load_classifier
from imagepipe.training.group import (
    ALONE,
    Group,
    ShareOfLoss,
    describe_signal,
    is_failure_noted,
    is_launched,
    join_group,
    launch,
    name_loopback,
    note_failure,
    raise_failure,
    report_failure,
)
from tests.training.made import finish_stage, start_stage

SIZES = {"train": 13, "val": 7, "test": 5}
NAMES = ("models/model.safetensors", "reports/train/history.csv", "reports/train/steps.csv")


def test_alone_nothing_is_exchanged() -> None:
    values, model = torch.tensor([1.0, 2.0]), nn.Linear(1, 1)
    assert ALONE.leads
    assert ALONE.add_up(values) is values
    assert ALONE.find_most(3) == 3
    assert ALONE.hand_out(b"data") == b"data"
    assert ALONE.hand_out(None) is None
    assert ALONE.wrap(model) is model
    ALONE.take_turns()
    ALONE.share_buffers(model)


@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 3.0])])
def test_the_average_of_all_shares_is_the_loss_of_the_batch(
    monkeypatch: pytest.MonkeyPatch, weights: torch.Tensor | None
) -> None:
    """Five samples in shares of three, two and none; each share is told the sum that all of them have."""
    logits, labels = torch.randn(5, 2, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 1, 0, 1])
    loss = nn.CrossEntropyLoss(weights)
    total = torch.tensor(5.0) if weights is None else weights[labels].sum()
    monkeypatch.setattr(Group, "add_up", lambda self, values: total)
    shares = ShareOfLoss(loss, weights, Group(size=3))
    parts = [shares(logits[:3], labels[:3], 3), shares(logits[3:], labels[3:], 2), shares(logits[:1], labels[:1], 0)]
    assert torch.stack(parts).mean() == pytest.approx(float(loss(logits, labels)))
    assert parts[2] == 0


def test_a_process_is_one_of_several_where_torchrun_started_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_launched()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "run")
    assert is_launched()


def set_place(monkeypatch: pytest.MonkeyPatch, rank: int, size: int) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "run")
    for name, value in (("RANK", rank), ("LOCAL_RANK", rank), ("WORLD_SIZE", size)):
        monkeypatch.setenv(name, str(value))


def test_torchrun_and_the_params_have_to_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    set_place(monkeypatch, 0, 3)
    message = r"^train\.processes is 2, but torchrun started 3 processes; figures depend on it: let them agree\.$"
    with pytest.raises(InputError, match=message), join_group(2, "cpu"):
        pass


def test_each_process_needs_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    set_place(monkeypatch, 1, 2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    message = r"^train\.processes: process 1 of this machine has no GPU of its own; it has 1\.$"
    with pytest.raises(EnvironmentFault, match=message), join_group(2, "cuda:0"):
        pass


def test_a_single_process_has_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    with join_group(1, "cpu") as group:
        assert group is ALONE
    set_place(monkeypatch, 0, 1)
    with join_group(1, "cpu") as group:
        assert group is ALONE


def test_an_error_goes_its_way_where_nobody_waits_for_it() -> None:
    with pytest.raises(InputError, match=r"^mend it$"), report_failure():
        raise InputError("mend it")


@pytest.mark.parametrize("kind", [InputError, EnvironmentFault])
def test_an_error_reaches_who_started_the_processes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: type[Exception]
) -> None:
    monkeypatch.setenv("IMAGEPIPE_FAILURE", str(tmp_path / "failure.json"))
    with pytest.raises(SystemExit) as ended, report_failure():
        raise kind("mend it")
    assert ended.value.code == 0
    with pytest.raises(kind, match=r"^mend it$"):
        raise_failure(json.loads((tmp_path / "failure.json").read_text("utf-8")))


def test_the_first_error_is_kept_and_finds_room(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("IMAGEPIPE_FAILURE", str(tmp_path / "failure.json"))
    (tmp_path / "room").write_bytes(b"\0")
    assert not is_failure_noted()
    assert note_failure(EnvironmentFault("the first"))
    assert note_failure(InputError("the second"))
    assert is_failure_noted()
    assert [path.name for path in tmp_path.iterdir()] == ["failure.json"]
    with pytest.raises(EnvironmentFault, match=r"^the first$"):
        raise_failure(json.loads((tmp_path / "failure.json").read_text("utf-8")))


def test_an_error_that_cannot_be_handed_over_goes_its_way(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("IMAGEPIPE_FAILURE", str(tmp_path / "file" / "failure.json"))
    with pytest.raises(InputError, match=r"^mend it$"), report_failure():
        raise InputError("mend it")


def test_who_lost_a_process_that_met_an_error_says_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    set_place(monkeypatch, 1, 2)
    monkeypatch.setenv("IMAGEPIPE_FAILURE", str(tmp_path / "failure.json"))
    note_failure(InputError("mend it"))
    with pytest.raises(SystemExit) as ended, report_failure():
        raise RuntimeError("[gloo/transport/tcp/pair.cc:545] Connection closed by peer [127.0.0.1]:28577.")
    assert ended.value.code == 0
    assert capsys.readouterr() == ("", "")


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], dict[str, str]]:
    """`launched(work)`: the environment of the processes of `launch`, in whose place `work` is done here."""

    def launch_here(work: Callable[[], None]) -> dict[str, str]:
        variables = dict(os.environ)
        monkeypatch.setattr(os, "environ", variables)
        monkeypatch.setattr("torch.distributed.launcher.api.elastic_launch", lambda *_: lambda *_: work())
        launch(2, ["python"])
        return variables

    return launch_here


def test_gloo_and_nccl_talk_over_loopback(launched: Callable[[Callable[[], None]], dict[str, str]]) -> None:
    """NCCL takes a name for the beginning of one, unless it is told that it is the whole."""
    variables = launched(lambda: None)
    assert variables["GLOO_SOCKET_IFNAME"] == name_loopback()
    assert variables["NCCL_SOCKET_IFNAME"] == f"={name_loopback()}"


FAILED = ChildFailedError("train", {1: ProcessFailure(1, 1, 1, "")})


@pytest.mark.parametrize("error", [FAILED, RendezvousClosedError()])
def test_what_one_process_met_comes_before_how_another_ended(
    launched: Callable[[Callable[[], None]], dict[str, str]], error: Exception
) -> None:
    def work() -> None:
        note_failure(EnvironmentFault("mend it"))
        raise error

    with pytest.raises(EnvironmentFault, match=r"^mend it$"):
        launched(work)


def test_processes_that_keep_ending_are_named(launched: Callable[[Callable[[], None]], dict[str, str]]) -> None:
    def work() -> None:
        raise FAILED

    message = r"^train\.processes: process 1 of 2 ended with exit code 1, 4 times; what it printed stands above\."
    with pytest.raises(EnvironmentFault, match=message):
        launched(work)


def test_a_process_that_lost_another_says_so_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    set_place(monkeypatch, 1, 2)
    said = "train: process 1 lost another one, and ends; all are started anew."
    with pytest.raises(SystemExit, match=re.escape(said)), report_failure():
        raise RuntimeError("[gloo/transport/tcp/pair.cc:545] Connection closed by peer [127.0.0.1]:28577.")
    with pytest.raises(RuntimeError, match=r"^another$"), report_failure():
        raise RuntimeError("another")


def test_signals_are_named() -> None:
    assert describe_signal(-signal.SIGKILL) == " (SIGKILL)"
    assert describe_signal(1) == ""


def test_the_interface_of_this_machine_alone() -> None:
    assert name_loopback() in ("lo", "lo0")


def read_files(project: Path) -> list[bytes]:
    return [(project / name).read_bytes() for name in NAMES]


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"batch_size": 4},  # three whole batches, and one of a single image: a share is empty
        {"batch_size": 5, "imbalance": "class_weights", "optimizer": "adamw", "lr": 0.01, "eval_batch_size": 1},
        {"batch_size": "all", "imbalance": "weighted_sampler", "loss": "focal"},
    ],
    ids=["last-of-one", "class-weights", "weighted-sampler"],
)
@pytest.mark.filterwarnings("ignore:train.imbalance")
def test_two_processes_make_the_model_of_one(make_project: Callable[..., Path], changes: dict[str, Any]) -> None:
    """A model without batch statistics: the same weights but for the last bits, and figures that count each once."""
    one, two = (
        make_project(f"of {count}", SIZES, model="mlp", epochs=3, processes=count, **changes) for count in (1, 2)
    )
    finish_stage(one)
    printed = finish_stage(two)
    assert len(re.findall(r"^train: epoch 1/3 ", printed, re.MULTILINE)) == 1
    models = [load_classifier(project / NAMES[0]).state_dict() for project in (one, two)]
    for name, tensor in models[0].items():
        assert torch.allclose(models[1][name], tensor, atol=1e-5), name
    for path in NAMES[1:]:
        rows = [
            [[float(cell) for cell in line.split(",")] for line in (project / path).read_text().splitlines()[1:]]
            for project in (one, two)
        ]
        assert len(rows[0]) == len(rows[1])
        for left, right in zip(*rows, strict=True):
            assert right == pytest.approx(left, abs=2e-5)


@pytest.mark.proof
def test_a_killed_process_costs_a_start_and_no_byte(make_project: Callable[..., Path]) -> None:
    """With batch norm and dropout; the second process is killed as soon as there is a checkpoint."""
    changes = {"model": "cnn", "cnn": {"base": 4, "stem": "pool", "dropout": 0.3}, "epochs": 4, "lr": 0.01}
    sizes = {"train": 400, "val": 7, "test": 5}
    whole, killed = (make_project(name, sizes, processes=2, **changes) for name in ("whole", "killed"))
    finish_stage(whole)
    root = killed.parent / "cache" / "checkpoints"
    with start_stage(killed) as stage:
        while not list(root.glob("*/*.ckpt")):
            assert stage.poll() is None
            time.sleep(0.01)
        find_rank(stage, 1).kill()
        assert stage.stdout is not None
        printed = stage.stdout.read()
    assert stage.returncode == 0, printed
    assert "of a run that was interrupted" in printed
    assert "train: process 0 lost another one, and ends; all are started anew." in printed
    assert "Traceback" not in printed
    assert read_files(killed) == read_files(whole)


def find_rank(stage: subprocess.Popen[str], rank: int) -> psutil.Process:
    """The process of that rank among those that a stage started."""
    for child in psutil.Process(stage.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if child.environ().get("RANK") == str(rank):
                return child
    raise LookupError(rank)


@pytest.mark.slow
def test_an_error_of_the_users_is_said_once_and_not_tried_again(make_project: Callable[..., Path]) -> None:
    project = make_project("wrong", SIZES, processes=2, model="mlp", lr=1e38)
    with start_stage(project) as stage:
        assert stage.stdout is not None
        printed = stage.stdout.read()
    assert stage.returncode == 2, printed
    assert len(re.findall("the loss became", printed)) == 1
    assert "Traceback" not in printed


@pytest.mark.slow
@pytest.mark.parametrize("place", ["cache/checkpoints", "reports/train"])
def test_an_error_of_the_leading_process_alone_is_said_once_and_not_tried_again(
    make_project: Callable[..., Path], place: str
) -> None:
    """It alone writes checkpoints and reports; here a file stands where their folder has to be."""
    project = make_project("full", SIZES, processes=2, model="mlp", epochs=3)
    blocked = (project.parent if place.startswith("cache") else project) / place
    blocked.parent.mkdir(parents=True, exist_ok=True)
    blocked.touch()
    with start_stage(project) as stage:
        assert stage.stdout is not None
        printed = stage.stdout.read()
    assert stage.returncode == 3, printed
    assert re.fullmatch(rf"(train: epoch 1/3 .+\n)?error: \S*{place}/\S+: cannot be written: .+\n", printed)


EARLY = """\
import os, sys
from pathlib import Path
from imagepipe.core.errors import InputError
from imagepipe.core.stage import run_stage
from imagepipe.training.group import is_launched, join_group, launch, report_failure

def main() -> None:
    if not is_launched():
        launch(2, [sys.executable, *sys.argv])
        return
    with report_failure():
        if os.environ["RANK"] == "1":
            raise InputError("mend it")
        with join_group(2, "cpu"):
            print("joined")

run_stage(main)
"""


@pytest.mark.proof
def test_nobody_waits_for_a_process_that_met_an_error_before_it_joined(tmp_path: Path) -> None:
    (tmp_path / "early.py").write_text(EARLY, "utf-8")
    done = subprocess.run(
        [sys.executable, "early.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "error: mend it\n")


@pytest.mark.slow
def test_processes_listen_on_loopback_only(make_project: Callable[..., Path]) -> None:
    project = make_project("open", {"train": 400, "val": 7, "test": 5}, processes=2, model="cnn", epochs=50, lr=0.01)
    root = project.parent / "cache" / "checkpoints"
    with start_stage(project) as stage:
        while not list(root.glob("*/*.ckpt")):
            assert stage.poll() is None
            time.sleep(0.01)
        family = [psutil.Process(stage.pid), *psutil.Process(stage.pid).children(recursive=True)]
        found = {
            connection.laddr.ip
            for process in family
            for connection in process.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        }
        os.killpg(stage.pid, signal.SIGTERM)
    assert found == {"127.0.0.1"}
    assert stage.returncode == 128 + signal.SIGTERM
