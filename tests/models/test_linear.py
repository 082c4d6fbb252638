import torch

from tests.models.made import build, count_weights, make_images


def test_the_hidden_layer_of_mlp_is_a_choice() -> None:
    assert count_weights(build("mlp", {"hidden": 7})) == 64 * 7 + 7 + 7 * 10 + 10


def test_softmax_is_one_linear_layer_over_all_pixels() -> None:
    body = build("softmax", {}, channels=3, side=2, classes=2)
    images = make_images(4, 3, 2, 2)
    weight, bias = body.parameters()
    assert torch.allclose(body(images), images.reshape(4, 12) @ weight.T + bias, atol=1e-6)
