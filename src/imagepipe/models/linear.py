"""[torch] Networks of fully connected layers: softmax regression, one hidden layer, two hidden layers."""

from torch import nn


class Softmax(nn.Sequential):
    """Softmax regression: one linear layer over all pixels."""

    def __init__(self, channels: int, height: int, width: int, classes: int) -> None:
        super().__init__(nn.Flatten(), nn.Linear(channels * height * width, classes))


class Mlp(nn.Sequential):
    """One hidden layer with a sigmoid (the network of S. Raschka's data-loading tutorial, with `hidden` 100)."""

    def __init__(self, channels: int, height: int, width: int, classes: int, hidden: int) -> None:
        super().__init__(
            nn.Flatten(),
            nn.Linear(channels * height * width, hidden),
            nn.Sigmoid(),
            nn.Linear(hidden, classes),
        )


class SimpleNet(nn.Sequential):
    """Two hidden layers of 84 and 50 with ReLU; returns logits, so that no softmax comes before the loss."""

    def __init__(self, channels: int, height: int, width: int, classes: int) -> None:
        super().__init__(
            nn.Flatten(),
            nn.Linear(channels * height * width, 84),
            nn.ReLU(),
            nn.Linear(84, 50),
            nn.ReLU(),
            nn.Linear(50, classes),
        )
