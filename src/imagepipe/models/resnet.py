"""[torch] A small residual network for small images."""

import torch
from torch import Tensor, nn

from imagepipe.models.sizes import check_least_size

# Pixels, by stem: the sides are halved twice, after a pooling stem three times, and the 3×3 convolutions should still
# see neighbours.
SMALLEST = {"full": 8, "pool": 16}


class ResnetSmall(nn.Module):
    """Three stages of `blocks` residual blocks each, with `width`, 2·`width` and 4·`width` channels.

    The network for CIFAR-10 of He et al. (Deep Residual Learning, arXiv:1512.03385, section 4.2, where `width` is 16
    and `blocks` 3 to 18): a 3×3 stem without pooling, the sides halved between stages, global average pooling and one
    linear layer, here after dropout. With `stem` `pool` the stem takes the maximum of 2×2 pixels, which saves two
    thirds of the time. Runs in the channels-last memory format.
    """

    def __init__(
        self,
        channels: int,
        height: int,
        width_pixels: int,
        classes: int,
        width: int,
        stem: str,
        blocks: int,
        dropout: float,
    ) -> None:
        super().__init__()
        check_least_size("resnet_small", SMALLEST[stem], height, width_pixels)
        pooling = [nn.MaxPool2d(2)] if stem == "pool" else []
        self.stem = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1, bias=False),
            *pooling,
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        )
        self.stages = nn.Sequential(
            make_stage(width, width, blocks, stride=1),
            make_stage(width, 2 * width, blocks, stride=2),
            make_stage(2 * width, 4 * width, blocks, stride=2),
        )
        self.head = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(4 * width, classes)
        )
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.stages(self.stem(images.contiguous(memory_format=torch.channels_last))))


class Block(nn.Module):
    """Two 3×3 convolutions with batch norm, added to the input.

    Where size or channels change, the input goes through a 1×1 convolution with batch norm (option B of the paper).
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
        )
        self.shortcut = nn.Sequential()
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride=stride, bias=False), nn.BatchNorm2d(channels_out)
            )

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.relu(self.convolutions(images) + self.shortcut(images), inplace=True)


def make_stage(channels_in: int, channels_out: int, blocks: int, stride: int) -> nn.Sequential:
    """`blocks` residual blocks, of which the first strides and changes the channels."""
    first = Block(channels_in, channels_out, stride)
    return nn.Sequential(first, *(Block(channels_out, channels_out, 1) for _ in range(blocks - 1)))
