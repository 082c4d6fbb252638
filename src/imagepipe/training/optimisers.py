"""[torch] Optimisers and learning-rate schedules by name. To add one: one line in its table."""

from collections.abc import Callable, Iterable

from torch import nn, optim
from torch.optim.lr_scheduler import ConstantLR, LRScheduler, OneCycleLR

from imagepipe.training.params import TrainParams

OPTIMISERS: dict[str, Callable[[Iterable[nn.Parameter], TrainParams], optim.Optimizer]] = {
    "sgd": lambda weights, params: optim.SGD(
        weights, lr=params.lr, momentum=params.momentum, weight_decay=params.weight_decay
    ),
    "rmsprop": lambda weights, params: optim.RMSprop(
        weights, lr=params.lr, momentum=params.momentum, weight_decay=params.weight_decay
    ),
    "adam": lambda weights, params: optim.Adam(weights, lr=params.lr, weight_decay=params.weight_decay),
    "adamw": lambda weights, params: optim.AdamW(weights, lr=params.lr, weight_decay=params.weight_decay),
}

# One-cycle rises to `lr` over the first 30 % of all updates and falls to nearly 0 (Smith, Topin: Super-convergence,
# arXiv:1708.07120); the momentum is left alone.
SCHEDULES: dict[str, Callable[[optim.Optimizer, TrainParams, int], LRScheduler]] = {
    "constant": lambda optimiser, params, updates: ConstantLR(optimiser, factor=1.0, total_iters=0),
    "onecycle": lambda optimiser, params, updates: OneCycleLR(
        optimiser, max_lr=params.lr, total_steps=updates, cycle_momentum=False
    ),
}


def make_optimiser(weights: Iterable[nn.Parameter], params: TrainParams) -> optim.Optimizer:
    """The optimiser `train.optimizer` over `weights`."""
    return OPTIMISERS[params.optimizer](weights, params)


def make_schedule(optimiser: optim.Optimizer, params: TrainParams, updates: int) -> LRScheduler:
    """The schedule `train.schedule`, to be stepped after each of `updates` updates."""
    return SCHEDULES[params.schedule](optimiser, params, updates)
