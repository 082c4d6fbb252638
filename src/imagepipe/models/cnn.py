"""[torch] A small convolutional network with batch norm, the default model."""

import torch
from torch import Tensor, nn

from imagepipe.models.sizes import check_least_size

SMALLEST = 8  # pixels: the sides are halved three times


class Cnn(nn.Module):
    """Three blocks of convolution, halving, batch norm and ReLU, with `base`, 2·`base` and 4·`base` channels.

    A linear layer, after dropout, reads all that is left. Normalising after the 2×2 max pooling instead of before it
    costs a quarter as much and gives the same network, up to the sign of batch norm's scale. With `stem` `stride` the
    first block is a 5×5 convolution of stride 2 without pooling, which saves about a third of the time on 28×28 images.
    Runs in the channels-last memory format.

    Measured on MNIST (57,000 train images, 2 epochs, batch 256, one-cycle to 0.02, smoothing 0.05, `stem` `stride`,
    `base` 16, 29k weights): 99.35, 99.34 and 99.39 % on test with three seeds, 4 to 5 s an epoch on two cores.
    """

    def __init__(
        self, channels: int, height: int, width: int, classes: int, base: int, stem: str, dropout: float
    ) -> None:
        super().__init__()
        check_least_size("cnn", SMALLEST, height, width)
        if stem == "stride":
            first = [nn.Conv2d(channels, base, 5, stride=2, padding=2, bias=False)]
            height, width = -(-height // 2), -(-width // 2)
        else:
            first = [nn.Conv2d(channels, base, 3, padding=1, bias=False), nn.MaxPool2d(2)]
            height, width = height // 2, width // 2
        self.features = nn.Sequential(
            *first,
            nn.BatchNorm2d(base),
            nn.ReLU(inplace=True),
            *make_block(base, 2 * base),
            *make_block(2 * base, 4 * base),
        )
        self.head = nn.Sequential(
            nn.Flatten(), nn.Dropout(dropout), nn.Linear(4 * base * (height // 4) * (width // 4), classes)
        )
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images.contiguous(memory_format=torch.channels_last)))


def make_block(channels_in: int, channels_out: int) -> list[nn.Module]:
    """3×3 convolution without bias (batch norm has one), 2×2 max pooling, batch norm, ReLU."""
    return [
        nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False),
        nn.MaxPool2d(2),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
    ]
