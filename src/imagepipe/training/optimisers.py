"""[torch] Optimisers and learning-rate schedules by name. To add one: one line in OPTIMISERS, or in FACTORS."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import nn, optim
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from imagepipe.core.errors import InputError, find_named
from imagepipe.training.params import TrainParams

# Called with groups of weights, each of which has its own weight decay.
OPTIMISERS: dict[str, Callable[[list[dict[str, Any]], TrainParams], optim.Optimizer]] = {
    "sgd": lambda groups, params: optim.SGD(groups, lr=params.lr, **params.sgd.model_dump()),
    "rmsprop": lambda groups, params: optim.RMSprop(groups, lr=params.lr, **params.rmsprop.model_dump()),
    "adagrad": lambda groups, params: optim.Adagrad(groups, lr=params.lr, **params.adagrad.model_dump()),
    "adam": lambda groups, params: optim.Adam(groups, lr=params.lr, **params.adam.arguments),
    "adamw": lambda groups, params: optim.AdamW(groups, lr=params.lr, **params.adam.arguments),
}

# What the learning rate is multiplied by, from the share of the updates after the warm-up that are done, 0 to below 1.
FACTORS: dict[str, Callable[[float, TrainParams], float]] = {
    "constant": lambda done, params: 1.0,
    "step": lambda done, params: params.step.factor ** math.floor(done * params.step.steps),
    # Half a cosine (Loshchilov, Hutter: SGDR, arXiv:1608.03983), without restarts.
    "cosine": lambda done, params: params.cosine.end + (1 - params.cosine.end) * (1 + math.cos(math.pi * done)) / 2,
}


def make_optimiser(model: nn.Module, params: TrainParams) -> optim.Optimizer:
    """The optimiser `train.optimizer` over the weights of `model` that are to be trained."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    return find_named(OPTIMISERS, "train.optimizer", params.optimizer)(group_weights(weights, params), params)


def group_weights(weights: Sequence[nn.Parameter], params: TrainParams) -> list[dict[str, Any]]:
    """All weights in one group; or those of one dimension, which norms and biases have, in a second without decay."""
    if params.decay_norms_and_biases:
        return [{"params": list(weights), "weight_decay": params.weight_decay}]
    groups = [
        {"params": [weight for weight in weights if weight.dim() > 1], "weight_decay": params.weight_decay},
        {"params": [weight for weight in weights if weight.dim() <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def make_schedule(optimiser: optim.Optimizer, params: TrainParams, updates: int) -> LRScheduler:
    """The schedule `train.schedule`, to be stepped after each of `updates` updates."""
    return find_named(list_schedules(), "train.schedule", params.schedule)(optimiser, params, updates)


def list_schedules() -> dict[str, Callable[[optim.Optimizer, TrainParams, int], LRScheduler]]:
    """Each by its name: those of FACTORS, with a warm-up, and `onecycle`, which has its own."""
    return {name: partial(schedule_factor, factor) for name, factor in FACTORS.items()} | {"onecycle": schedule_cycle}


def schedule_cycle(optimiser: optim.Optimizer, params: TrainParams, updates: int) -> LRScheduler:
    """Smith, Topin: Super-convergence, arXiv:1708.07120; the momentum is left alone.

    Raises InputError where the rise is not longer than one update: torch then starts behind the peak, or divides by 0.
    """
    share = params.onecycle.pct_start
    if share * updates <= 1:
        raise InputError(
            f"train.schedule is onecycle, but train.onecycle.pct_start is {share} and there are {updates} updates: lr "
            f"would rise over {share * updates:.2g} updates; it needs more than 1. Raise train.epochs or pct_start, "
            "reduce train.batch_size, or choose another train.schedule."
        )
    return OneCycleLR(
        optimiser, max_lr=params.lr, total_steps=updates, cycle_momentum=False, **params.onecycle.model_dump()
    )


def schedule_factor(
    factor: Callable[[float, TrainParams], float], optimiser: optim.Optimizer, params: TrainParams, updates: int
) -> LRScheduler:
    """A warm-up over the share `train.warmup` of the updates, then the learning rate times `factor`."""
    warmup = round(params.warmup * updates)

    def scale(update: int) -> float:
        if update < warmup:
            return (update + 1) / (warmup + 1)
        return factor((update - warmup) / max(1, updates - warmup), params)

    return LambdaLR(optimiser, scale)
