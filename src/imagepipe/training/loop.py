"""[torch] The training loop, top to bottom, and the measuring that it is steered by."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from imagepipe.core.errors import InputError
from imagepipe.core.seeds import derive_seed
from imagepipe.data.batches import Loaders
from imagepipe.training.losses import make_loss
from imagepipe.training.optimisers import make_optimiser, make_schedule
from imagepipe.training.params import TrainParams
from imagepipe.training.progress import Progress

Row = dict[str, int | float]


@dataclass(frozen=True, slots=True)
class Score:
    """How a model does on a whole loader, in evaluation mode: cross-entropy (nats, mean over samples), accuracy, and
    the mean of the accuracies of the classes that are there (all in [0, 1] but the loss)."""

    loss: float
    accuracy: float
    balanced_accuracy: float


@dataclass(slots=True)
class Fit:
    """What a run leaves: a row an epoch, a row an update, and the weights of the epoch that `train.keep` names.

    `best` is the row of the best epoch by `train.keep_by`, whichever is kept.
    """

    history: list[Row] = field(default_factory=list[Row])
    steps: list[Row] = field(default_factory=list[Row])
    best: Row = field(default_factory=dict[str, int | float])
    kept: Row = field(default_factory=dict[str, int | float])
    kept_weights: dict[str, Tensor] = field(default_factory=dict[str, Tensor])


def fit(
    model: nn.Module,
    loaders: Loaders,
    train_sample: DataLoader[Any],
    params: TrainParams,
    progress: Progress,
    on_epoch: Callable[[Fit], None],
    class_weights: Tensor | None = None,
) -> Fit:
    """Train where the batches arrive, for `params.epochs` epochs or until `params.patience` of them were no better.

    `on_epoch` is called after each with what there is so far. `class_weights` (classes,) go into the loss.

    After each epoch, train loss and accuracy are measured on `train_sample` just as val is: in evaluation mode, without
    shuffling, each image once. The global generator is left as it was.

    Raises InputError where the loss is not a finite number.
    """
    if loaders.val is None:
        raise InputError("no val loader: the best epoch is chosen by what is measured on val.")
    optimiser = make_optimiser(model, params)
    schedule = make_schedule(optimiser, params, params.epochs * len(loaders.train))
    loss_function = make_loss(params, class_weights)
    averaged = average_weights(model, params.ema_decay) if params.ema_decay else None
    result = Fit()

    with torch.random.fork_rng(devices=[]):
        for epoch in range(1, params.epochs + 1):
            # Dropout draws from the global generator; this seeds the CPU's, which alone fork_rng restores.
            torch.default_generator.manual_seed(derive_seed(params.seed, "noise", epoch))
            loaders.set_epoch(epoch - 1)
            model.train()

            for images, labels in loaders.train:
                with torch.autocast(images.device.type, torch.bfloat16, enabled=params.precision == "bfloat16"):
                    loss = loss_function(model(images), labels)
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                if params.clip_norm:
                    nn.utils.clip_grad_norm_(model.parameters(), params.clip_norm)
                optimiser.step()
                if averaged is not None:
                    averaged.update_parameters(model)

                value, rate = loss.item(), optimiser.param_groups[0]["lr"]
                check_finite(value, epoch, len(result.steps) % len(loaders.train) + 1, rate)
                schedule.step()
                result.steps.append({"update": len(result.steps) + 1, "epoch": epoch, "loss": value, "lr": rate})
                progress.advance(len(labels), value)

            trained = model if averaged is None else averaged.module
            train, val = measure(trained, train_sample), measure(trained, loaders.val)
            check_finite(train.loss + val.loss, epoch, len(loaders.train), result.steps[-1]["lr"])
            row: Row = {
                "epoch": epoch,
                "updates": len(result.steps),
                "train_loss": train.loss,
                "train_accuracy": train.accuracy,
                "val_loss": val.loss,
                "val_accuracy": val.accuracy,
                "val_balanced_accuracy": val.balanced_accuracy,
            }
            result.history.append(row)
            better = is_better(row, result.best, params.keep_by)
            if better:
                result.best = row
            if better or params.keep == "last":
                result.kept = row
                result.kept_weights = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
            progress.finish_epoch(row)
            on_epoch(result)
            if params.patience and epoch - result.best["epoch"] >= params.patience:
                break
    return result


def average_weights(model: nn.Module, decay: float) -> AveragedModel:
    """The exponential moving average of a model's weights and buffers; after the first update it is the model."""
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)


@torch.no_grad()
def measure(model: nn.Module, loader: DataLoader[Any]) -> Score:
    """Loss and accuracy over every sample of `loader`, weighted by sample, with the model in evaluation mode.

    Ties between logits go to the lowest class index.
    """
    model.eval()
    loss, correct, count = 0.0, torch.zeros(0), torch.zeros(0)
    for images, labels in loader:
        logits = model(images)
        loss += nn.functional.cross_entropy(logits, labels, reduction="sum").item()
        if not len(count):
            correct, count = torch.zeros(2, logits.shape[1], dtype=torch.int64, device=logits.device)
        right = labels[logits.argmax(dim=1) == labels]
        correct += torch.bincount(right, minlength=len(count))
        count += torch.bincount(labels, minlength=len(count))
    images, there = int(count.sum()), count > 0
    return Score(loss / images, int(correct.sum()) / images, float((correct[there] / count[there]).mean()))


def is_better(row: Row, best: Row, metric: str) -> bool:
    """Whether `row` is better by `metric`: higher, or lower for the loss; then by val loss; then the earlier one is."""
    sign = -1 if metric == "val_loss" else 1
    return not best or (sign * row[metric], -row["val_loss"]) > (sign * best[metric], -best["val_loss"])


def check_finite(loss: float, epoch: int, batch: int, rate: float) -> None:
    """Raise InputError where a loss is no longer a number."""
    if not math.isfinite(loss):
        raise InputError(
            f"the loss became {loss} in epoch {epoch}, batch {batch}, at a learning rate of {rate:g}; no model was "
            "written. Lower train.lr, or look at train.normalize."
        )
