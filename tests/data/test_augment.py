import pickle
import re
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as reference

from imagepipe.core.errors import InputError
from imagepipe.core.seeds import derive_seed, draw_uniform
from imagepipe.data.augment import (
    Augmentation,
    adjust_brightness,
    adjust_contrast,
    choose_rectangles,
    erase,
    make_augmentation,
    make_transform,
    turn,
)
from tests.data.test_params import make_augment_params

KINDS: dict[str, dict[str, Any]] = {
    "crop": {"crop_padding": 3},
    "flips": {"horizontal_flip": 0.5, "vertical_flip": 0.5},
    "turn": {"degrees": 20.0, "translate": 0.1, "scale_min": 0.8, "scale_max": 1.25},
    "brightness": {"brightness": 0.4},
    "contrast": {"contrast": 0.4},
    "erasing": {"erasing": 0.6},
}
ALL: dict[str, Any] = {key: value for changes in KINDS.values() for key, value in changes.items()}


def make_images(count: int, channels: int = 3, height: int = 16, width: int = 13) -> Tensor:
    """Random pixels, uint8 (B, C, H, W)."""
    generator = np.random.default_rng(0)
    return torch.from_numpy(generator.integers(0, 256, (count, channels, height, width), np.uint8))


def make(seed: int = 1, **changes: Any) -> Augmentation:
    """An augmentation that does what `changes` say and nothing else."""
    augmentation = make_augmentation(make_augment_params(**changes), seed)
    assert augmentation is not None
    return augmentation


def apply(images: Tensor, **changes: Any) -> Tensor:
    """The images, at the positions 0 … of the first epoch, changed."""
    return make(**changes)(images, 0, np.arange(len(images)))


def draw(kind: str, positions: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """What is drawn for `kind` in the first epoch of seed 1."""
    return draw_uniform(positions, derive_seed(1, f"augment.{kind}"), count)


def count_differing(left: Tensor, right: Tensor) -> int:
    """How many images differ."""
    return int((left != right).flatten(1).any(dim=1).sum())


def test_neutral_values_make_no_augmentation() -> None:
    assert make_augmentation(make_augment_params(), 1) is None
    assert make_augmentation(make_augment_params(interpolation="nearest", transform="RandAugment"), 1) is None


def test_a_crop_is_the_window_that_was_drawn() -> None:
    images = make_images(8, height=6, width=5)
    starts = np.floor(draw("crop_padding", np.arange(8), 2) * 5).astype(int)
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (2, 2), (2, 2)))
    expected = [image[:, top : top + 6, left : left + 5] for image, (top, left) in zip(padded, starts, strict=True)]
    assert np.array_equal(apply(images, crop_padding=2).numpy(), expected)
    assert len({tuple(start) for start in starts.tolist()}) > 4


def test_every_window_is_as_likely() -> None:
    """One white pixel, 8,100 times, in 81 places: each is met 100 times, with deviation 10. The bound is five."""
    images = torch.zeros(8100, 1, 9, 9, dtype=torch.uint8)
    images[:, :, 4, 4] = 1
    met = apply(images, crop_padding=4).sum(dim=(0, 1), dtype=torch.int64)
    assert met.sum() == 8100
    assert (met - 100).abs().max() < 50


@pytest.mark.parametrize(("key", "axis"), [("horizontal_flip", 3), ("vertical_flip", 2)])
def test_a_flip_mirrors_the_images_that_were_drawn(key: str, axis: int) -> None:
    images = make_images(400)
    assert torch.equal(apply(images, **{key: 1.0}), images.flip(axis))
    drawn = torch.from_numpy(draw(key, np.arange(400), 1)[:, 0] < 0.25)
    assert torch.equal(apply(images, **{key: 0.25}), torch.where(drawn[:, None, None, None], images.flip(axis), images))
    assert 57 < int(drawn.sum()) < 143  # 100 of 400, with deviation 8.7; the bounds are five


def test_the_two_flips_are_independent() -> None:
    """Of 400 images a quarter is turned by both, with deviation 8.7."""
    images = make_images(400)
    both = apply(images, horizontal_flip=0.5, vertical_flip=0.5)
    assert 57 < 400 - count_differing(both, images.flip(2, 3)) < 143


def test_a_shift_moves_whole_pixels_as_torchvision_does() -> None:
    images = make_images(30, height=10, width=20)
    drawn = np.rint((2 * draw("translate", np.arange(30), 2) - 1) * [0.2 * 10, 0.2 * 20]).astype(int).tolist()
    expected = [
        reference.affine(image, 0, [right, down], 1, [0, 0]) for image, (down, right) in zip(images, drawn, strict=True)
    ]
    assert torch.equal(apply(images, translate=0.2), torch.stack(expected))
    assert {down for down, _ in drawn} == {-2, -1, 0, 1, 2}
    assert {-4, -2, 0, 3} <= {right for _, right in drawn} <= set(range(-4, 5))


def test_the_largest_shift_can_move_an_image_out_of_sight() -> None:
    assert apply(make_images(500, height=4, width=4), translate=1.0).amax(dim=(1, 2, 3)).min() == 0


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_quarter_turns_are_exact_and_clockwise(interpolation: str, turns: int) -> None:
    images = make_images(3, height=9, width=9)
    turned = turn(images, np.full(3, 90.0 * turns), np.ones(3), np.zeros((3, 2), np.int64), interpolation)
    assert torch.equal(turned, images.rot90(-turns, (2, 3)))


def test_a_zoom_by_three_repeats_pixels() -> None:
    images = make_images(2, height=9, width=9)
    zoomed = turn(images, np.zeros(2), np.full(2, 3.0), np.zeros((2, 2), np.int64), "nearest")
    assert torch.equal(zoomed, images[:, :, 3:6, 3:6].repeat_interleave(3, 2).repeat_interleave(3, 3))


@pytest.mark.parametrize(("interpolation", "tolerance"), [("nearest", 0), ("bilinear", 1)])
@pytest.mark.parametrize("channels", [1, 3])
def test_turning_equals_torchvisions_affine(interpolation: str, tolerance: int, channels: int) -> None:
    """To the grey level with nearest, to within one with bilinear: its grid comes from a matrix product."""
    images = make_images(20, channels, height=17, width=24)
    generator = np.random.default_rng(1)
    angles, scales = generator.uniform(-180, 180, 20), generator.uniform(0.5, 2, 20)
    shifts = generator.integers(-5, 6, (20, 2))
    expected = [
        reference.affine(
            image,
            float(angle),
            [int(right), int(down)],
            float(scale),
            [0, 0],
            reference.InterpolationMode(interpolation),
        )
        for image, angle, scale, (down, right) in zip(images, angles, scales, shifts, strict=True)
    ]
    found = turn(images, angles, scales, shifts, interpolation)
    assert (found.int() - torch.stack(expected).int()).abs().max() <= tolerance


def test_what_is_drawn_for_a_turn() -> None:
    images = make_images(6)
    positions = np.arange(6)
    angles = 60 * draw("degrees", positions, 1)[:, 0] - 30
    scales = 0.5 + 1.5 * draw("scale", positions, 1)[:, 0]
    shifts = np.rint((2 * draw("translate", positions, 2) - 1) * [0.25 * 16, 0.25 * 13]).astype(np.int64)
    for interpolation in ("nearest", "bilinear"):
        changes = {"degrees": 30.0, "scale_min": 0.5, "scale_max": 2.0, "translate": 0.25}
        found = apply(images, interpolation=interpolation, **changes)
        assert torch.equal(found, turn(images, angles, scales, shifts, interpolation))


@pytest.mark.parametrize("channels", [1, 3])
def test_brightness_equals_torchvisions(channels: int) -> None:
    images = make_images(20, channels)
    factors = np.linspace(0, 3, 20)
    expected = [reference.adjust_brightness(image, factor) for image, factor in zip(images, factors, strict=True)]
    assert torch.equal(adjust_brightness(images, factors), torch.stack(expected))


@pytest.mark.parametrize("channels", [1, 3])
def test_contrast_equals_torchvisions_to_one_grey_level(channels: int) -> None:
    images = make_images(20, channels)
    factors = np.linspace(0, 3, 20)
    expected = [reference.adjust_contrast(image, factor) for image, factor in zip(images, factors, strict=True)]
    assert (adjust_contrast(images, factors).int() - torch.stack(expected).int()).abs().max() <= 1


def test_contrast_by_hand() -> None:
    """Grey with the mean 100; RGB (100, 0, 0) and (0, 200, 0) with greys 29 and 117, whose mean is 73."""
    grey = torch.tensor([[[[40, 160]]]], dtype=torch.uint8)
    assert adjust_contrast(grey, np.array([0.5])).flatten().tolist() == [70, 130]
    assert adjust_contrast(grey, np.array([2.0])).flatten().tolist() == [0, 220]
    colour = torch.tensor([[[[100, 0]], [[0, 200]], [[0, 0]]]], dtype=torch.uint8)
    assert adjust_contrast(colour, np.array([0.0])).flatten().tolist() == [73] * 6


@pytest.mark.parametrize(("strength", "low", "high"), [(0.25, 75, 125), (1.5, 0, 250)])
def test_brightness_factors_fill_their_range(strength: float, low: int, high: int) -> None:
    """Grey 100 becomes the factor in percent: evenly from `low` to `high`, whose mean is met to five deviations."""
    images = torch.full((3000, 1, 1, 1), 100, dtype=torch.uint8)
    found = apply(images, brightness=strength).flatten().numpy()
    assert (found.min(), found.max()) == (low, high - 1)
    middle = (low + high - 1) / 2
    assert abs(found.mean() - middle) < 5 * (high - low) / np.sqrt(12 * 3000)


def test_contrast_factors_are_drawn_from_their_own_stream() -> None:
    images = make_images(50)
    factors = 0.5 + draw("contrast", np.arange(50), 1)[:, 0]
    assert torch.equal(apply(images, contrast=0.5), adjust_contrast(images, factors))


def find_draw(share: float, ratio: float) -> tuple[float, float]:
    """The draws that give a rectangle of this share of the image with this height over width."""
    return (share - 0.02) / 0.31, (np.log(ratio) - np.log(0.3)) / (np.log(3.3) - np.log(0.3))


def test_the_first_rectangle_that_fits_is_erased() -> None:
    """In 10×10, a third of the image at 3.25 to 1 is 10 high and does not fit; 16 % at 1 to 1 is 4×4, and 24 % at
    1.5 to 1 is 6×4. Corners are floor(draw · (10 + 1 - side))."""
    tall, square, upright = find_draw(0.33, 3.25), find_draw(0.16, 1), find_draw(0.24, 1.5)
    tries = [[square] * 10, [tall, upright] + [square] * 8, [tall] * 10, [square] * 10]
    draws = np.array(
        [
            [whether, *(area for area, _ in rectangles), *(ratio for _, ratio in rectangles), *corner]
            for whether, corner, rectangles in zip(
                [0.4, 0.0, 0.0, 0.5], [(0.5, 0.99), (0.0, 0.5), (0.5, 0.5), (0.5, 0.5)], tries, strict=True
            )
        ]
    )
    tops, lefts, heights, widths = choose_rectangles(draws, 0.5, 10, 10)
    assert list(zip(tops[:2], lefts[:2], heights[:2], widths[:2], strict=True)) == [(3, 6, 4, 4), (0, 3, 6, 4)]
    assert heights.tolist() == [4, 6, 0, 0]
    assert widths.tolist() == [4, 4, 0, 0]


def test_erasing_equals_torchvisions() -> None:
    images = make_images(5)
    tops, lefts, heights, widths = np.array(
        [[0, 0, 1, 1], [2, 3, 4, 5], [12, 0, 4, 13], [5, 5, 0, 0], [0, 0, 16, 13]]
    ).T
    expected = [
        reference.erase(image, int(top), int(left), int(height), int(width), torch.zeros(3, 1, 1, dtype=torch.uint8))
        for image, top, left, height, width in zip(images, tops, lefts, heights, widths, strict=True)
    ]
    assert torch.equal(erase(images, tops, lefts, heights, widths), torch.stack(expected))


def test_as_many_are_erased_as_is_asked_for_and_as_much() -> None:
    """2,000 white images of 32×32: a share of 0.3 is 600 with deviation 20.5, and what is erased is 2 to 33 % of an
    image (a side may be half a pixel off), 17.5 % on average with deviation 0.31 / sqrt(12 · 600) = 0.4 %."""
    shares = (
        (apply(torch.full((2000, 1, 32, 32), 255, dtype=torch.uint8), erasing=0.3) == 0).double().mean(dim=(1, 2, 3))
    )
    erased = shares[shares > 0]
    assert 497 < len(erased) < 703
    assert 0.01 < erased.min() < 0.04
    assert 0.31 < erased.max() < 0.36
    assert abs(float(erased.mean()) - 0.175) < 0.02


@pytest.mark.parametrize("channels", [1, 3])
def test_all_kinds_together_are_each_kind_after_the_other(channels: int) -> None:
    """So the order is as documented, and one kind more changes nothing of what the others draw."""
    images = make_images(40, channels)
    expected = images
    for changes in KINDS.values():
        before, expected = expected, apply(expected, **changes)
        assert count_differing(before, expected) > 10
    assert torch.equal(apply(images, **ALL), expected)


def test_shifts_that_nothing_resamples_follow_crop_and_flips() -> None:
    images = make_images(40)
    changes: list[dict[str, Any]] = [KINDS["crop"], KINDS["flips"], {"translate": 0.2}]
    expected = images
    for change in changes:
        expected = apply(expected, **change)
    assert torch.equal(apply(images, **changes[0], **changes[1], **changes[2]), expected)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [1, 7, 64])
def test_an_image_does_not_depend_on_its_batch(interpolation: str, channels: int, size: int) -> None:
    images = make_images(150, channels)
    augmentation = make(interpolation=interpolation, **ALL)
    positions = np.random.default_rng(2).permutation(1000)[:150]
    whole = augmentation(images, 3, positions)
    parts = [
        augmentation(images[start : start + size], 3, positions[start : start + size]) for start in range(0, 150, size)
    ]
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("kind", KINDS)
def test_epochs_seeds_and_positions_draw_anew(kind: str) -> None:
    images = make_images(1).expand(60, -1, -1, -1)
    augmentation, positions = make(**KINDS[kind]), np.arange(60)
    first = augmentation(images, 0, positions)
    assert torch.equal(augmentation(images, 0, positions), first)
    for other in (
        augmentation(images, 1, positions),
        make(2, **KINDS[kind])(images, 0, positions),
        augmentation(images, 0, positions + 60),
    ):
        assert count_differing(other, first) > 20


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_the_memory_format_is_kept_and_the_input_too(kind: str, channels: int) -> None:
    first = make_images(10, channels)
    last = first.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)  # as a ManifestDataset's
    kept = first.clone()
    found = [apply(images, **KINDS[kind]) for images in (first, last)]
    assert [images.stride() for images in found] == [first.stride(), last.stride()]
    assert torch.equal(*found)
    assert torch.equal(first, kept)
    assert torch.equal(last, kept)


def test_a_batch_without_images_stays_one() -> None:
    assert apply(make_images(0), **ALL).shape == (0, 3, 16, 13)


def test_floats_are_refused() -> None:
    with pytest.raises(InputError, match=r"train\.augment: changes uint8 images, found torch\.float32; leave out"):
        apply(torch.zeros(2, 1, 4, 4), erasing=1.0)


def test_a_crop_that_could_miss_the_image_is_refused() -> None:
    apply(make_images(2, height=6, width=5), crop_padding=4)
    message = r"crop_padding: 5 pixels around images of 5×6: a crop could hold nothing but border; choose at most 4\."
    with pytest.raises(InputError, match=message):
        apply(make_images(2, height=6, width=5), crop_padding=5)


def make_picture(mode: str = "RGB") -> Image.Image:
    """A random picture of 6×4 pixels."""
    pixels = make_images(1, 3 if mode == "RGB" else 1, 4, 6)[0].permute(1, 2, 0).squeeze().numpy()
    return Image.fromarray(pixels)


def transform_picture(words: str, mode: str = "RGB") -> Tensor:
    """The picture above, transformed with a seed of its own."""
    transform = make_transform(words)
    assert transform is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return transform(make_picture(mode))


@pytest.mark.parametrize("words", ["", "  "])
def test_no_words_name_no_transform(words: str) -> None:
    assert make_transform(words) is None


@pytest.mark.parametrize("words", ["RandomHorizontalFlip p=1.0", " RandomHorizontalFlip  p=1 "])
@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3)])
def test_a_transform_makes_tensors_of_pictures(words: str, mode: str, channels: int) -> None:
    found = transform_picture(words, mode)
    assert type(found) is Tensor
    assert torch.equal(found, make_images(1, channels, 4, 6)[0].flip(2))


@pytest.mark.parametrize("words", ["Identity", "ToImage", "PILToTensor", "RandomErasing p=0.0"])
def test_a_transform_may_make_the_tensor_itself(words: str) -> None:
    found = transform_picture(words)
    assert type(found) is Tensor
    assert torch.equal(found, make_images(1, 3, 4, 6)[0])


@pytest.mark.parametrize(
    "words",
    [
        "RandAugment num_ops=2 magnitude=9",
        "TrivialAugmentWide",
        "AutoAugment policy=cifar10",
        "ColorJitter brightness=0.5 hue=0.1,0.2",
        "RandomResizedCrop size=4,6 scale=0.5,1.0 antialias=true",
        "RandomAffine degrees=20 interpolation=bilinear",
        "RandomCrop size=[4,6] padding=1 padding_mode=reflect",
    ],
)
def test_values_are_read_as_what_they_look_like(words: str) -> None:
    found = transform_picture(words)
    assert (found.dtype, found.shape) == (torch.uint8, (3, 4, 6))
    assert torch.equal(found, transform_picture(words))


def test_a_transform_can_be_sent_to_a_worker() -> None:
    transform = pickle.loads(pickle.dumps(make_transform("RandomVerticalFlip p=1.0")))
    assert torch.equal(transform(make_picture()), make_images(1, 3, 4, 6)[0].flip(1))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("RandAugmnet", "torchvision.transforms.v2 has no `RandAugmnet`; did you mean `RandAugment`? Known: AugMix, "),
        ("functional", "torchvision.transforms.v2 has no `functional`; "),
        ("Transform", "torchvision.transforms.v2 has no `Transform`; "),
        ("RandAugment 2", "found '2'; expected words of the form name=value, each name once. `RandAugment` takes ("),
        ("RandomErasing p=2", "`RandomErasing` takes (p=0.5, scale=(0.02, 0.33), ratio=(0.3, 3.3), value=0.0"),
        ("RandomErasing q=1", "unexpected keyword argument 'q'. `RandomErasing` takes (p=0.5, scale="),
        ("RandomCrop", "missing 1 required positional argument: 'size'. `RandomCrop` takes (size, padding=None, "),
        ("AutoAugment policy=mnist", "'mnist' is not a valid AutoAugmentPolicy. `AutoAugment` takes (policy="),
        ("RandAugment num_ops=two", "but got two instead. `RandAugment` takes (num_ops=2, magnitude=9, num_magnitude"),
    ],
)
def test_words_that_name_no_transform_are_refused(words: str, message: str) -> None:
    with pytest.raises(InputError, match=rf"^params\.yaml: train\.augment\.transform: .*{re.escape(message)}"):
        make_transform(words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("RandomCrop size=9", "`RandomCrop size=9` fails on an image of 6×4 pixels, RGB: Required crop size"),
        ("RandAugment magnitude=99", "fails on an image of 6×4 pixels, RGB: index 99 is out of bounds"),
        ("Compose transforms=ToImage", "fails on an image of 6×4 pixels, RGB: 'str' object is not callable. Give it"),
        ("Resize size=8,8", "makes torch.uint8 (3, 8, 8) of an image; expected torch.uint8 (3, 4, 6), as it came"),
        ("Grayscale", "makes torch.uint8 (1, 4, 6) of an image; expected torch.uint8 (3, 4, 6), as it came"),
        ("FiveCrop size=2", "makes a tuple of an image; expected torch.uint8 (3, 4, 6), as it came"),
    ],
)
def test_a_transform_that_does_not_fit_is_refused_at_its_image(words: str, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        transform_picture(words)


def test_floats_that_a_transform_makes_are_refused() -> None:
    transform = make_transform("Identity")
    assert transform is not None
    transform.transform = lambda image: torch.zeros(3, 4, 6)
    with pytest.raises(InputError, match=re.escape("makes torch.float32 (3, 4, 6) of an image; expected torch.uint8")):
        transform(make_picture())


def test_torchvision_is_not_imported_without_a_transform() -> None:
    code = (
        "import sys; from imagepipe.data.augment import make_transform; make_transform('');"
        "print('torchvision' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
