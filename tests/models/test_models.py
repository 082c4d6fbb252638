"""The table of models, and the networks in it."""

import pytest
import torch

from imagepipe.core.errors import InputError
from imagepipe.models import MODELS, build_body
from tests.models.made import KINDS, POOL, STRIDE, Choices, build, count_weights, kinds, make_images


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
        ("cnn", STRIDE, 1, 9, 2, 25 * 16 + 9 * (16 * 32 + 32 * 64) + 2 * (16 + 32 + 64) + 64 * 2 + 2),
    ],
)
def test_weights_counted_by_hand(
    name: str, choices: Choices, channels: int, side: int, classes: int, expected: int
) -> None:
    assert count_weights(build(name, choices, channels, side, classes)) == expected


def test_an_unknown_model_gets_the_names_and_the_nearest() -> None:
    message = (
        r"train\.model: unknown model `simplnet`; did you mean `simplenet`\? Known: cnn, mlp, simplenet, softmax\."
    )
    with pytest.raises(InputError, match=message):
        build_body("simplnet", 1, 8, 8, 10, {})
