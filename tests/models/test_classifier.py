import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from imagepipe.core.errors import InputError
from imagepipe.core.manifest import ImageInfo
from imagepipe.models.classifier import Classifier, ModelInfo, build_classifier, load_classifier, save_classifier


def make_info(mode: str = "L", side: int = 8, **changes: Any) -> ModelInfo:
    channels = len(mode)
    values: dict[str, Any] = {
        "format": 2,
        "model": "softmax",
        "choices": {},
        "normalize": "dataset",
        "classes": ["007", "NA", "čáp"],
        "image": ImageInfo(mode=mode, width=side, height=side),
        "mean": [0.2, 0.4, 0.6][:channels],
        "std": [0.5, 0.25, 0.1][:channels],
        "manifests": {"train": "a" * 64, "val": "b" * 64, "test": "c" * 64},
        "conversion": {"fit": "pad", "height": side, "mode": mode},
    }
    return ModelInfo(**(values | changes))


CNN: dict[str, Any] = {"model": "cnn", "choices": {"base": 4, "stem": "pool", "dropout": 0.5}}


def make_images(count: int = 6, channels: int = 1, side: int = 8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, channels, side, side), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize(
    ("normalize", "expected"),
    [
        ("none", [51.0, 102.0, 255.0]),
        ("unit", [0.2, 0.4, 1.0]),
        # (x / 255 - mean) / std, with the means 0.2, 0.4, 0.6 and deviations 0.5, 0.25, 0.1 from above.
        ("dataset", [0.0, 0.0, 4.0]),
        ("imagenet", [(0.2 - 0.485) / 0.229, (0.4 - 0.456) / 0.224, (1.0 - 0.406) / 0.225]),
    ],
)
def test_pixels_are_normalised_by_hand(normalize: str, expected: list[float]) -> None:
    images = torch.tensor([51, 102, 255], dtype=torch.uint8).view(1, 3, 1, 1).expand(2, 3, 8, 8)
    found = build_classifier(make_info("RGB", normalize=normalize), 1).normalise(images)
    assert found.dtype == torch.float32
    assert found.shape == (2, 3, 8, 8)
    assert found[1, :, 7, 7].tolist() == pytest.approx(expected, abs=1e-5)


def test_grey_pixels_are_normalised_by_hand() -> None:
    found = build_classifier(make_info(), 1).normalise(torch.full((1, 1, 8, 8), 255, dtype=torch.uint8))
    assert found[0, 0, 0, 0].item() == pytest.approx((1 - 0.2) / 0.5, abs=1e-6)


def test_normalising_comes_before_the_network() -> None:
    model = build_classifier(make_info(), 1)
    images = make_images()
    assert torch.equal(model(images), model.body((images.float() - 51) / 127.5))


def test_a_channel_that_never_varies_gives_finite_numbers() -> None:
    model = build_classifier(make_info("RGB", std=[0.5, 0.0, 0.1]), 1)
    images = make_images(channels=3)
    assert torch.isfinite(model(images)).all()
    expected = images[:, 1].float() / 255 - 0.4
    assert torch.allclose(model.normalise(images)[:, 1], expected, atol=1e-6)


def test_normalising_does_not_depend_on_the_order_in_memory() -> None:
    model = build_classifier(make_info("RGB", mean=[0.1, 0.2, 0.3], std=[0.5, 0.25, 0.125]), 1)
    images = make_images(channels=3)
    found = model.normalise(images.contiguous(memory_format=torch.channels_last))
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(found, model.normalise(images))


def test_imagenets_constants_do_not_fit_grey_images() -> None:
    with pytest.raises(InputError, match=r"train\.normalize: `imagenet` has 3 channels, but the images are L \(1 chan"):
        build_classifier(make_info(normalize="imagenet"), 1)


@pytest.mark.parametrize("normalize", ["unit", "dataset", "imagenet"])
def test_floats_are_refused_where_the_model_normalises(normalize: str) -> None:
    model = build_classifier(make_info("RGB", normalize=normalize), 1)
    message = (
        rf"images of type torch\.float32 where the model normalises uint8 itself \(train\.normalize: {normalize}\); "
        r"drop the transform that makes floats, or set train\.normalize to `none`"
    )
    with pytest.raises(InputError, match=message):
        model(make_images(channels=3).float())


def test_floats_are_taken_as_they_are_where_it_does_not() -> None:
    images = make_images().float() / 7
    assert torch.equal(build_classifier(make_info(normalize="none"), 1).normalise(images), images)


@pytest.mark.parametrize("normalize", ["none", "dataset"])
@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (2, 1, 8, 9), (2, 1, 16, 4), (1, 8, 8)])
def test_images_of_another_shape_are_refused(normalize: str, shape: tuple[int, ...]) -> None:
    model = build_classifier(make_info(normalize=normalize), 1)
    with pytest.raises(InputError, match=r"images of shape \(.*\) \(C, H, W\); the model expects \(1, 8, 8\)"):
        model(torch.zeros(shape, dtype=torch.uint8))


def test_fresh_weights_depend_on_the_seed_alone() -> None:
    def flatten(seed: int) -> torch.Tensor:
        model = build_classifier(make_info(**CNN), seed)
        return torch.cat([weight.detach().flatten() for weight in model.parameters()])

    first = flatten(1)
    torch.rand(3)
    assert torch.equal(flatten(1), first)
    assert not torch.equal(flatten(2), first)


def test_building_leaves_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    build_classifier(make_info(**CNN), 1)
    assert torch.equal(torch.get_rng_state(), state)


def train_a_little(model: Classifier) -> None:
    """Move weights and batch-norm statistics away from where they start."""
    model.train()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = model(make_images()).square().mean()
    loss.backward()
    optimiser.step()


@pytest.mark.parametrize("changes", [{}, CNN], ids=["softmax", "cnn"])
def test_a_saved_model_comes_back_bit_for_bit(tmp_path: Path, changes: dict[str, Any]) -> None:
    model = build_classifier(make_info(**changes), 1)
    train_a_little(model)
    save_classifier(model, tmp_path / "model.safetensors")
    loaded = load_classifier(tmp_path / "model.safetensors")
    assert loaded.info == model.info
    assert not loaded.training
    assert torch.equal(loaded(make_images()), model.eval()(make_images()))


def test_a_model_saved_again_is_the_same_file(tmp_path: Path) -> None:
    save_classifier(build_classifier(make_info(**CNN), 1), tmp_path / "a.safetensors")
    save_classifier(load_classifier(tmp_path / "a.safetensors"), tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_the_file_has_one_metadata_key_with_sorted_json(tmp_path: Path) -> None:
    save_classifier(build_classifier(make_info(), 1), tmp_path / "model.safetensors")
    raw = (tmp_path / "model.safetensors").read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    assert list(header["__metadata__"]) == ["imagepipe"]
    text = header["__metadata__"]["imagepipe"]
    described = json.loads(text)
    assert text == json.dumps(described, sort_keys=True, ensure_ascii=False)
    assert described["classes"] == ["007", "NA", "čáp"]
    assert described["image"] == {"mode": "L", "width": 8, "height": 8}
    assert set(header) - {"__metadata__"} == {"mean", "std", "body.1.weight", "body.1.bias"}


SAVE_ONE = """
import sys
from pathlib import Path
from imagepipe.models.classifier import ModelInfo, build_classifier, save_classifier

info = ModelInfo.model_validate_json(sys.argv[1])
save_classifier(build_classifier(info, 1), Path(sys.argv[2]))
"""


@pytest.mark.slow
def test_two_processes_with_other_hash_seeds_save_the_same_bytes(tmp_path: Path) -> None:
    info = make_info(**CNN)
    save_classifier(build_classifier(info, 1), tmp_path / "here.safetensors")
    command = [sys.executable, "-c", SAVE_ONE, info.model_dump_json()]
    processes = [
        subprocess.Popen([*command, str(tmp_path / f"{seed}.safetensors")], env=os.environ | {"PYTHONHASHSEED": seed})
        for seed in ("1", "2")
    ]
    assert [process.wait() for process in processes] == [0, 0]
    files = [path.read_bytes() for path in tmp_path.iterdir()]
    assert len(files) == 3
    assert len(set(files)) == 1


def test_an_absent_model_names_the_stage_that_writes_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.safetensors: no such model; run the train stage first"):
        load_classifier(tmp_path / "gone.safetensors")


def expect_refusal(path: Path, message: str) -> None:
    with pytest.raises(InputError, match=rf"{path.name}: {message}"):
        load_classifier(path)


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_a_truncated_model_is_refused(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "model.safetensors"
    save_classifier(build_classifier(make_info(), 1), path)
    path.write_bytes(path.read_bytes()[:kept])
    expect_refusal(path, r"not a readable safetensors file .*train it again")


def test_a_folder_is_no_model(tmp_path: Path) -> None:
    expect_refusal(tmp_path, "not a readable safetensors file")


class Trap:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


def test_a_pickled_model_is_refused_and_not_unpickled(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(2), "trap": Trap(tmp_path / "sprung")}, tmp_path / "model.pt")
    expect_refusal(tmp_path / "model.pt", "not a readable safetensors file")
    assert not (tmp_path / "sprung").exists()


def write_model(path: Path, info: dict[str, Any] | ModelInfo, tensors: dict[str, torch.Tensor]) -> None:
    """A safetensors file that says `info` of itself."""
    text = info.model_dump_json() if isinstance(info, ModelInfo) else json.dumps(info)
    safetensors.torch.save_file(tensors, path, {"imagepipe": text})


def test_a_file_of_somebody_elses_is_refused(tmp_path: Path) -> None:
    safetensors.torch.save_file({"weight": torch.zeros(2)}, tmp_path / "a.safetensors", {"format": "pt"})
    expect_refusal(tmp_path / "a.safetensors", "holds no `imagepipe` description; it was not written by imagepipe")


def test_a_file_without_any_description_is_refused(tmp_path: Path) -> None:
    safetensors.torch.save_file({"weight": torch.zeros(2)}, tmp_path / "a.safetensors")
    expect_refusal(tmp_path / "a.safetensors", "holds no `imagepipe` description")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            {"format": 3, "extra": 1},
            "made by a newer imagepipe: format 3, this one reads up to 2; update imagepipe, or",
        ),
        ({"format": 1}, "made by an older imagepipe: format 1, this one reads 2; train it again."),
    ],
)
def test_a_model_of_another_version_is_named_as_such(tmp_path: Path, change: dict[str, Any], problem: str) -> None:
    write_model(tmp_path / "a.safetensors", make_info().model_dump() | change, {"weight": torch.zeros(2)})
    expect_refusal(tmp_path / "a.safetensors", problem)


@pytest.mark.parametrize("change", [{"format": "2"}, {"extra": 1}, {"classes": "cat"}])
def test_a_description_that_cannot_be_read_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    write_model(tmp_path / "a.safetensors", make_info().model_dump() | change, {"weight": torch.zeros(2)})
    expect_refusal(tmp_path / "a.safetensors", "its description cannot be read: ")


@pytest.mark.parametrize(
    "change",
    [
        {"image": {"mode": "RGBA", "width": 8, "height": 8}},
        {"choices": {"hidden": 3}},
        {"model": "mlp"},
        {"model": "resnet"},
        {"mean": [0.1, 0.2, 0.3]},
        {"model": "cnn", "choices": {"base": 4, "stem": "pool", "dropout": 2}},
        {"model": "resnet_small", "choices": {"width": 4, "stem": "deep", "blocks": 1, "dropout": 0}},
        {"model": "mlp", "choices": {"hidden": 2**70}},
    ],
    ids=["mode", "a choice too many", "a choice too few", "model", "means", "share", "word", "size"],
)
def test_a_description_of_no_model_that_there_is_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    tensors = dict(build_classifier(make_info(), 1).state_dict())
    write_model(tmp_path / "a.safetensors", make_info().model_dump() | change, tensors)
    with pytest.raises(InputError):
        load_classifier(tmp_path / "a.safetensors")


@pytest.mark.parametrize("damage", ["missing", "shape", "extra"])
def test_weights_that_do_not_fit_are_refused(tmp_path: Path, damage: str) -> None:
    tensors = dict(build_classifier(make_info(), 1).state_dict())
    if damage == "missing":
        del tensors["body.1.bias"]
    elif damage == "shape":
        tensors["body.1.bias"] = torch.zeros(4)
    else:
        tensors["body.2.bias"] = torch.zeros(4)
    write_model(tmp_path / "a.safetensors", make_info(), tensors)
    expect_refusal(tmp_path / "a.safetensors", r"its weights do not fit `softmax`: (?s:.*)body\.[12]\.bias")
