"""Known results of the tutorials that people come from: a line by regression, one hidden layer on 256 images, cats
against frogs, and fine-tuning, each by the code that the stages run."""

import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dvc.utils.serialize import modify_yaml
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import resnet18

from imagepipe.core.config import load_section
from imagepipe.core.engines import open_engine
from imagepipe.core.errors import InputError
from imagepipe.core.hashes import hash_file
from imagepipe.core.manifest import read_dataset_info
from imagepipe.core.run import load_run_params
from imagepipe.data.batches import make_eval_loader, make_loaders
from imagepipe.data.dataset import ManifestDataset
from imagepipe.models.classifier import load_classifier
from imagepipe.prepare.dataset import prepare_dataset
from imagepipe.prepare.params import SplitParams
from imagepipe.recipes import merge, merge_recipe
from imagepipe.sources import fetch_source, read_records
from imagepipe.sources.params import FetchParams
from imagepipe.training.loop import measure, run_batches
from imagepipe.training.params import TrainParams
from imagepipe.training.train import Trained, train_model

RESNET18 = "torchvision:resnet18"
pytestmark = pytest.mark.filterwarnings("ignore:.* tracked neither by Git nor by DVC")  # nor need they be here


@pytest.fixture
def place(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, empty but for the file that takes all classes; images are kept in a cache of its own."""
    (tmp_path / "data" / "classes").mkdir(parents=True)
    (tmp_path / "data" / "classes" / "all.csv").write_bytes((root / "data" / "classes" / "all.csv").read_bytes())
    (tmp_path / "data" / "source").mkdir()
    monkeypatch.setenv("IMAGEPIPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def use_recipe(root: Path, name: str, **changes: dict[str, Any]) -> str:
    """Write base plus recipe, with changes of its sections, into params.yaml; what the recipe's head says."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        text = merge_recipe(Path("recipes") / f"{name}.yaml")
    Path("params.yaml").write_text(text, "utf-8")
    with modify_yaml("params.yaml") as params:
        for section, values in changes.items():
            merge(params[section], values)
    lines = (root / "recipes" / f"{name}.yaml").read_text("utf-8").splitlines()
    return " ".join(line.removeprefix("#").strip() for line in lines if line.startswith("#"))


def make_dataset() -> None:
    """Fetch and split as params.yaml says, into `data/images` and `data/manifests`."""
    fetch, split, run = load_section("fetch", FetchParams), load_section("split", SplitParams), load_run_params()
    Path("data/raw").mkdir()
    fetch_source(fetch, run, Path("data/raw"))
    with open_engine(run) as engine:
        records, info = read_records(Path(fetch.path), Path("data/raw"))
        prepare_dataset(records, info, split, Path("data/images"), Path("data/manifests"), engine)


def train(name: str) -> Trained:
    """Train as params.yaml says; the model goes to `<name>/model.safetensors`."""
    params, run, out = load_section("train", TrainParams), load_run_params(), Path(name)
    return train_model(Path("data/manifests"), Path("data/images"), params, run, out / "model.safetensors", out)


def open_test() -> DataLoader[Any]:
    return make_eval_loader(ManifestDataset("data/manifests/test.csv", "data/images"), 500)


def make_line() -> tuple[TensorDataset, TensorDataset]:
    """Godoy's points: y = 1 + 2x + 0.1 ε at 100 places, 80 to train and 20 to validate; x and y are (N, 1)."""
    generator = np.random.RandomState(42)  # the legacy one, whose numbers the tutorial has
    x = generator.rand(100, 1)
    y = 1 + 2 * x + 0.1 * generator.randn(100, 1)
    order = np.arange(100)
    generator.shuffle(order)
    points = [torch.from_numpy(values[order]).float() for values in (x, y)]
    return TensorDataset(*[part[:80] for part in points]), TensorDataset(*[part[80:] for part in points])


@pytest.mark.parametrize("ours", [False, True], ids=["torch's loaders", "our loaders"])
@pytest.mark.parametrize(
    ("loss_function", "tolerance", "floor"), [(nn.MSELoss(), 0.02, 0.02), (nn.L1Loss(), 0.1, 0.16)], ids=["mse", "l1"]
)
def test_a_line_is_found_by_the_loop_that_trains_classifiers(
    ours: bool, loss_function: nn.Module, tolerance: float, floor: float
) -> None:
    """Daniel Godoy, Understanding PyTorch with an example: w 1.969 and b 1.023 after 200 epochs of batches of 16.

    The noise alone costs 0.01 in squares, and 0.08 in absolute values; val may cost twice that.
    """
    train, val = make_line()
    train_loader: DataLoader[Any] = DataLoader(train, 16, shuffle=True, generator=torch.Generator().manual_seed(42))
    val_loader: DataLoader[Any] = DataLoader(val, 20)
    if ours:
        loaders = make_loaders(train, val, batch_size=16, seed=42)
        assert loaders.val is not None
        train_loader, val_loader = loaders.train, loaders.val
    model = nn.Linear(1, 1)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)

    def update(x: Tensor, y: Tensor) -> Tensor:
        loss = loss_function(model(x), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        return loss.detach()

    @torch.no_grad()
    def validate(x: Tensor, y: Tensor) -> Tensor:
        return loss_function(model(x), y)

    for _ in range(200):
        losses = list(run_batches(train_loader, update, "cpu"))
    assert len(losses) == 5
    assert model.weight.item() == pytest.approx(1.969, abs=tolerance)
    assert model.bias.item() == pytest.approx(1.023, abs=tolerance)
    before = model.weight.item()
    [loss] = run_batches(val_loader, validate, "cpu")
    assert 0 < loss.item() < floor
    assert model.weight.item() == before


@pytest.mark.slow
def test_raschkas_hidden_layer_reaches_what_the_recipe_says(place: Path, root: Path, mnist_dir: Path) -> None:
    """On the first 768 images of MNIST; his own are others (91.8, 74.6 and 75.0 %)."""
    head = use_recipe(root, "raschka-mlp", run={"mirror": str(mnist_dir)})
    stated = re.search(r"Reaches (\d+\.\d) % on train, (\d+\.\d) % on val, (\d+\.\d) % on test", head)
    assert stated is not None
    make_dataset()
    counts = read_dataset_info(Path("data/manifests/dataset.json")).counts
    assert [sum(classes.values()) for classes in counts.values()] == [256, 256, 256]
    trained = train("run")
    on_train, on_val = trained.kept["train_accuracy"], trained.kept["val_accuracy"]
    found = [on_train, on_val, measure(trained.model, open_test()).accuracy]
    assert [100 * accuracy for accuracy in found] == pytest.approx([float(text) for text in stated.groups()], abs=2)


@pytest.mark.slow
def test_the_simple_net_tells_cats_from_frogs(place: Path, root: Path, cifar10_zip: Path) -> None:
    """The recipe says 71.6 %; always the more frequent class would be right for 112 of 215."""
    with zipfile.ZipFile(cifar10_zip) as archive:
        for name in archive.namelist():
            _, part, class_name, file = name.split("/")
            if class_name in ("cat", "frog"):
                path = Path("data/catfish") / part / {"cat": "cat", "frog": "fish"}[class_name] / file
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(archive.read(name))
    use_recipe(root, "catfish")
    make_dataset()
    trained = train("run")
    assert trained.model.info.classes == ["cat", "fish"]
    test = open_test()
    assert measure(trained.model, test).accuracy >= 0.65
    assert not [module for module in trained.model.modules() if isinstance(module, nn.Softmax | nn.LogSoftmax)]
    images, _ = next(iter(test))
    with torch.no_grad():
        logits = trained.model.eval()(images)
    assert (logits < 0).any()  # which no probability is
    assert logits.sum(dim=1).sub(1).abs().mean() > 0.1


@pytest.fixture
def three_classes(place: Path, root: Path) -> Path:
    """24 images of noise, 32×32 RGB, of three classes, split; a torch file of a ResNet-18 for five classes."""
    generator = np.random.default_rng(1)
    for number in range(24):
        path = place / "data" / "noise" / ("train", "val", "test")[number // 12 + number // 18] / "abc"[number % 3]
        path.mkdir(parents=True, exist_ok=True)
        pixels: NDArray[np.uint8] = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path / f"{number}.png")
    weights = place / "resnet18.pth"
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(5)
        torch.save(resnet18(num_classes=5).state_dict(), weights)
    use_recipe(
        root,
        "catfish",
        fetch={"path": "data/noise"},
        split={"image": {"height": 32, "width": 32}},
        train={"model": RESNET18, "epochs": 2, "batch_size": 6, "keep": "last"},
    )
    make_dataset()
    return weights


def set_train(**changes: Any) -> None:
    with modify_yaml("params.yaml") as params:
        params["train"] |= changes


@pytest.mark.slow
@pytest.mark.parametrize("frozen", ["body", "nothing"])
def test_a_resnet_is_tuned_from_a_file_of_weights(
    three_classes: Path, frozen: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """All but the last layer, of five classes there and three here, is taken; frozen, it stays as it was there."""
    set_train(pretrained=str(three_classes), pretrained_sha256=hash_file(three_classes), freeze=frozen)
    train(frozen)
    assert capsys.readouterr().out.startswith(
        "train: pretrained: 120 of 122 tensors of the model were loaded; not in the file or of another shape: "
        "fc.weight, fc.bias\n"
    )
    given = torch.load(three_classes, weights_only=True)
    tuned = load_classifier(Path(frozen) / "model.safetensors").body.state_dict()
    body = [name for name in tuned if not name.startswith("fc.")]
    assert len(body) == 120
    same = [name for name in body if torch.equal(tuned[name], given[name])]
    assert same == (body if frozen == "body" else [])
    assert tuned["fc.weight"].shape == (3, 512)


@pytest.mark.slow
@pytest.mark.parametrize("sha256", ["", "0" * 64], ids=["none", "another"])
def test_weights_of_another_hash_are_refused_before_training(three_classes: Path, sha256: str) -> None:
    set_train(pretrained=str(three_classes), pretrained_sha256=sha256)
    with pytest.raises(InputError, match=hash_file(three_classes)):
        train("run")
    assert not Path("run").exists()
