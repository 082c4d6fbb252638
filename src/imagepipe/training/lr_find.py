"""[torch] The learning-rate range test: the loss while the learning rate rises, and the rate that it suggests.

Smith, Cyclical Learning Rates for Training Neural Networks, arXiv:1506.01186, section 3.3. That the rate rises
exponentially, the running average and where the test stops are as in Gugger, How do you find a good learning rate
(https://sgugger.github.io/how-do-you-find-a-good-learning-rate.html).
"""

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ExponentialLR

from imagepipe.core.errors import InputError
from imagepipe.core.progress import make_bar
from imagepipe.core.run import RunParams
from imagepipe.training.group import ALONE
from imagepipe.training.loop import Row, State, list_gpus, make_step, run_batches
from imagepipe.training.optimisers import make_optimiser
from imagepipe.training.params import MOST, TrainParams
from imagepipe.training.setup import choose_options, open_loaders, set_up, weigh_classes
from imagepipe.training.train import report_faults

BLOWN_UP = 4  # times the least smoothed loss, above which the test stops
AVERAGED = 0.1  # share of the updates that the running average reaches back over
FALL = 0.2  # share of the updates that a fall of the loss is measured over


@dataclass(frozen=True, slots=True)
class Sweep:
    """Learning rates from `lowest` to `highest`, each the same multiple of the one before, one for each update.

    Raises InputError where they do not rise, or are fewer than two.
    """

    lowest: float
    highest: float
    updates: int

    def __post_init__(self) -> None:
        if not 0 < self.lowest < self.highest <= MOST:
            raise InputError(
                f"learning rates from {self.lowest:g} to {self.highest:g}; expected 0 < from < to <= {MOST:g}."
            )
        if self.updates < 2:
            raise InputError(f"learning rates that rise over {self.updates} updates; expected 2 or more.")

    @property
    def factor(self) -> float:
        """What a rate is multiplied by to give the next."""
        return (self.highest / self.lowest) ** (1 / (self.updates - 1))


def trace_run(manifests_dir: Path, images_dir: Path, params: TrainParams, run: RunParams, sweep: Sweep) -> pd.DataFrame:
    """The curve of `trace_loss` for the model, images and optimiser that the train stage would start with.

    Nothing is written. One process computes it, and the model is not compiled: both change last bits only. Raises what
    the train stage raises before its first update.
    """
    setup = set_up(manifests_dir, images_dir, params)
    with report_faults(), make_bar() as bar:
        loaders = open_loaders(setup, None, params, choose_options(run, setup.device, ALONE))
        model, class_weights = setup.model.to(setup.device), weigh_classes(params, setup.info, setup.device)
        task = bar.add_task("lr-find", total=sweep.updates * setup.batch_size)
        return trace_loss(
            model, loaders.train, params, sweep, class_weights, lambda: bar.advance(task, setup.batch_size)
        )


def trace_loss(
    model: nn.Module,
    batches: Iterable[tuple[Any, Any]],
    params: TrainParams,
    sweep: Sweep,
    class_weights: Tensor | None = None,
    on_update: Callable[[], None] = lambda: None,
) -> pd.DataFrame:
    """Train a copy of `model` while the learning rate rises along `sweep`; the model itself is left as it is.

    A row an update: `update` from 1, `lr`, `loss` of its batch before it, and `smoothed`, the running average of the
    losses without the bias of a start at 0. `batches` are gone through anew as often as needed. It ends early where
    `smoothed` is above four times its least, or before a loss that is no finite number. The optimiser and the loss are
    those of `params`, whose schedule and averaging of weights are left out. The global generator is left as it was.

    Raises InputError where there is no batch, or the first loss is not finite.
    """
    model = copy.deepcopy(model).train()
    optimiser = make_optimiser(model, params.model_copy(update={"lr": sweep.lowest}))
    state = State(model, optimiser, ExponentialLR(optimiser, sweep.factor), averaged=None)
    step = make_step(state, params, class_weights, ALONE)
    kept = 1 - 1 / max(1.0, AVERAGED * sweep.updates)  # by the running average, of what it was
    rows: list[Row] = []
    rate, average, least = sweep.lowest, 0.0, math.inf
    with torch.random.fork_rng(list_gpus(model)):
        for found in run_batches(islice(go_round(batches), sweep.updates), step):
            loss = found.item()
            if not math.isfinite(loss):
                break
            average = kept * average + (1 - kept) * loss
            smoothed = average / (1 - kept ** (len(rows) + 1))
            rows.append({"update": len(rows) + 1, "lr": rate, "loss": loss, "smoothed": smoothed})
            on_update()
            least = min(least, smoothed)
            if smoothed > BLOWN_UP * least:
                break
            rate = optimiser.param_groups[0]["lr"]
    if not rows:
        raise InputError(
            f"the loss is no finite number from the first update on, at a learning rate of {sweep.lowest:g}; look at "
            "train.normalize and train.pretrained."
        )
    return pd.DataFrame(rows)


def go_round(batches: Iterable[tuple[Any, Any]]) -> Iterator[tuple[Any, Any]]:
    """The batches, again and again; raises InputError where a pass has none."""
    while True:
        batch = None
        for batch in batches:
            yield batch
        if batch is None:
            raise InputError("a loader without batches; there is nothing to train on.")


def suggest_rate(curve: pd.DataFrame) -> float | None:
    """The rate of the steepest fall; None where `smoothed` falls nowhere, or the curve has fewer than 3 updates.

    It is the rate in the middle of the fifth of the updates (of at least 3) over which `smoothed` falls most: from one
    update to the next the noise of the batches is more than the fall. What comes after the least of `smoothed` is left
    out, since a loss that blew up may fall steeply again; for finding the least so is the start, which averages few.
    """
    half = max(1, int(FALL * len(curve) / 2))
    smoothed = curve["smoothed"].to_numpy()
    falls = smoothed[: -2 * half] - smoothed[2 * half :]  # the rates rise evenly in their logarithm
    until_least = falls[: 1 + int(smoothed[half:].argmin())] if len(falls) else falls
    if not (until_least > 0).any():
        return None
    return float(curve["lr"].iloc[half + int(until_least.argmax())])
