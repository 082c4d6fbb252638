"""[torch] What `train.imbalance` does about classes of unlike size, from the counts of the train split alone."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Sampler

from imagepipe.core.class_counts import weigh_balanced
from imagepipe.core.seeds import derive_seed, draw_uniform


def make_class_weights(counts: dict[str, int], classes: Sequence[str]) -> Tensor:
    """float32 (classes,): inverse frequency (`weigh_balanced`); 0 for a class without images, which no label names."""
    weights = weigh_balanced(counts)
    return torch.tensor([weights.get(name, 0.0) for name in classes])


class WeightedSampler(Sampler[int]):
    """As many positions an epoch as there are samples, drawn with replacement, every class equally often on average.

    `labels` (N,) int64. The draws depend on (seed, epoch) alone, so that all of several processes make the same.
    `torch.utils.data.WeightedRandomSampler` would draw from torch's generator, and others in another version.
    """

    def __init__(self, labels: NDArray[np.int64], seed: int) -> None:
        counts = np.bincount(labels)
        self.ends = np.cumsum(1.0 / counts[labels])
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Make the next pass that of `epoch`."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.ends)

    def __iter__(self) -> Iterator[int]:
        stream = derive_seed(self.seed, "weighted sampler", self.epoch)
        drawn = draw_uniform(np.arange(len(self)), stream, 1)[:, 0] * self.ends[-1]
        positions = np.searchsorted(self.ends, drawn, side="right").clip(max=len(self) - 1)
        return iter(positions.tolist())
