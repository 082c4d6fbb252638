"""[torch] The training loop, top to bottom, and the measuring that it is steered by."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from imagepipe.core.errors import InputError
from imagepipe.core.seeds import derive_seed
from imagepipe.data.batches import Loaders
from imagepipe.training.optimisers import make_optimiser, make_schedule
from imagepipe.training.params import TrainParams
from imagepipe.training.progress import Progress

Row = dict[str, int | float]


@dataclass(frozen=True, slots=True)
class Score:
    """Cross-entropy (nats, mean over samples) and accuracy in [0, 1] over a whole loader, in evaluation mode."""

    loss: float
    accuracy: float


@dataclass(slots=True)
class Fit:
    """What a run leaves: a row an epoch, a row an update, and the weights of the epoch that `train.keep` names."""

    history: list[Row] = field(default_factory=list[Row])
    steps: list[Row] = field(default_factory=list[Row])
    kept: Row = field(default_factory=dict[str, int | float])
    kept_weights: dict[str, Tensor] = field(default_factory=dict[str, Tensor])


def fit(
    model: nn.Module,
    loaders: Loaders,
    train_sample: DataLoader[Any],
    params: TrainParams,
    progress: Progress,
    on_epoch: Callable[[Fit], None],
) -> Fit:
    """Train for `params.epochs` epochs; `on_epoch` is called after each with what there is so far.

    After each epoch, train loss and accuracy are measured on `train_sample` just as val is: in evaluation mode, without
    shuffling, each image once. The global generator is left as it was.

    Raises InputError where the loss is not a finite number.
    """
    if loaders.val is None:
        raise InputError("no val loader: the best epoch is chosen by val accuracy.")
    optimiser = make_optimiser(model.parameters(), params)
    schedule = make_schedule(optimiser, params, params.epochs * len(loaders.train))
    loss_function = nn.CrossEntropyLoss(label_smoothing=params.label_smoothing)
    result = Fit()

    with torch.random.fork_rng(devices=[]):
        for epoch in range(1, params.epochs + 1):
            # Dropout draws from the global generator; this seeds the CPU's, which alone fork_rng restores.
            torch.default_generator.manual_seed(derive_seed(params.seed, "noise", epoch))
            loaders.set_epoch(epoch - 1)
            model.train()

            for images, labels in loaders.train:
                loss = loss_function(model(images), labels)
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()

                value, rate = loss.item(), optimiser.param_groups[0]["lr"]
                check_finite(value, epoch, len(result.steps) % len(loaders.train) + 1, rate)
                schedule.step()
                result.steps.append({"update": len(result.steps) + 1, "epoch": epoch, "loss": value, "lr": rate})
                progress.advance(len(labels), value)

            train, val = measure(model, train_sample), measure(model, loaders.val)
            check_finite(train.loss + val.loss, epoch, len(loaders.train), result.steps[-1]["lr"])
            row: Row = {
                "epoch": epoch,
                "updates": len(result.steps),
                "train_loss": train.loss,
                "train_accuracy": train.accuracy,
                "val_loss": val.loss,
                "val_accuracy": val.accuracy,
            }
            result.history.append(row)
            if params.keep == "last" or is_better(row, result.kept):
                result.kept = row
                result.kept_weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            progress.finish_epoch(row)
            on_epoch(result)
    return result


@torch.no_grad()
def measure(model: nn.Module, loader: DataLoader[Any]) -> Score:
    """Loss and accuracy over every sample of `loader`, weighted by sample, with the model in evaluation mode.

    Ties between logits go to the lowest class index.
    """
    model.eval()
    loss, correct, count = 0.0, 0, 0
    for images, labels in loader:
        logits = model(images)
        loss += nn.functional.cross_entropy(logits, labels, reduction="sum").item()
        correct += int((logits.argmax(dim=1) == labels).sum())
        count += len(labels)
    return Score(loss / count, correct / count)


def is_better(row: Row, best: Row) -> bool:
    """Higher val accuracy wins, then lower val loss, then the earlier epoch."""
    return not best or (row["val_accuracy"], -row["val_loss"]) > (best["val_accuracy"], -best["val_loss"])


def check_finite(loss: float, epoch: int, batch: int, rate: float) -> None:
    """Raise InputError where a loss is no longer a number."""
    if not math.isfinite(loss):
        raise InputError(
            f"the loss became {loss} in epoch {epoch}, batch {batch}, at a learning rate of {rate:g}; no model was "
            "written. Lower train.lr, or look at train.normalize."
        )
