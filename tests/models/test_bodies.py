"""The table of models, and the networks in it."""

import re
import subprocess
import sys

import pytest
import torch

from imagepipe.core.errors import InputError
from imagepipe.models.bodies import MODELS, build_body
from tests.models.made import KINDS, POOL, RESNET, STRIDE, Choices, build, count_weights, kinds, make_images


def test_every_model_in_the_table_is_tried_here() -> None:
    assert {name for name, _ in KINDS} == set(MODELS)


@kinds
@pytest.mark.parametrize("channels", [1, 3])
def test_logits_have_one_row_an_image_and_one_column_a_class(name: str, choices: Choices, channels: int) -> None:
    body = build_body(name, channels, 9, 14, 5, choices)
    logits = body(make_images(4, channels, 9, 14))
    assert logits.shape == (4, 5)
    assert logits.dtype == torch.float32


@kinds
def test_logits_are_no_probabilities(name: str, choices: Choices) -> None:
    """Probabilities are never negative and sum to 1; their logarithms are never positive."""
    logits = build(name, choices)(make_images(50, 1, 8, 8))
    assert logits.min() < 0 < logits.max()
    assert (logits.sum(dim=1) - 1).abs().max() > 0.1


@pytest.mark.parametrize(
    ("name", "choices", "channels", "side", "classes", "expected"),
    [
        ("softmax", {}, 1, 8, 10, 64 * 10 + 10),
        ("softmax", {}, 3, 8, 2, 192 * 2 + 2),
        ("mlp", {"hidden": 100}, 1, 28, 10, 784 * 100 + 100 + 100 * 10 + 10),
        ("simplenet", {}, 3, 64, 2, 12288 * 84 + 84 + 84 * 50 + 50 + 50 * 2 + 2),
        # Three convolutions, weight and bias of three batch norms, and the linear layer over what is left of the image:
        # 28 → 14 → 7 → 3, 32 → 16 → 8 → 4, and 9 → 4 (or, with stride, 5) → 2 → 1.
        ("cnn", POOL, 1, 28, 10, 9 * (16 + 16 * 32 + 32 * 64) + 2 * (16 + 32 + 64) + 64 * 3 * 3 * 10 + 10),
        ("cnn", STRIDE, 1, 28, 10, 25 * 16 + 9 * (16 * 32 + 32 * 64) + 2 * (16 + 32 + 64) + 64 * 3 * 3 * 10 + 10),
        ("cnn", POOL, 3, 32, 2, 9 * (3 * 16 + 16 * 32 + 32 * 64) + 2 * (16 + 32 + 64) + 64 * 4 * 4 * 2 + 2),
        # Stem and first stage of 4 channels; then 8 and 16, each with a 1×1 shortcut; and the batch norms.
        (
            "resnet_small",
            RESNET,
            1,
            8,
            10,
            9 * 4
            + 4 * 9 * 4 * 4
            + (9 * 4 * 8 + 3 * 9 * 8 * 8 + 4 * 8)
            + (9 * 8 * 16 + 3 * 9 * 16 * 16 + 8 * 16)
            + 2 * (5 * 4 + 5 * 8 + 5 * 16)
            + 16 * 10
            + 10,
        ),
        ("cnn", STRIDE, 1, 9, 2, 25 * 16 + 9 * (16 * 32 + 32 * 64) + 2 * (16 + 32 + 64) + 64 * 2 + 2),
    ],
)
def test_weights_counted_by_hand(
    name: str, choices: Choices, channels: int, side: int, classes: int, expected: int
) -> None:
    assert count_weights(build(name, choices, channels, side, classes)) == expected


@pytest.mark.parametrize(
    ("unknown", "nearest"),
    [
        ("simplnet", "did you mean `simplenet`? "),
        ("resnet_smal", "did you mean `resnet_small`? "),
        ("zzz", ""),
        ("zzz:resnet18", ""),
    ],
)
def test_an_unknown_model_gets_the_names_and_the_nearest(unknown: str, nearest: str) -> None:
    message = (
        f"train.model: unknown model `{unknown}`; {nearest}Known: cnn, mlp, resnet_small, simplenet, softmax, "
        "timm:<name>, torchvision:<name>."
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        build_body(unknown, 1, 8, 8, 10, {})


def test_a_model_of_torchvisions_without_its_family_is_recognised() -> None:
    with pytest.raises(
        InputError, match=r"unknown model `resnet18`; did you mean `torchvision:resnet18`\? Known: cnn, "
    ):
        build_body("resnet18", 1, 32, 32, 10, {})


def test_a_family_is_asked_for_what_stands_behind_the_colon() -> None:
    body = build_body("torchvision:mnasnet0_5", 1, 16, 20, 7, {"dropout": 0.0})
    assert body(make_images(2, 1, 16, 20)).shape == (2, 7)


def test_torchvision_is_imported_only_where_it_is_asked_for() -> None:
    code = (
        "import sys; from imagepipe.models.bodies import build_body; build_body('softmax', 1, 8, 8, 2, {}); "
        "assert 'torchvision' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
