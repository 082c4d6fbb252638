"""The table of models, and the networks in it."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from imagepipe.core.errors import InputError
from imagepipe.models import MODELS, build_body

Choices = Mapping[str, int | float | str]

POOL: Choices = {"base": 16, "stem": "pool", "dropout": 0.0}
STRIDE: Choices = {"base": 16, "stem": "stride", "dropout": 0.0}
KINDS: list[tuple[str, Choices]] = [
    ("softmax", {}),
    ("mlp", {"hidden": 100}),
    ("simplenet", {}),
    ("cnn", POOL),
    ("cnn", STRIDE),
]
kinds = pytest.mark.parametrize(
    ("name", "choices"), KINDS, ids=["softmax", "mlp", "simplenet", "cnn-pool", "cnn-stride"]
)


def build(name: str, choices: Choices, channels: int = 1, side: int = 8, classes: int = 10) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_body(name, channels, side, side, classes, choices)


def make_images(count: int, channels: int, height: int, width: int) -> Tensor:
    return torch.randn(count, channels, height, width, generator=torch.Generator().manual_seed(0))


def count_weights(model: nn.Module) -> int:
    return sum(weight.numel() for weight in model.parameters())


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


def test_the_hidden_layer_of_mlp_is_a_choice() -> None:
    assert count_weights(build("mlp", {"hidden": 7})) == 64 * 7 + 7 + 7 * 10 + 10


def test_softmax_is_one_linear_layer_over_all_pixels() -> None:
    body = build("softmax", {}, channels=3, side=2, classes=2)
    images = make_images(4, 3, 2, 2)
    weight, bias = body.parameters()
    assert torch.allclose(body(images), images.reshape(4, 12) @ weight.T + bias, atol=1e-6)


@pytest.mark.parametrize("choices", [POOL, STRIDE], ids=["pool", "stride"])
@pytest.mark.parametrize("height", range(8, 18))
def test_cnn_takes_every_size_from_8_on(choices: Choices, height: int) -> None:
    body = build_body("cnn", 1, height, 25 - height, 3, choices)
    assert body(make_images(2, 1, height, 25 - height)).shape == (2, 3)


def test_cnn_drops_out_while_training_only() -> None:
    body = build("cnn", {**POOL, "dropout": 0.5})
    images = make_images(4, 1, 8, 8)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        assert not torch.equal(body(images), body(images))
    body.eval()
    assert torch.equal(body(images), body(images))


@pytest.mark.parametrize(("height", "width"), [(7, 28), (28, 7), (1, 1)])
def test_images_too_small_for_cnn_are_refused(height: int, width: int) -> None:
    message = rf"train\.model: `cnn` needs at least 8×8 pixels, the images are {width}×{height}; use `mlp`"
    with pytest.raises(InputError, match=message):
        build_body("cnn", 1, height, width, 10, POOL)


def test_an_unknown_model_gets_the_names_and_the_nearest() -> None:
    message = (
        r"train\.model: unknown model `simplnet`; did you mean `simplenet`\? Known: cnn, mlp, simplenet, softmax\."
    )
    with pytest.raises(InputError, match=message):
        build_body("simplnet", 1, 8, 8, 10, {})
