"""[torch] Augmentation: a batch of train images changed on the device that it lies on, each image in its own way.

    augment = make_augmentation(params.augment, params.seed)    # None: every value is neutral
    transform = make_transform(params.augment.transform)        # None: none is named; params refuse both at once
    train = ManifestDataset(csv_path, image_dir, transform)     # val, test and what is measured go without
    make_loaders(train, val, augment=augment, …)                # calls augment(images, epoch, positions)

What an augmentation does to an image depends on (seed, epoch, position in the dataset) alone: not on the batch around
it, its size, or workers. Each kind draws from a stream of its own, so that one more changes nothing of what the others
do. A transform of torchvision's draws from torch's global generator; the loaders seed that for each image.

Names, units and ranges are torchvision's (RandomCrop, RandomHorizontalFlip, RandomVerticalFlip, RandomAffine,
ColorJitter, RandomErasing); what comes in from outside is black.
"""

import ast
import inspect
from collections.abc import Callable
from enum import Enum
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from imagepipe.core.config import read_pairs
from imagepipe.core.errors import InputError, suggest_name
from imagepipe.core.seeds import derive_seed, draw_uniform
from imagepipe.data.params import AugmentParams

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

# RandomErasing's defaults: share of the image, height over width, and how often a rectangle that fits is looked for.
ERASED_SHARE = (0.02, 0.33)
ERASED_RATIO = (0.3, 3.3)
ERASING_TRIES = 10

WHERE = "params.yaml: train.augment.transform"
REFUSALS = (AttributeError, LookupError, RuntimeError, TypeError, ValueError)  # of torchvision, for what it cannot take


def make_augmentation(params: AugmentParams, seed: int) -> "Augmentation | None":
    """None where every value is neutral."""
    return Augmentation(params, seed) if params.changes else None


class Augmentation:
    """Crop, flips, rotation with shift and zoom, brightness, contrast and erasing, of each image in its own way.

    Only what params ask for is done, in this order. Crops, flips and shifts move whole pixels; rotation and zoom
    resample once.
    """

    def __init__(self, params: AugmentParams, seed: int) -> None:
        self.params = params
        self.seed = seed

    def __call__(self, images: Tensor, epoch: int, positions: Ints) -> Tensor:
        """uint8 (B, C, H, W) to a new tensor alike, on the same device and in the same memory format.

        `positions` (B,) are the images' in the dataset, `epoch` counts from 0. Raises InputError for images that are
        not uint8, or so small that a crop could miss them.
        """
        params = self.params
        self.check_images(images)
        if not len(images):
            return images
        changed = images
        if params.crop_padding or params.horizontal_flip or params.vertical_flip:
            changed = self.crop_and_flip(changed, epoch, positions)
        if self.resamples:
            changed = self.resample(changed, epoch, positions)
        elif params.translate:
            changed = cut_windows(changed, -self.draw_shifts(changed, epoch, positions))
        if params.brightness:
            changed = adjust_brightness(changed, self.draw_factors("brightness", params.brightness, epoch, positions))
        if params.contrast:
            changed = adjust_contrast(changed, self.draw_factors("contrast", params.contrast, epoch, positions))
        if params.erasing:
            draws = self.draw("erasing", epoch, positions, 3 + 2 * ERASING_TRIES)
            changed = erase(changed, *choose_rectangles(draws, params.erasing, *images.shape[2:]))
        return changed if changed.stride() == images.stride() else torch.empty_like(images).copy_(changed)

    @property
    def resamples(self) -> bool:
        """Whether pixels fall between pixels."""
        return self.params.degrees > 0 or (self.params.scale_min, self.params.scale_max) != (1, 1)

    def draw(self, kind: str, epoch: int, positions: Ints, count: int) -> Floats:
        """`count` numbers in [0, 1) for each position, float64 (B, count), from the stream of `kind`."""
        return draw_uniform(positions, derive_seed(self.seed, f"augment.{kind}", epoch), count)

    def draw_factors(self, kind: str, strength: float, epoch: int, positions: Ints) -> Floats:
        """Factors from 1 - strength (0 at least) to 1 + strength, float64 (B,)."""
        return spread(self.draw(kind, epoch, positions, 1)[:, 0], max(0.0, 1 - strength), 1 + strength)

    def draw_shifts(self, images: Tensor, epoch: int, positions: Ints) -> Ints:
        """Whole pixels down and to the right, int64 (B, 2)."""
        most = self.params.translate * np.array(images.shape[2:])
        return np.rint(spread(self.draw("translate", epoch, positions, 2), -most, most)).astype(np.int64)

    def check_images(self, images: Tensor) -> None:
        """Raise InputError for images that are not uint8, or so small that a crop could miss them."""
        if images.dtype != torch.uint8:
            raise InputError(
                f"train.augment: changes uint8 images, found {images.dtype}; leave out the transform that made floats, "
                "or set every key of train.augment to what changes nothing."
            )
        height, width = images.shape[2:]
        if self.params.crop_padding >= min(height, width):
            raise InputError(
                f"train.augment.crop_padding: {self.params.crop_padding} pixels around images of {width}×{height}: a "
                f"crop could hold nothing but border; choose at most {min(height, width) - 1}."
            )

    def crop_and_flip(self, images: Tensor, epoch: int, positions: Ints) -> Tensor:
        """A window of each image with its border, mirrored or not."""
        params = self.params
        starts = np.zeros((len(positions), 2), np.int64)
        if params.crop_padding:
            places = self.draw("crop_padding", epoch, positions, 2) * (2 * params.crop_padding + 1)
            starts = places.astype(np.int64) - params.crop_padding
        flipped = [
            self.draw(kind, epoch, positions, 1)[:, 0] < chance
            for kind, chance in (("vertical_flip", params.vertical_flip), ("horizontal_flip", params.horizontal_flip))
        ]
        return cut_windows(images, starts, *flipped)

    def resample(self, images: Tensor, epoch: int, positions: Ints) -> Tensor:
        """Rotation, zoom and shift in one."""
        params = self.params
        angles = spread(self.draw("degrees", epoch, positions, 1)[:, 0], -params.degrees, params.degrees)
        scales = spread(self.draw("scale", epoch, positions, 1)[:, 0], params.scale_min, params.scale_max)
        return turn(images, angles, scales, self.draw_shifts(images, epoch, positions), params.interpolation)


def spread(draws: Floats, low: float | Floats, high: float | Floats) -> Floats:
    """Draws from [0, 1), spread evenly over [low, high)."""
    return low + (high - low) * draws


def to_planes(images: Tensor) -> Tensor:
    """A view of (B, C, H, W) as it lies in memory: (B, 1, H, W, C) where channels are last, else (B, C, H, W, 1)."""
    return images.permute(0, 2, 3, 1)[:, None] if images.stride(1) == 1 else images[..., None]


def from_planes(planes: Tensor, images: Tensor) -> Tensor:
    """Undo `to_planes`, by which `planes` came from `images`."""
    return planes[:, 0].permute(0, 3, 1, 2) if images.stride(1) == 1 else planes[..., 0]


def cut_windows(
    images: Tensor, starts: Ints, upside_down: Flags | None = None, mirrored: Flags | None = None
) -> Tensor:
    """From each image a window of its size that begins at `starts` (B, 2: row, column), then flipped; outside is black.

    Whole rows are copied, each from where it begins in the framed images (among them their mirror images, if any): many
    times faster than a gather of pixels.
    """
    count, _, height, width = images.shape
    margin = int(np.abs(starts[:, 1]).max(initial=0))
    framed = functional.pad(images, (margin, margin, 0, 1))  # black to the left, to the right, and one row below
    sources, columns = np.arange(count), starts[:, 1] + margin
    if mirrored is not None and mirrored.any():
        framed = torch.cat((framed, framed.flip(3)))
        sources, columns = sources + count * mirrored, np.where(mirrored, 2 * margin - columns, columns)
    rows = np.tile(np.arange(height), (count, 1))
    if upside_down is not None:
        rows[upside_down] = rows[upside_down, ::-1]
    rows += starts[:, :1]
    rows[(rows < 0) | (rows > height)] = height

    _, planes, _, framed_width, depth = to_planes(framed).shape
    lines = (sources[:, None, None] * planes + np.arange(planes)[:, None]) * (height + 1) + rows[:, None]
    begins = to_device((lines * framed_width + columns[:, None, None]).reshape(-1), images)
    windows = to_planes(framed).reshape(-1).unfold(0, width * depth, depth)
    return from_planes(windows.index_select(0, begins).view(count, planes, height, width, depth), framed)


def turn(images: Tensor, angles: Floats, scales: Floats, shifts: Ints, interpolation: str) -> Tensor:
    """Images turned clockwise by `angles` degrees and zoomed about their centres, then shifted (down, right).

    As torchvision's functional `affine`; elementwise up to the sampling, so that no image's last bits depend on the
    batch.
    """
    height, width = images.shape[2:]
    radians = np.radians(angles)
    cosines, sines, downs, rights = (
        to_device(values.astype(np.float32), images)[:, None, None]
        for values in (np.cos(radians) / scales, np.sin(radians) / scales, shifts[:, 0], shifts[:, 1])
    )
    y = torch.arange(height, device=images.device)[:, None] - (height - 1) / 2 - downs
    x = torch.arange(width, device=images.device) - (width - 1) / 2 - rights
    grid = torch.stack(((cosines * x + sines * y) * (2 / width), (cosines * y - sines * x) * (2 / height)), dim=-1)
    floats = images.to(torch.float32, memory_format=torch.contiguous_format)
    return functional.grid_sample(floats, grid, interpolation, "zeros", align_corners=False).round_().to(torch.uint8)


def adjust_brightness(images: Tensor, factors: Floats) -> Tensor:
    """Pixels times their image's factor, cut off at 255 and rounded down."""
    return images.to(torch.float32).mul_(per_image(factors, images)).clamp_(0, 255).to(torch.uint8)


def adjust_contrast(images: Tensor, factors: Floats) -> Tensor:
    """Distances from the image's mean grey times its factor, cut off at 0 and 255 and rounded down.

    Grey of RGB is 0.2989 R + 0.587 G + 0.114 B, rounded down, as torchvision's; summed in whole numbers, which is exact
    in any order.
    """
    pixels = images.to(torch.float32)
    greys = pixels
    if images.shape[1] == 3:
        red, green, blue = pixels.unbind(1)
        greys = (red * 2989).add_(green * 5870).add_(blue * 1140).div_(10_000).floor_()[:, None]
    means = greys.sum(dim=(1, 2, 3), keepdim=True, dtype=torch.float64) / greys[0].numel()
    shares = means.to(torch.float32) * per_image(1 - factors, images)
    return pixels.mul_(per_image(factors, images)).add_(shares).clamp_(0, 255).to(torch.uint8)


def choose_rectangles(draws: Floats, chance: float, height: int, width: int) -> tuple[Ints, Ints, Ints, Ints]:
    """Top, left, height and width of what is erased from each image, int64 (B,); sides of 0 where nothing is.

    `draws` (B, 3 + 2 · tries) are in [0, 1). The first rectangle with sides shorter than the image's is taken.
    """
    whether, areas, ratios, place = np.split(draws, [1, 1 + ERASING_TRIES, 1 + 2 * ERASING_TRIES], axis=1)
    areas = height * width * spread(areas, *ERASED_SHARE)
    ratios = np.exp(spread(ratios, *np.log(ERASED_RATIO)))
    sides = np.rint(np.sqrt(np.stack((areas * ratios, areas / ratios)))).astype(np.int64)
    fits = (sides[0] < height) & (sides[1] < width)
    first = np.arange(len(draws)), fits.argmax(axis=1)
    erased = fits[first] & (whether[:, 0] < chance)
    heights, widths = (np.where(erased, side[first], 0) for side in sides)
    tops, lefts = (place * (np.array([height, width]) + 1 - np.stack((heights, widths), axis=1))).astype(np.int64).T
    return tops, lefts, heights, widths


def erase(images: Tensor, tops: Ints, lefts: Ints, heights: Ints, widths: Ints) -> Tensor:
    """Images with one black rectangle each."""
    planes = to_planes(images)
    rows, columns = (
        (places >= starts[:, None]) & (places < (starts + sides)[:, None])
        for places, starts, sides in (
            (np.arange(images.shape[2]), tops, heights),
            (np.arange(images.shape[3]).repeat(planes.shape[4]), lefts, widths),
        )
    )
    kept = ~(to_device(rows, images)[:, None, :, None] & to_device(columns, images)[:, None, None])
    return from_planes((planes.flatten(3) * kept.to(torch.uint8)).view(planes.shape), images)


def per_image(values: Floats, images: Tensor) -> Tensor:
    """One number an image as float32 (B, 1, 1, 1) on the images' device."""
    return to_device(values.astype(np.float32), images)[:, None, None, None]


def to_device(values: NDArray[Any], images: Tensor) -> Tensor:
    """An array as a tensor on the images' device."""
    return torch.from_numpy(values).to(images.device)


class ImageTransform:
    """`transform(image) -> uint8 (C, H, W)`: one of torchvision.transforms.v2, as `words` of params.yaml name it."""

    def __init__(self, words: str, transform: Callable[[Image.Image], Any]) -> None:
        self.words = words
        self.transform = transform

    def __call__(self, image: Image.Image) -> Tensor:
        """The changed image; raises InputError where the transform cannot take it, or gives another size or type."""
        channels, height, width = len(image.getbands()), image.height, image.width
        try:
            changed = self.transform(image)
        except REFUSALS as error:
            raise InputError(
                f"{WHERE}: `{self.words}` fails on an image of {width}×{height} pixels, {image.mode}: "
                f"{str(error).rstrip('.')}. Give it other arguments, or take another."
            ) from error
        if isinstance(changed, Image.Image):
            changed = torch.from_numpy(np.array(changed)).view(changed.height, changed.width, -1).permute(2, 0, 1)
        found = f"a {type(changed).__name__}"
        if isinstance(changed, Tensor):
            if changed.dtype == torch.uint8 and changed.shape == (channels, height, width):
                return changed.as_subclass(Tensor)
            found = f"{changed.dtype} {tuple(changed.shape)}"
        raise InputError(
            f"{WHERE}: `{self.words}` makes {found} of an image; expected {torch.uint8} {(channels, height, width)}, "
            "as it came: the model normalises (train.normalize), and the split stage sets the size (split.image)."
        )


def make_transform(words: str) -> ImageTransform | None:
    """The transform that `words` name (`RandAugment num_ops=2 magnitude=9`); None for ''.

    Raises InputError for a name that torchvision.transforms.v2 lacks, and for arguments that the transform refuses.
    """
    name, _, pairs = words.strip().partition(" ")
    if not name:
        return None
    from torchvision.transforms import v2  # takes seconds to import

    known: dict[str, Any] = {
        key: value
        for key, value in vars(v2).items()
        if inspect.isclass(value) and issubclass(value, v2.Transform) and value is not v2.Transform
    }
    if name not in known:
        raise InputError(f"{WHERE}: torchvision.transforms.v2 has no `{name}`; {suggest_name(name, known, shown=100)}")
    taken = inspect.signature(known[name]).parameters
    try:
        arguments = {key: read_value(text, taken.get(key)) for key, text in read_pairs(pairs).items()}
        return ImageTransform(words, known[name](**arguments))
    except REFUSALS as error:
        reason = str(error).rstrip(".")
        bare = [argument.replace(annotation=inspect.Parameter.empty) for argument in taken.values()]
        raise InputError(
            f"{WHERE}: {reason}. `{name}` takes {inspect.Signature(bare)}, as name=value words."
        ) from error


def read_value(text: str, argument: inspect.Parameter | None) -> Any:
    """true, false, a number, several with commas between, a member of the enumeration that is asked for, else text."""
    if argument is not None and inspect.isclass(argument.annotation) and issubclass(argument.annotation, Enum):
        return argument.annotation(text)
    if text in ("true", "false"):
        return text == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
