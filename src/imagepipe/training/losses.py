"""[torch] Losses by name, from logits (B, classes) and labels (B,) to one number. To add one: one line in LOSSES.

With weights of the classes, each sample counts as much as its class weighs: the sum over the batch is divided by the
sum of the weights, as in torch's own cross-entropy.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from imagepipe.core.errors import find_named
from imagepipe.training.params import TrainParams

# Called with params and the weights (classes,) of the classes, or None.
LOSSES: dict[str, Callable[[TrainParams, Tensor | None], nn.Module]] = {
    "cross_entropy": lambda params, weights: nn.CrossEntropyLoss(weights, label_smoothing=params.label_smoothing),
    "nll": lambda params, weights: NegativeLogLikelihood(weights),
    "focal": lambda params, weights: FocalLoss(params.focal_gamma, weights),
    "bce": lambda params, weights: OneAgainstRest(weights),
}


class NegativeLogLikelihood(nn.NLLLoss):
    """Torch's NLLLoss on the logarithm of the softmax, which makes it the cross-entropy."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return super().forward(input.log_softmax(dim=1), target)


class FocalLoss(nn.Module):
    """Cross-entropy times (1 - p)^gamma, p being the probability of the right class: what is learnt counts less.

    Lin et al., Focal Loss for Dense Object Detection, arXiv:1708.02002, there for one class against the background; a
    gamma of 0 is the cross-entropy.
    """

    def __init__(self, gamma: float, weights: Tensor | None = None) -> None:
        super().__init__()
        self.gamma = gamma
        self.weights = weights

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        losses = functional.cross_entropy(logits, labels, reduction="none")
        wrong = 1 - torch.exp(-losses)
        # Of 0 to a power below 1 the derivative is infinite, and times a loss of 0 not a number.
        wrong = wrong.clamp_min(torch.finfo(wrong.dtype).tiny)
        return average(wrong**self.gamma * losses, labels, self.weights)


class OneAgainstRest(nn.Module):
    """Binary cross-entropy of each logit against 'is it this class', summed over the classes."""

    def __init__(self, weights: Tensor | None = None) -> None:
        super().__init__()
        self.weights = weights

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        targets = functional.one_hot(labels, logits.shape[1]).to(logits.dtype)
        losses = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(dim=1)
        return average(losses, labels, self.weights)


def average(losses: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
    """The mean of the samples' losses (B,), each weighted by its class."""
    if weights is None:
        return losses.mean()
    shares = weights[labels]
    return (losses * shares).sum() / shares.sum()


def make_loss(params: TrainParams, weights: Tensor | None = None) -> nn.Module:
    """The loss `train.loss`, or focal where `train.imbalance` asks for it."""
    return find_named(LOSSES, "train.loss", "focal" if params.imbalance == "focal" else params.loss)(params, weights)
