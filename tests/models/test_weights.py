import hashlib
import os
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from imagepipe.core.errors import EnvironmentFault, InputError
from imagepipe.core.manifest import ImageInfo
from imagepipe.models.classifier import Classifier, ModelInfo, build_classifier, save_classifier
from imagepipe.models.torchvision_models import find_first_convolution
from imagepipe.models.weights import check_pretrained, find_heads, freeze, load_pretrained
from tests.models.made import POOL, RESNET, Choices, build

CHOICES: dict[str, Choices] = {"softmax": {}, "mlp": {"hidden": 5}, "cnn": POOL, "resnet_small": RESNET}
RESNET18 = "torchvision:resnet18"


def make_model(name: str = "cnn", mode: str = "L", classes: int = 3, side: int = 8, seed: int = 1) -> Classifier:
    info = ModelInfo(
        format=2,
        model=name,
        choices=dict(CHOICES.get(name, {"dropout": 0.0})),
        normalize="dataset",
        classes=[f"c{number}" for number in range(classes)],
        image=ImageInfo(mode=mode, width=side, height=side),  # type: ignore[arg-type] # pyright: ignore
        mean=[0.1 * seed] * len(mode),
        std=[0.2 * seed] * len(mode),
        manifests={},
        conversion={},
    )
    return build_classifier(info, seed)


def copy_state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def get_changed(model: nn.Module, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}


def test_none_changes_nothing() -> None:
    model = make_model()
    before = copy_state(model)
    assert load_pretrained(model, "none") == []
    assert get_changed(model, before) == set()


def test_our_own_file_gives_all_but_another_head_and_the_normalising(tmp_path: Path) -> None:
    """The Cnn has three convolutions, three batch norms of 5 tensors, and a linear layer of 2."""
    path = tmp_path / "model.safetensors"
    saved, model = make_model(classes=5, seed=2), make_model()
    save_classifier(saved, path)
    before = copy_state(model)
    assert load_pretrained(model, str(path)) == [
        "pretrained: 18 of 20 tensors of the model were loaded; not in the file or of another shape: head.2.weight, "
        "head.2.bias"
    ]
    assert torch.equal(model.body.get_parameter("features.0.weight"), saved.body.get_parameter("features.0.weight"))
    assert get_changed(model, before) == {"body.features.0.weight", "body.features.4.weight", "body.features.8.weight"}
    assert torch.equal(model.get_buffer("mean"), before["mean"])


def test_a_file_that_fits_wholly_gives_the_same_body(tmp_path: Path) -> None:
    saved, model = make_model("mlp", seed=2), make_model("mlp")
    safetensors.torch.save_file(saved.body.state_dict(), tmp_path / "plain.safetensors")
    assert load_pretrained(model, str(tmp_path / "plain.safetensors")) == [
        "pretrained: 4 of 4 tensors of the model were loaded"
    ]
    assert get_changed(model.body, copy_state(saved.body)) == set()


@pytest.mark.parametrize("key", ["", "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("zipped", [True, False])
def test_torch_files_are_read_however_they_are_wrapped(tmp_path: Path, key: str, prefix: str, zipped: bool) -> None:
    saved, model = make_model("mlp", seed=2), make_model("mlp")
    found: dict[str, Any] = {prefix + name: tensor for name, tensor in saved.body.state_dict().items()}
    torch.save({key: found, "epoch": 3} if key else found, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    assert load_pretrained(model, str(tmp_path / "a.pth")) == ["pretrained: 4 of 4 tensors of the model were loaded"]
    assert get_changed(model.body, copy_state(saved.body)) == set()


@pytest.mark.parametrize("name", ["cnn", "resnet_small"])
def test_weights_for_colour_are_summed_for_grey(tmp_path: Path, name: str) -> None:
    saved, model = make_model(name, mode="RGB", seed=2), make_model(name)
    save_classifier(saved, tmp_path / "a.safetensors")
    [line] = load_pretrained(model, str(tmp_path / "a.safetensors"))
    assert "not in the file" not in line
    colour, grey = (find_first_convolution(found.body).weight for found in (saved, model))
    assert torch.equal(grey[:, 0], colour[:, 0] + colour[:, 1] + colour[:, 2])


def expect_refusal(pretrained: Path | str, message: str, name: str = "mlp") -> None:
    with pytest.raises(InputError, match=rf"^train\.pretrained.*{message}"):
        load_pretrained(make_model(name), str(pretrained))


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    save_classifier(make_model("cnn"), tmp_path / "a.safetensors")
    expect_refusal(
        tmp_path / "a.safetensors",
        r"holds no tensor that fits `mlp` by name and shape; it has features\.0\.weight \(16, 1, 3, 3\), .*, …, the "
        r"model 1\.weight \(5, 64\), 1\.bias \(5,\), 3\.weight \(3, 5\), …\. Are they the weights of this model\?",
    )


def test_counters_of_batch_norm_alone_are_no_fit(tmp_path: Path) -> None:
    tensors = {"features.2.num_batches_tracked": torch.tensor(7), "features.0.weight": torch.zeros(3)}
    safetensors.torch.save_file(tensors, tmp_path / "a.safetensors")
    expect_refusal(tmp_path / "a.safetensors", "holds no tensor that fits `cnn`", "cnn")


def test_an_absent_file_is_refused(tmp_path: Path) -> None:
    expect_refusal(tmp_path / "gone.pth", r"gone\.pth: no such file; give the path of a .* file, `none` or `default`")
    with pytest.raises(InputError, match=r"train\.pretrained: .*gone\.pth: no such file"):
        check_pretrained(str(tmp_path / "gone.pth"), "")


class Trap:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("how", ["zip", "old", "pickle"])
def test_a_file_that_holds_code_is_refused_and_nothing_is_run(tmp_path: Path, how: str) -> None:
    found = {"1.weight": torch.zeros(5, 64), "trap": Trap(tmp_path / "sprung")}
    path = tmp_path / "a.pth"
    if how == "pickle":
        path.write_bytes(pickle.dumps(found, protocol=2))
    else:
        torch.save(found, path, _use_new_zipfile_serialization=how == "zip")
    expect_refusal(path, r"a\.pth: the file holds code .* it is refused\. Save the state dict alone")
    assert not (tmp_path / "sprung").exists()
    if how == "pickle":
        pickle.loads(path.read_bytes())
        assert (tmp_path / "sprung").exists()  # the trap is a real one


@pytest.mark.parametrize("data", [b"", b"garbage" * 50, b"<html>404</html>", b"PK and then nothing", b"\x80\x02"])
def test_garbage_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.pth").write_bytes(data)
    expect_refusal(tmp_path / "a.pth", r"a\.pth: (not a readable torch|the file holds code)")
    (tmp_path / "a.safetensors").write_bytes(data)
    expect_refusal(tmp_path / "a.safetensors", r"a\.safetensors: not a readable safetensors file")


def test_a_truncated_torch_file_is_refused(tmp_path: Path) -> None:
    torch.save(make_model("mlp").body.state_dict(), tmp_path / "a.pth")
    (tmp_path / "a.pth").write_bytes((tmp_path / "a.pth").read_bytes()[:900])
    expect_refusal(tmp_path / "a.pth", r"a\.pth: not a readable torch file .*is it damaged\?")


@pytest.mark.parametrize("found", [[1, 2], torch.zeros(2), {"epoch": 1}, {"state_dict": {}}])
def test_a_torch_file_without_named_tensors_is_refused(tmp_path: Path, found: Any) -> None:
    torch.save(found, tmp_path / "a.pth")
    expect_refusal(tmp_path / "a.pth", r"a\.pth: holds no tensors by name")


def test_our_own_models_have_no_default() -> None:
    expect_refusal(
        "default", r"is default, but `cnn` has no published weights; only torchvision:<name> and timm:", "cnn"
    )


def put_default(folder: Path, name: str, tensors: dict[str, torch.Tensor]) -> None:
    """Where torch looks before it downloads."""
    from torchvision import models

    (folder / "hub/checkpoints").mkdir(parents=True)
    torch.save(tensors, folder / "hub/checkpoints" / models.get_model_weights(name).DEFAULT.url.rsplit("/", 1)[1])


def test_default_is_torchvisions_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    published = build(RESNET18, {"dropout": 0.0}, channels=3, side=32, classes=1000)
    nn.init.constant_(published.get_parameter("conv1.weight"), 0.5)
    put_default(tmp_path, "resnet18", published.state_dict())
    model = make_model(RESNET18, side=32)
    assert load_pretrained(model, "default") == [
        "pretrained: 120 of 122 tensors of the model were loaded; not in the file or of another shape: fc.weight, "
        "fc.bias"
    ]
    assert model.body.get_parameter("conv1.weight").unique().tolist() == [1.5]


@pytest.mark.slow
def test_densenets_old_names_are_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    own = make_model("torchvision:densenet121", side=32)
    old = {
        name.replace("norm1.", "norm.1.").replace("conv2.", "conv.2.") if "denselayer" in name else name: tensor
        for name, tensor in own.body.state_dict().items()
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    put_default(tmp_path, "densenet121", old)
    [line] = load_pretrained(own, "default")
    assert "not in the file" not in line


def test_without_network_the_default_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # where nobody listens
    message = (
        r"^train\.pretrained is default, but the weights of `torchvision:resnet18` cannot be downloaded: there is no "
        r"network, or the server did not answer .*Give the path of a file in train\.pretrained"
    )
    with pytest.raises(EnvironmentFault, match=message):
        load_pretrained(make_model(RESNET18, side=32), "default")


def test_the_file_has_to_be_that_of_the_hash(tmp_path: Path) -> None:
    path, digest = tmp_path / "a", hashlib.sha256(b"abc").hexdigest()
    path.write_bytes(b"abc")
    check_pretrained(str(path), digest)
    path.write_bytes(b"abd")
    other = hashlib.sha256(b"abd").hexdigest()
    message = (
        rf"^train\.pretrained: {re.escape(str(path))}: its SHA-256 is {other}, expected {digest} "
        r"\(train\.pretrained_sha256\); bring the file that was meant, or set the hash to that of the new one\.$"
    )
    with pytest.raises(InputError, match=message):
        check_pretrained(str(path), digest)


def test_without_a_hash_the_line_for_the_params_is_said(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    message = (
        rf"^params\.yaml: train\.pretrained_sha256: is not given for {re.escape(str(path))}; if this is the file that "
        rf"you mean, set it to\n    pretrained_sha256: {hashlib.sha256(b'abc').hexdigest()}$"
    )
    with pytest.raises(InputError, match=message):
        check_pretrained(str(path), "")


def test_what_is_no_file_has_no_hash() -> None:
    for name in ("none", "default"):
        check_pretrained(name, "")


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("softmax", "1"),
        ("mlp", "3"),
        ("cnn", "head.2"),
        ("resnet_small", "head.3"),
        (RESNET18, "fc"),
        ("torchvision:squeezenet1_1", "classifier.1"),
        ("torchvision:mobilenet_v3_small", "classifier.3"),
        ("torchvision:googlenet", "fc"),
        ("torchvision:swin_t", "head"),
        ("timm:resnet18", "fc"),
    ],
)
def test_the_head_gives_the_logits(name: str, head: str) -> None:
    body = make_model(name, side=32, classes=7).body
    [found] = find_heads(body)
    assert found is body.get_submodule(head)
    assert found.get_parameter("weight").shape[0] == 7


def test_a_network_without_layers_has_no_head() -> None:
    with pytest.raises(InputError, match=r"train\.freeze: ReLU has no linear layer or convolution to train"):
        find_heads(nn.ReLU())


def train_once(model: Classifier) -> None:
    model.train()
    images = torch.randint(0, 256, (4, 1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    nn.functional.cross_entropy(model(images), torch.tensor([0, 1, 2, 0])).backward()
    torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1).step()


@pytest.mark.parametrize(
    ("name", "heads"),
    [
        ("cnn", ["head.2"]),
        ("resnet_small", ["head.3"]),
        (RESNET18, ["fc"]),
        ("timm:repvit_m0_9", ["head.head.l", "head.head_dist.l"]),
        ("timm:efficientvim_m1", ["heads.0", "heads.1", "heads.2", "heads.3"]),
    ],
)
def test_of_a_frozen_body_the_heads_alone_change(name: str, heads: list[str]) -> None:
    model = make_model(name, side=32)
    freeze(model, "body")
    before = copy_state(model)
    for _ in range(2):
        train_once(model)
        model.eval()
    assert get_changed(model, before) == {f"body.{head}.{kind}" for head in heads for kind in ("weight", "bias")}


@pytest.mark.parametrize("name", ["cnn", "resnet_small", RESNET18])
def test_of_frozen_batch_norm_neither_weights_nor_statistics_change(name: str) -> None:
    model = make_model(name, side=32)
    freeze(model, "batch_norm")
    before = copy_state(model)
    train_once(model)
    norms = {
        f"{inside}.{tensor}"
        for inside, module in model.named_modules()
        if isinstance(module, nn.BatchNorm2d)
        for tensor in module.state_dict()
    }
    assert norms
    assert get_changed(model, before) == set(before) - norms - {"mean", "std"}


def test_nothing_frozen_changes_all() -> None:
    model = make_model(side=32)
    freeze(model, "nothing")
    before = copy_state(model)
    train_once(model)
    assert get_changed(model, before) == set(before) - {"mean", "std"}


@pytest.mark.parametrize("what", ["body", "batch_norm"])
def test_dropout_goes_on_in_a_frozen_model(what: Any) -> None:
    model = make_model()
    freeze(model, what)
    model.train()
    assert model.body.get_submodule("head.1").training
    assert not model.body.get_submodule("features.2").training
    assert model.eval().training is False


def test_batch_norm_of_a_model_without_any_cannot_be_frozen() -> None:
    with pytest.raises(InputError, match=r"train\.freeze: `batch_norm`, but `mlp` has none; set it to `nothing`"):
        freeze(make_model("mlp"), "batch_norm")
