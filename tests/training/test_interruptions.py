"""A run that was interrupted, and goes on, leaves what one leaves that was not."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor

from imagepipe.core.errors import InputError
from imagepipe.data.batches import make_eval_loader, make_loaders
from imagepipe.training.checkpoints import Checkpoints
from imagepipe.training.imbalance import WeightedSampler
from imagepipe.training.loop import Fit, fit
from imagepipe.training.params import TrainParams
from imagepipe.training.progress import Progress
from tests.training.made import finish_stage, start_stage
from tests.training.test_loop import copy_weights, make_cnn, make_shades, same_weights
from tests.training.test_params import make_params
from tests.training.test_train import read_outputs, run

KEY = {"params": "these", "data": "this"}


class Interrupted(Exception):
    """The process was ended."""


class EndingProgress(Progress):
    """Ends the process after so many updates."""

    def __init__(self, epochs: int, updates: int) -> None:
        super().__init__(epochs, 10)
        self.left = updates

    def advance(self, images: int, loss: float) -> None:
        super().advance(images, loss)
        self.left -= 1
        if self.left < 0:
            raise Interrupted


def go(root: Path, params: TrainParams, updates: int, seconds: float, sampled: bool) -> tuple[Fit, dict[str, Tensor]]:
    """A run of a network with dropout and batch norm that ends after so many updates of its own."""
    train, val, model = make_shades(10), make_shades(6), make_cnn()
    sampler = WeightedSampler(train.tensors[1].numpy(), params.seed) if sampled else None
    assert params.batch_size != "all"
    loaders = make_loaders(train, val, batch_size=params.batch_size, seed=params.seed, sampler=sampler)
    checkpoints = Checkpoints(root, KEY, seconds)
    with EndingProgress(params.epochs, updates) as progress:
        done = fit(model, loaders, make_eval_loader(train, 4), params, progress, lambda _: None, None, checkpoints)
    return done, copy_weights(model)


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "sgd", "sgd": {"momentum": 0.9, "dampening": 0.0, "nesterov": True}, "schedule": "onecycle"},
        {"optimizer": "rmsprop", "lr": 0.001, "schedule": "cosine", "warmup": 0.2},
        {"optimizer": "adagrad", "schedule": "step"},
        {"optimizer": "adam", "lr": 0.01, "ema_decay": 0.5},
        {"optimizer": "adamw", "lr": 0.01, "keep": "last", "clip_norm": 0.1},
    ],
    ids=lambda changes: changes["optimizer"],
)
@pytest.mark.parametrize(("updates", "seconds"), [(1, 0), (4, 0), (7, 0), (7, 1e9)])
@pytest.mark.parametrize("sampled", [False, True])
def test_a_run_goes_on_where_it_was(
    tmp_path: Path, changes: dict[str, Any], updates: int, seconds: float, sampled: bool
) -> None:
    """Four epochs of three updates; with a checkpoint after each update, or at the end of each epoch alone."""
    params = make_params(epochs=4, **changes)
    whole, weights = go(tmp_path / "whole", params, 1000, seconds, sampled)
    with pytest.raises(Interrupted):
        go(tmp_path / "parts", params, updates, seconds, sampled)
    torch.rand(3)
    rest, rested = go(tmp_path / "parts", params, 12 - updates + 3 * (seconds > 0), seconds, sampled)
    assert (rest.history, rest.steps, rest.best, rest.kept) == (whole.history, whole.steps, whole.best, whole.kept)
    assert same_weights(rested, weights)
    assert same_weights(rest.kept_weights, whole.kept_weights)


def test_a_run_that_ended_just_before_its_end_was_noted_does_nothing_more(tmp_path: Path) -> None:
    params = make_params(epochs=2)
    whole, weights = go(tmp_path, params, 1000, 0, sampled=False)
    again, same = go(tmp_path, params, 0, 0, sampled=False)
    assert again.history == whole.history
    assert same_weights(same, weights)


def test_patience_is_counted_through_an_interruption(tmp_path: Path) -> None:
    params = make_params(epochs=50, lr=1e-30, patience=3)
    with pytest.raises(Interrupted):
        go(tmp_path, params, 7, 1e9, sampled=False)
    done, _ = go(tmp_path, params, 1000, 1e9, sampled=False)
    assert len(done.history) == 4


@pytest.fixture(autouse=True)
def cache_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where checkpoints are kept."""
    root = tmp_path / "cache"
    monkeypatch.setenv("IMAGEPIPE_CACHE", str(root))
    return root


def interrupt(monkeypatch: pytest.MonkeyPatch, updates: int) -> None:
    """End the next run after so many updates."""
    monkeypatch.setattr(
        "imagepipe.training.train.Progress", lambda epochs, images, shown: EndingProgress(epochs, updates)
    )


def list_checkpoints(made: Path) -> list[Path]:
    return sorted((made / "cache" / "checkpoints").glob("*/*"))


def test_the_stage_goes_on_says_so_and_leaves_the_same_files(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(made, "whole", epochs=3)
    assert list_checkpoints(made) == []
    with monkeypatch.context() as patch:
        interrupt(patch, 5)
        with pytest.raises(Interrupted):
            run(made, "parts", {"checkpoint_minutes": 0}, epochs=3)
    assert [path.name for path in list_checkpoints(made)] == ["000000000004.ckpt", "000000000005.ckpt"]
    assert not (made / "parts" / "model.safetensors").exists()
    capsys.readouterr()
    (made / "parts" / "reports" / "history.csv").unlink()  # as DVC does before a stage
    run(made, "parts", {"checkpoint_minutes": 0}, epochs=3)
    assert "train: goes on after epoch 1, update 5 of a run that was interrupted\n" in capsys.readouterr().out
    assert read_outputs(made, "parts") == read_outputs(made, "whole")
    assert list_checkpoints(made) == []


@pytest.mark.parametrize("change", ["params", "data", "classes"])
def test_the_checkpoint_of_another_run_is_not_used(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], change: str
) -> None:
    with monkeypatch.context() as patch:
        interrupt(patch, 4)
        with pytest.raises(Interrupted):
            run(made, "parts", epochs=3)
    assert len(list_checkpoints(made)) == 1
    if change == "data":
        table = (made / "val.csv").read_text("utf-8").splitlines(keepends=True)
        (made / "val.csv").write_text("".join(table[:-1]), "utf-8")
    elif change == "classes":
        for name in ("dataset.json", "train.csv", "val.csv"):
            text = (made / name).read_text("utf-8")
            (made / name).write_text(text.replace("NA", "cow"), "utf-8")
    run(made, "other", epochs=3, lr=0.2 if change == "params" else 0.1)
    assert "goes on" not in capsys.readouterr().out
    assert len(list_checkpoints(made)) == 1  # the former run's is left, in case that it is meant again


def test_tables_and_metrics_can_be_followed_from_the_first_epoch(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(monkeypatch, 4)
    with pytest.raises(Interrupted):
        run(made, "parts", epochs=3)
    reports = made / "parts" / "reports"
    assert len((reports / "history.csv").read_text().splitlines()) == 2
    assert len((reports / "steps.csv").read_text().splitlines()) == 4
    metrics = json.loads((reports / "metrics.json").read_text())
    assert (metrics["epochs"], metrics["kept_epoch"], metrics["updates"]) == (1, 1, 3)


def test_a_diverged_run_leaves_its_last_good_checkpoint_and_no_model(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each update multiplies the weights, so that the loss overflows some epochs later."""
    with pytest.raises(InputError, match=r"the loss became (inf|nan) in epoch \d+, batch \d, at a learning rate of"):
        run(made, "run", model="mlp", lr=1e4, weight_decay=1.0, epochs=50)
    kept = list_checkpoints(made)
    assert kept
    assert not (made / "run" / "model.safetensors").exists()


def name_checkpoints(root: Path) -> set[str]:
    """Their names; none where the folder of the run goes while it is looked at."""
    try:
        return {path.name for path in root.glob("*/*.ckpt")}
    except FileNotFoundError:
        return set()


@pytest.mark.proof
@pytest.mark.parametrize("moments", [(1, 6, 11), (3, 3, 3)])
def test_kill_9_at_any_moment_changes_no_byte(make_project: Callable[..., Path], moments: tuple[int, ...]) -> None:
    """Killed as soon as the checkpoint of a certain update is there, then started again, several times."""
    changes = {"model": "cnn", "cnn": {"base": 4, "stem": "pool", "dropout": 0.3}, "epochs": 5, "lr": 0.01}
    sizes = {"train": 400, "val": 6, "test": 5}
    whole = make_project("whole", sizes, **changes)
    finish_stage(whole)
    project = make_project("parts", sizes, **changes)
    root = project.parent / "cache" / "checkpoints"
    killed = 0
    for moment in moments:
        with start_stage(project) as process:
            before = name_checkpoints(root)
            while process.poll() is None and len(name_checkpoints(root) - before) < moment % 3:
                time.sleep(0.005)
            time.sleep(0.01 * moment)
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                killed += 1
    assert killed
    finish_stage(project)
    for name in ("models/model.safetensors", "reports/train/history.csv", "reports/train/steps.csv"):
        assert (project / name).read_bytes() == (whole / name).read_bytes()
    assert (project / "reports/train/metrics.json").read_bytes() == (whole / "reports/train/metrics.json").read_bytes()
    assert list(root.glob("*/*")) == []


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "workers"), [(2, 0), (1, 2)])
def test_what_a_killed_stage_has_started_ends_with_it(
    make_project: Callable[..., Path], processes: int, workers: int
) -> None:
    """Processes that train, or that load batches; the pipe is read to its end, which is that of the last of them."""
    sizes = {"train": 400, "val": 6, "test": 5}
    project = make_project("killed", sizes, model="cnn", epochs=1000, lr=0.01, processes=processes)
    params = json.loads((project / "params.yaml").read_text("utf-8"))
    params["run"]["workers"] = workers
    params["train"]["augment"]["transform"] = "RandomInvert p=0.5" if workers else ""
    (project / "params.yaml").write_text(json.dumps(params), "utf-8")
    with start_stage(project) as stage:
        while not list((project.parent / "cache" / "checkpoints").glob("*/*.ckpt")):
            assert stage.poll() is None
            time.sleep(0.01)
        while len(psutil.Process(stage.pid).children(recursive=True)) < 2:  # those that load start anew each epoch
            assert stage.poll() is None
            time.sleep(0.01)
        stage.kill()
        stage.communicate(timeout=60)
