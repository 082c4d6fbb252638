"""Batches of normalised floats, measured: our loader beside what people use, on the same images and in one run.

    python benchmarks/loaders.py [--set NAME ...] [--data FOLDER] [--repeats 15] [--json FILE]

The sets are MNIST (60,000 train images, 28×28 grey; needs mnist/ below --data), 10,000 images of CIFAR-10 (32×32 RGB,
from cifar10/cifar10-11k.zip, or noise where that is not there), and 1,000 made-up photographs of 224×224. The split
stage writes each as single PNGs and as shards. Each contestant deals them at random in batches of 64:

- csv: a table of names and labels, `Image.open` and a transform (ToTensor, Normalize) for each sample, as tutorials do;
- ImageFolder: torchvision's, over class folders, with the same transform;
- webdataset: that package over our shards, decoding to uint8 and normalising whole batches;
- gather: all pixels in one uint8 tensor, a random permutation, index_select, normalising in place: torch alone;
- ours, warm: a pass over the loader of `make_loaders` while the pixels are in the cache, normalising as the model does;
- ours, cold: in a new process with an empty cache, from opening the manifest to the end of the first epoch.

The first three are timed with 0, 1 and 2 workers, twice each, and the best of the three counts. The others are repeated
more often, all in alternation, and medians count. Images per second travel badly, ratios well. What runs in this
process does its arithmetic in one thread on small images, since two gain nothing on 64 of them and lose much where
other work shares the cores, and on photographs in one for each core. Whoever opens files finds them in the system's
cache: all are read just before. Exits 1 where a promise is not kept.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as the stages have it
import torch
from measure import (
    Contestant,
    Figures,
    Promise,
    alternate,
    finish,
    open_parser,
    print_figures,
    run_fresh,
    take_best,
    take_medians,
)
from PIL import Image
from scratch import NEEDED, change_params, make_project, run_stage
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import Compose, Normalize, ToTensor
from webdataset.compat import WebDataset, WebLoader

from imagepipe.core.manifest import read_dataset_info
from imagepipe.core.shards import name_member
from imagepipe.data.batches import LoaderOptions, Loaders, make_loaders
from imagepipe.data.dataset import ManifestDataset
from imagepipe.data.pixels import PixelCache
from imagepipe.models.classifier import FORMAT, Classifier, ModelInfo, build_classifier

BATCH = 64
WORKERS = (0, 1, 2)
SLOW_REPEATS = 2
COLD_REPEATS = 3
PHOTOGRAPHS = 1000
NOISE = 10_000


@dataclass(frozen=True, slots=True)
class Promised:
    """How many times as fast as csv at its best, and as the gather, our loader has to be, with how many threads."""

    warm: float
    cold: float | None = None
    gather: float | None = None
    threads: int = 1


PROMISES = {
    "MNIST": Promised(warm=50, cold=3, gather=0.8),
    "CIFAR-10": Promised(warm=25),
    "photographs": Promised(warm=10, threads=joblib.cpu_count()),
}


@dataclass(frozen=True, slots=True)
class ImageSet:
    """The train images of a set in `single/` and `shards/`, each with images/ and manifests/, and in `classes/`."""

    folder: Path
    count: int
    mean: list[float]
    std: list[float]

    @property
    def manifest(self) -> Path:
        """The manifest of the single PNGs."""
        return self.folder / "single/manifests/train.csv"

    @property
    def images(self) -> Path:
        """The folder of the single PNGs."""
        return self.folder / "single/images"


def make_set(name: str, data: Path, folder: Path) -> ImageSet:
    """Bring the images of a set into `folder` by fetch and split."""
    train = {"split.fractions.train": 1.0, "split.fractions.val": 0.0, "split.fractions.test": 0.0}
    make_project(folder, train | {"split.leaks": "keep"} | choose_source(name, data, folder / "made"))
    run_stage(folder, "fetch")
    for layout in ("single", "shards"):
        change_params(folder, {"split.layout": layout})
        run_stage(folder, "split")
        (folder / layout).mkdir()
        for output in ("images", "manifests"):
            (folder / "data" / output).rename(folder / layout / output)
    info = read_dataset_info(folder / "single/manifests/dataset.json")
    found = ImageSet(folder, sum(info.counts["train"].values()), info.mean, info.std)
    table = pd.read_csv(found.manifest, dtype=str)
    for number, (path, class_name) in enumerate(zip(table["path"], table["class"], strict=True)):
        place = folder / "classes" / str(class_name) / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        os.link(found.images / str(path), place)
    return found


def choose_source(name: str, data: Path, made: Path) -> dict[str, object]:
    """Params that say where a set comes from; makes the images where they do not exist."""
    if name == "MNIST":
        return {"fetch.source": "torchvision", "fetch.name": "MNIST", "run.mirror": str(data / "mnist")}
    zipped = data / NEEDED["cifar10"]
    if name == "CIFAR-10" and zipped.is_file():
        return {"fetch.source": "folder", "fetch.path": str(zipped)}
    generator = np.random.default_rng(0)
    for number in range(NOISE if name == "CIFAR-10" else PHOTOGRAPHS):
        path = made / f"class{number % 10}" / f"{number:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        side, coarse = (32, 32) if name == "CIFAR-10" else (224, 8)
        Image.fromarray(draw_image(generator, side, coarse)).save(path, compress_level=1)
    return {"fetch.source": "folder", "fetch.path": str(made)}


def draw_image(generator: np.random.Generator, side: int, coarse: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """uint8 (side, side, 3): soft shapes with a little grain, which PNG packs about as it packs a photograph."""
    soft = Image.fromarray(generator.integers(0, 256, (coarse, coarse, 3), dtype=np.uint8))
    pixels = np.asarray(soft.resize((side, side), Image.Resampling.BICUBIC), np.float32)
    return np.clip(pixels + generator.normal(0, 3, pixels.shape), 0, 255).astype(np.uint8)


class CsvDataset(Dataset[Any]):
    """A table of names and labels, one `Image.open` a sample."""

    def __init__(self, csv: Path, folder: Path, transform: Callable[[Image.Image], Tensor]) -> None:
        table = pd.read_csv(csv)
        self.folder = folder
        self.names = table["path"]
        self.labels = table["label"]
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = Image.open(self.folder / str(self.names[index]))
        return self.transform(image), int(self.labels[index])


def load_as_it_is(path: str) -> Image.Image:
    """The decoded image in its own mode (ImageFolder's own loader makes RGB of grey, which takes longer)."""
    with Image.open(path) as image:
        image.load()
        return image


def open_webdataset(images: ImageSet, workers: int) -> Iterable[tuple[Tensor, Tensor]]:
    """Batches of uint8 images and labels from the shards, which hold the other splits, too.

    The manifest's labels, by the names that its images have in the shards, say which are taken.
    """
    table = pd.read_csv(images.folder / "shards/manifests/train.csv", usecols=["path", "label"])
    rows = zip(table["path"], table["label"], strict=True)
    labels = {name_member(str(path).removesuffix(".png")): int(label) for path, label in rows}
    shards = sorted(map(str, (images.folder / "shards/images").glob("*.tar")))
    colour = "torchrgb8" if len(images.mean) == 3 else "torchl8"
    wanted, name = partial(is_wanted, labels=labels), partial(name_sample, labels=labels)
    dataset: Any = WebDataset(shards, shardshuffle=len(shards), empty_check=False).select(wanted)
    dataset = dataset.shuffle(1000).decode(colour).map(name).batched(BATCH)
    return WebLoader(dataset, batch_size=None, num_workers=workers)


def is_wanted(sample: dict[str, Any], labels: dict[str, int]) -> bool:
    """Whether the manifest names it."""
    return f"{sample['__key__']}.png" in labels


def name_sample(sample: dict[str, Any], labels: dict[str, int]) -> tuple[Tensor, int]:
    """uint8 (C, H, W) and the label of what webdataset read."""
    image: Tensor = sample["png"]
    return image if image.ndim == 3 else image[None], labels[f"{sample['__key__']}.png"]


def time_pass(
    batches: Iterable[tuple[Tensor, Tensor]], count: int, normalise: Callable[[Tensor], Tensor] | None = None
) -> float:
    """Seconds until every batch has been seen as normalised floats; `count` images are expected."""
    seen = 0
    started = time.perf_counter()
    for images, labels in batches:
        floats = images if normalise is None else normalise(images)
        seen += len(labels) if floats.dtype == torch.float32 else 0
    seconds = time.perf_counter() - started
    if seen != count:
        raise RuntimeError(f"{seen} of {count} images came as floats")
    return seconds


def normalise_in_place(images: Tensor, mean: list[float], std: list[float]) -> Tensor:
    """uint8 (B, C, H, W) as normalised floats, in the fewest steps that torch offers."""
    means, deviations = (torch.tensor(values).view(1, -1, 1, 1) * 255 for values in (mean, std))
    return images.float().sub_(means).div_(deviations)


def open_model(manifests_dir: Path) -> Classifier:
    """A model for the set, whose own normalising is timed."""
    info = read_dataset_info(manifests_dir / "dataset.json")
    described = ModelInfo(
        format=FORMAT,
        model="softmax",
        choices={},
        normalize="dataset",
        classes=info.classes,
        image=info.image,
        mean=info.mean,
        std=info.std,
        manifests={},
        conversion={},
    )
    return build_classifier(described, seed=0)


def time_on_read_files(folder: Path, time_it: Callable[[], float]) -> float:
    """The seconds of `time_it` while the system holds what is in `folder`: it may have let go of files since."""
    for path in folder.rglob("*"):
        if path.is_file():
            path.read_bytes()
    return time_it()


def gather(pixels: Tensor, labels: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
    """Batches out of tensors that hold everything."""
    for chosen in torch.randperm(len(labels)).split(BATCH):
        yield pixels.index_select(0, chosen), labels.index_select(0, chosen)


def time_cold(csv: Path, images_dir: Path, count: int, threads: int) -> float:
    """Seconds of a first epoch with an empty cache, opening the manifest included."""
    torch.set_num_threads(threads)
    model = open_model(csv.parent)
    with tempfile.TemporaryDirectory(dir=images_dir.parent) as root:
        started = time.perf_counter()
        time_pass(open_ours(csv, images_dir, Path(root)).train, count, model.normalise)
        return time.perf_counter() - started


def open_ours(csv: Path, images_dir: Path, cache: Path) -> Loaders:
    """Our loaders as train opens them, with a cache as large as the base's params allow."""
    kept = PixelCache(cache, most_bytes=50 * 10**9, memory_bytes=4 * 10**9)
    options = LoaderOptions(jobs=joblib.cpu_count(), cache=kept)
    return make_loaders(ManifestDataset(csv, images_dir), batch_size=BATCH, seed=1, options=options)


def line_up(images: ImageSet, repeats: int) -> dict[str, Contestant]:
    """Who takes part."""
    normalise = partial(normalise_in_place, mean=images.mean, std=images.std)
    model = open_model(images.manifest.parent)
    transform = Compose([ToTensor(), Normalize(images.mean, images.std)])
    table = CsvDataset(images.manifest, images.images, transform)
    classes = ImageFolder(str(images.folder / "classes"), transform, loader=load_as_it_is)
    contestants: dict[str, Contestant] = {}
    for workers in WORKERS:
        for name, dataset in (("csv", table), ("ImageFolder", classes)):
            loader = DataLoader(dataset, batch_size=BATCH, shuffle=True, num_workers=workers)
            timed = partial(time_on_read_files, images.images, partial(time_pass, loader, images.count))
            contestants[f"{name}, {workers} workers"] = Contestant(timed, SLOW_REPEATS)
        shards = partial(time_pass, open_webdataset(images, workers), images.count, normalise)
        timed = partial(time_on_read_files, images.folder / "shards/images", shards)
        contestants[f"webdataset, {workers} workers"] = Contestant(timed, SLOW_REPEATS)

    loaders = open_ours(images.manifest, images.images, images.folder / "pixels")
    contestants["ours, warm"] = Contestant(partial(time_pass, loaders.train, images.count, model.normalise), repeats)
    pixels, labels = (torch.cat(parts).contiguous() for parts in zip(*loaders.train, strict=True))
    timed = lambda: time_pass(gather(pixels, labels), images.count, normalise)  # noqa: E731
    contestants["gather"] = Contestant(timed, repeats)
    for layout in ("single", "shards"):
        places = (images.folder / layout / "manifests/train.csv", images.folder / layout / "images")
        cold = partial(run_fresh, time_cold, *places, images.count, torch.get_num_threads())
        contestants[f"ours, cold, {layout}"] = Contestant(partial(time_on_read_files, places[1], cold), COLD_REPEATS)
    return contestants


def measure_set(name: str, images: ImageSet, repeats: int) -> tuple[Figures, list[Promise]]:
    """Every contestant on one set, and how what was promised for it stands."""
    timed = alternate(line_up(images, repeats))
    medians = take_medians(timed)
    warm, promised = medians["ours, warm"], PROMISES[name]
    figures = {
        contestant: {
            "s an epoch": seconds,
            "images/s": images.count / seconds,
            "ours, warm, is × as fast": seconds / warm,
        }
        for contestant, seconds in medians.items()
    }
    best, seconds = take_best(medians, "csv")
    promises = [Promise(f"{name}: warm, times {best}", seconds / warm, at_least=promised.warm)]
    if promised.gather:
        pairs = zip(timed["gather"], timed["ours, warm"], strict=True)
        share = statistics.median(gathered / ours for gathered, ours in pairs)
        promises.append(Promise(f"{name}: warm, share of the gather's speed", share, at_least=promised.gather))
    if promised.cold:
        for layout in ("single", "shards"):
            cold = medians[f"ours, cold, {layout}"]
            promises.append(Promise(f"{name}: cold, {layout}, times {best}", seconds / cold, at_least=promised.cold))
    return figures, promises


def main() -> None:
    """Measure, print, and exit 1 where a promise is not kept."""
    parser = open_parser(__doc__, "mnist/ and cifar10/cifar10-11k.zip")
    parser.add_argument("--set", action="append", choices=PROMISES)
    parser.add_argument("--repeats", type=int, default=15, help="of our loader and the gather")
    arguments = parser.parse_args()
    found: dict[str, Figures] = {}
    promises: list[Promise] = []
    for name in arguments.set or PROMISES:
        if name == "MNIST" and not (arguments.data / NEEDED["mnist"]).exists():
            print(f"{name}: {arguments.data / NEEDED['mnist']} is not there; it is not measured")
            continue
        with tempfile.TemporaryDirectory() as folder:
            torch.set_num_threads(PROMISES[name].threads)
            images = make_set(name, arguments.data.resolve(), Path(folder))
            found[name], kept = measure_set(name, images, arguments.repeats)
        print_figures(f"{name}, {images.count} images, batches of {BATCH}", found[name], places=3)
        promises += kept
    finish(found, promises, arguments.json)


if __name__ == "__main__":
    main()
