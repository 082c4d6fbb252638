"""[torch] Classifier: a network together with all that decides its predictions, from uint8 pixels to class names.

Normalising is part of the model, so that training, evaluation and prediction cannot disagree about it. The model file
is safetensors with one metadata key, `imagepipe`, of sorted JSON; nothing in it is ever unpickled.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self

import safetensors
import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor, nn

from imagepipe.core.errors import InputError
from imagepipe.core.files import write_bytes
from imagepipe.core.formats import check_format
from imagepipe.core.manifest import ImageInfo
from imagepipe.models.bodies import build_body

METADATA_KEY = "imagepipe"
FORMAT = 2  # of the description; 1 had no `conversion`

# Per-channel mean and deviation of ImageNet in [0, 1], as torchvision's pretrained weights expect them
# (https://docs.pytorch.org/vision/stable/models.html).
IMAGENET_MEAN = [0.485, 0.456, 0.406]
IMAGENET_STD = [0.229, 0.224, 0.225]


class ModelInfo(BaseModel):
    """What stands in the model file beside the weights.

    `mean` and `std` are per channel, in [0, 1]; with `normalize: none` they are not used. `manifests` maps `train` and
    `val` to the SHA-256 of the manifest that the model was made from. `conversion` is `split.image` as the split stage
    had it: what was done to an image before it had the mode and size of `image`, and has to be done to any other.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    format: Literal[2]
    model: str
    choices: dict[str, int | float | str]
    normalize: Literal["none", "unit", "dataset", "imagenet"]
    classes: list[str]
    image: ImageInfo
    mean: list[float]
    std: list[float]
    manifests: dict[str, str]
    conversion: dict[str, int | str]


class Classifier(nn.Module):
    """uint8 images (B, C, H, W) in, logits float32 (B, classes) out.

    Modules in `frozen` stay in evaluation mode while the rest trains.
    """

    def __init__(self, info: ModelInfo) -> None:
        super().__init__()
        image = info.image
        mean, std = choose_normalisation(info)
        self.info = info
        self.frozen: Sequence[nn.Module] = ()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1) * 255)
        self.body = build_body(info.model, image.channels, image.height, image.width, len(info.classes), info.choices)

    def forward(self, images: Tensor) -> Tensor:
        return self.body(self.normalise(images))

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for module in self.frozen:
            module.eval()
        return self

    def normalise(self, images: Tensor) -> Tensor:
        """float32 images as the body wants them; raises InputError for another shape or type than the model's."""
        expected = (self.info.image.channels, self.info.image.height, self.info.image.width)
        if tuple(images.shape[1:]) != expected:
            raise InputError(f"images of shape {tuple(images.shape[1:])} (C, H, W); the model expects {expected}.")
        if self.info.normalize == "none":
            return images.float()
        if images.dtype != torch.uint8:
            raise InputError(
                f"images of type {images.dtype} where the model normalises uint8 itself (train.normalize: "
                f"{self.info.normalize}); drop the transform that makes floats, or set train.normalize to `none`."
            )
        mean, std = (lay_out(self.get_buffer(name), images) for name in ("mean", "std"))
        # In place: for large images, memory that is new each time costs more than the arithmetic.
        return images.float().sub_(mean).div_(std)


def lay_out(values: Tensor, images: Tensor) -> Tensor:
    """(1, C, 1, 1), or where the channels of `images` lie innermost in memory (1, C, 1, W) in the same order.

    Torch's arithmetic takes what lies innermost in one run, and a run of three values is four times as slow.
    """
    if images.is_contiguous():
        return values
    return values.expand(-1, -1, 1, images.shape[3]).contiguous(memory_format=torch.channels_last)


def choose_normalisation(info: ModelInfo) -> tuple[list[float], list[float]]:
    """Mean and deviation per channel in [0, 1] for `info.normalize`; InputError for ImageNet's three on grey images."""
    channels = info.image.channels
    if info.normalize == "dataset":
        # A channel that never varies is only centred.
        return info.mean, [value or 1.0 for value in info.std]
    if info.normalize == "imagenet":
        if channels != len(IMAGENET_MEAN):
            raise InputError(
                f"train.normalize: `imagenet` has 3 channels, but the images are {info.image.mode} "
                f"({channels} channel); use `dataset` or `unit`."
            )
        return IMAGENET_MEAN, IMAGENET_STD
    return [0.0] * channels, [1.0] * channels


def build_classifier(info: ModelInfo, seed: int) -> Classifier:
    """A classifier with fresh weights that depend on `seed` and the architecture alone; no global state changes."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return Classifier(info)


def save_classifier(model: Classifier, path: Path) -> None:
    """Write weights and description to one safetensors file, at once."""
    metadata = {METADATA_KEY: dump_info(model.info)}
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    write_bytes(path, safetensors.torch.save(tensors, metadata))


def dump_info(info: ModelInfo) -> str:
    """Sorted JSON in one line."""
    return json.dumps(info.model_dump(), sort_keys=True, ensure_ascii=False, allow_nan=False)


def load_classifier(path: Path) -> Classifier:
    """The model in a file that `save_classifier` wrote, in evaluation mode.

    Raises InputError where the file is absent, damaged, not ours, or its weights do not fit its architecture.
    """
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:  # pyright: ignore[reportUnknownMemberType]
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such model; run the train stage first.") from error
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(f"{path}: not a readable safetensors file ({error}); train it again.") from error
    if METADATA_KEY not in metadata:
        raise InputError(f"{path}: holds no `{METADATA_KEY}` description; it was not written by imagepipe.")
    check_format(path, metadata[METADATA_KEY], FORMAT, "train it again")
    try:
        info = ModelInfo.model_validate_json(metadata[METADATA_KEY])
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"{path}: its description cannot be read: {where}: {first['msg']}; train it again.") from error
    try:
        model = build_classifier(info, 0)
        model.load_state_dict(tensors)
    except (TypeError, ValueError, LookupError, ArithmeticError) as error:  # a choice too many, or of no such value
        raise InputError(f"{path}: its choices {info.choices} do not fit `{info.model}` ({error}).") from error
    except RuntimeError as error:
        raise InputError(f"{path}: its weights do not fit `{info.model}`: {error}") from error
    return model.eval()
