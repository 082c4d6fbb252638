"""[torch] The training loop, top to bottom, and the measuring that it is steered by."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from imagepipe.core.errors import InputError
from imagepipe.core.seeds import derive_seed
from imagepipe.data.batches import Loaders
from imagepipe.training.checkpoints import Checkpoints
from imagepipe.training.group import ALONE, Group, ShareOfLoss
from imagepipe.training.losses import make_loss
from imagepipe.training.optimisers import make_optimiser, make_schedule
from imagepipe.training.params import TrainParams
from imagepipe.training.progress import Progress

Row = dict[str, int | float]

# What is done with a batch: inputs and targets in, their loss out, a mean over the samples.
Step = Callable[[Any, Any], Tensor]

# Updates after which losses are read from a GPU: reading one waits for all that it has to do.
READ_EVERY = 20


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


@dataclass(slots=True)
class State:
    """All that changes while a model is trained; `seen` are the samples of the running epoch that were taken.

    The order of the samples, augmentation and dropout follow from the seed, the epoch and the number of the update.
    """

    model: nn.Module
    optimiser: Optimizer
    schedule: LRScheduler
    averaged: AveragedModel | None
    fit: Fit = field(default_factory=Fit)
    seen: int = 0

    @property
    def trained(self) -> nn.Module:
        """What is measured and kept: the model, or the average of its weights."""
        return self.model if self.averaged is None else self.averaged.module

    def dump(self) -> dict[str, Any]:
        """As a checkpoint holds it."""
        so_far = {each.name: getattr(self.fit, each.name) for each in fields(self.fit)}
        parts = {name: part.state_dict() for name, part in self._list_parts().items()}
        return {"seen": self.seen, "fit": so_far} | parts

    def restore(self, found: dict[str, Any]) -> None:
        """Go back to what `dump` gave."""
        self.seen, self.fit = found["seen"], Fit(**found["fit"])
        for name, part in self._list_parts().items():
            part.load_state_dict(found[name])

    def _list_parts(self) -> dict[str, Any]:
        parts = {"model": self.model, "optimiser": self.optimiser, "schedule": self.schedule}
        return parts if self.averaged is None else parts | {"averaged": self.averaged}


def fit(
    model: nn.Module,
    loaders: Loaders,
    train_sample: DataLoader[Any],
    params: TrainParams,
    progress: Progress,
    on_epoch: Callable[[Fit], None],
    class_weights: Tensor | None = None,
    checkpoints: Checkpoints | None = None,
    group: Group = ALONE,
) -> Fit:
    """Train where the batches arrive, for `params.epochs` epochs or until `params.patience` of them were no better.

    `on_epoch` is called after each with what there is so far. `class_weights` (classes,) go into the loss. With
    `checkpoints`, a run goes on from the newest of them, if there is one, and ends as if it had never been interrupted.

    After each epoch, train loss and accuracy are measured on `train_sample` just as val is: in evaluation mode, without
    shuffling, each image once. The global generator is left as it was.

    Raises InputError where the loss is not a finite number.
    """
    if loaders.val is None:
        raise InputError("no val loader: the best epoch is chosen by what is measured on val.")
    optimiser = make_optimiser(model, params)
    schedule = make_schedule(optimiser, params, params.epochs * len(loaders.train))
    averaged = average_weights(model, params.ema_decay) if params.ema_decay else None
    state = State(model, optimiser, schedule, averaged)
    if checkpoints is not None and (found := checkpoints.load()) is not None:
        state.restore(found)
        progress.resume(len(state.fit.history), len(state.fit.steps))
        if state.fit.history:
            on_epoch(state.fit)
    step = make_step(state, params, class_weights, group)

    with torch.random.fork_rng(list_gpus(model)):
        while not is_finished(state.fit, params):
            epoch = len(state.fit.history) + 1
            train_epoch(state, step, loaders, epoch, progress, checkpoints)
            group.share_buffers(state.trained)
            train, val = (measure(state.trained, loader, group) for loader in (train_sample, loaders.val))
            check_finite(train.loss + val.loss, state.fit, state.fit.steps[-1])
            row = note_epoch(state, params, epoch, train, val)
            progress.finish_epoch(row)
            on_epoch(state.fit)
            if checkpoints is not None:
                checkpoints.save(len(state.fit.steps), state.dump())
    return state.fit


def train_epoch(
    state: State, step: Step, loaders: Loaders, epoch: int, progress: Progress, checkpoints: Checkpoints | None
) -> None:
    """One pass over `loaders.train`, or the rest of one; a row of `state.fit.steps` for each update."""
    batches = loaders.batches
    losses: list[Tensor] = []
    rates: list[float] = []
    loaders.set_epoch(epoch - 1, state.seen)
    state.model.train()
    rate = state.optimiser.param_groups[0]["lr"]
    for loss in run_batches(loaders.train, step):
        losses.append(loss)
        rates.append(rate)
        rate = state.optimiser.param_groups[0]["lr"]
        before, state.seen = state.seen, min(state.seen + batches.batch_size, len(batches.order))
        due = checkpoints is not None and checkpoints.is_due()
        if loss.device.type == "cpu" or due or len(losses) == READ_EVERY:
            note_updates(state.fit, epoch, losses, rates)
        progress.advance(state.seen - before, state.fit.steps[-1]["loss"] if state.fit.steps else math.nan)
        if checkpoints is not None and due:
            checkpoints.save(len(state.fit.steps), state.dump())
    note_updates(state.fit, epoch, losses, rates)
    state.seen = 0


def run_batches(loader: Iterable[tuple[Any, Any]], step: Step, device: str | None = None) -> Iterator[Tensor]:
    """The loss of each batch, which `step` has worked on; inputs and targets are moved to `device` where one is named.

    It trains or measures, whatever the step does: any loader of pairs, any loss.
    """
    for inputs, targets in loader:
        if device is not None:
            inputs, targets = inputs.to(device), targets.to(device)
        yield step(inputs, targets)


def make_step(state: State, params: TrainParams, class_weights: Tensor | None, group: Group) -> Step:
    """One update of the model from a batch, or from this process's share of it; gives the loss of the whole batch."""
    model, loss_function = group.wrap(state.model), make_loss(params, class_weights)
    share_of_loss = ShareOfLoss(loss_function, class_weights, group)
    reduced = params.precision == "bfloat16"
    noise = derive_seed(params.seed, f"noise {group.rank}")

    def find_loss(images: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast(images.device.type, torch.bfloat16) if reduced else nullcontext():
            if group.size == 1:
                return loss_function(model(images), labels)
            samples = len(labels)
            if not samples:  # all processes take every step together
                images, labels = images.new_zeros(1, *images.shape[1:]), labels.new_zeros(1)
                state.model.eval()
            loss = share_of_loss(model(images), labels, samples)
            state.model.train()
            return loss

    def step(images: Tensor, labels: Tensor) -> Tensor:
        seed_noise(noise + state.schedule.last_epoch, images.device)
        state.optimiser.zero_grad(set_to_none=True)  # first, so that activations get the memory that is still warm
        loss = find_loss(images, labels)
        loss.backward()
        if params.clip_norm:
            nn.utils.clip_grad_norm_(state.model.parameters(), params.clip_norm)
        state.optimiser.step()
        if state.averaged is not None:
            state.averaged.update_parameters(state.model)
        state.schedule.step()
        loss = loss.detach()
        return loss if group.size == 1 else group.add_up(loss) / group.size

    return step


def seed_noise(seed: int, device: torch.device) -> None:
    """Seed the generators that dropout draws from, on the processor and on the device."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


def note_updates(so_far: Fit, epoch: int, losses: list[Tensor], rates: list[float]) -> None:
    """Turn losses and learning rates into rows, and empty the two lists; InputError where a loss is not finite."""
    for loss, rate in zip(losses, rates, strict=True):
        row: Row = {"update": len(so_far.steps) + 1, "epoch": epoch, "loss": loss.item(), "lr": rate}
        check_finite(row["loss"], so_far, row)
        so_far.steps.append(row)
    losses.clear()
    rates.clear()


def note_epoch(state: State, params: TrainParams, epoch: int, train: Score, val: Score) -> Row:
    """The epoch's row of the history; keeps the weights where `params` says so."""
    so_far = state.fit
    row: Row = {
        "epoch": epoch,
        "updates": len(so_far.steps),
        "train_loss": train.loss,
        "train_accuracy": train.accuracy,
        "val_loss": val.loss,
        "val_accuracy": val.accuracy,
        "val_balanced_accuracy": val.balanced_accuracy,
    }
    so_far.history.append(row)
    better = is_better(row, so_far.best, params.keep_by)
    if better:
        so_far.best = row
    if better or params.keep == "last":
        so_far.kept = row
        so_far.kept_weights = {name: tensor.clone() for name, tensor in state.trained.state_dict().items()}
    return row


def is_finished(so_far: Fit, params: TrainParams) -> bool:
    """Whether all epochs are done, or `params.patience` of them were no better."""
    epochs = len(so_far.history)
    return epochs >= params.epochs or bool(
        params.patience and so_far.best and epochs - so_far.best["epoch"] >= params.patience
    )


def average_weights(model: nn.Module, decay: float) -> AveragedModel:
    """The exponential moving average of a model's weights and buffers; after the first update it is the model."""
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)


@torch.no_grad()
def measure(model: nn.Module, loader: DataLoader[Any], group: Group = ALONE) -> Score:
    """Loss and accuracy over every sample of `loader`, weighted by sample, with the model in evaluation mode.

    Of several processes each measures its share, and all get the score of the whole. Ties between logits go to the
    lowest class index.
    """
    model.eval()
    tallies: list[Tensor] = []

    def step(images: Tensor, labels: Tensor) -> Tensor:
        logits = model(images)
        classes = logits.shape[1]
        right = labels[logits.argmax(dim=1) == labels]
        tallies.append(torch.stack([torch.bincount(part, minlength=classes) for part in (right, labels)]))
        return nn.functional.cross_entropy(logits, labels, reduction="sum")

    loss = math.fsum([float(part) for part in run_batches(loader, step)])
    return make_score(loss, tallies, group)


def make_score(loss: float, tallies: list[Tensor], group: Group) -> Score:
    """From the sum of losses and, for each batch, how many of each class were right and how many there were."""
    classes = group.find_most(max((tally.shape[1] for tally in tallies), default=0))
    counted = torch.zeros(2, classes, dtype=torch.int64)
    for tally in tallies:
        counted += tally.cpu()
    correct, count = group.add_up(counted)
    images, there = int(count.sum()), count > 0
    whole = float(group.add_up(torch.tensor(loss, dtype=torch.float64)))
    return Score(whole / images, int(correct.sum()) / images, float((correct[there] / count[there]).mean()))


def is_better(row: Row, best: Row, metric: str) -> bool:
    """Whether `row` is better by `metric`: higher, or lower for the loss; then by val loss; then the earlier one is."""
    sign = -1 if metric == "val_loss" else 1
    return not best or (sign * row[metric], -row["val_loss"]) > (sign * best[metric], -best["val_loss"])


def check_finite(loss: float, so_far: Fit, update: Row) -> None:
    """Raise InputError where a loss is no longer a number; `update` is the row of the steps that it belongs to."""
    if not math.isfinite(loss):
        batch = update["update"] - (so_far.history[-1]["updates"] if so_far.history else 0)
        raise InputError(
            f"the loss became {loss} in epoch {update['epoch']}, batch {batch}, at a learning rate of "
            f"{update['lr']:g}; no model was written. Lower train.lr, or look at train.normalize."
        )


def list_gpus(model: nn.Module) -> list[torch.device]:
    """The CUDA device that the model is on, if it is on one."""
    return list({weight.device for weight in model.parameters() if weight.is_cuda})
