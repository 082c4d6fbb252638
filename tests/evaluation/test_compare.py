from pathlib import Path

import pandas as pd
import pytest

from imagepipe.core.config import load_section
from imagepipe.core.manifest import read_dataset_info, read_split, write_manifests
from imagepipe.core.parallel import LocalEngine
from imagepipe.evaluation.compare import compare
from imagepipe.evaluation.predictions import predict_splits
from imagepipe.prepare.dataset import prepare_dataset
from imagepipe.prepare.params import Fractions, SplitParams
from imagepipe.sources import digits
from imagepipe.sources.params import FetchParams
from imagepipe.training.params import TrainParams
from imagepipe.training.train import train_model
from tests.core.made import make_run
from tests.evaluation.made import make_table, write_run
from tests.made import ROOT

BASE = ROOT / "recipes" / "base.yaml"


def test_one_run_alone_is_compared_with_the_workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path / "reports" / "evaluate", make_table([True, True]))
    name = write_run(tmp_path / "a", make_table([True, False]))
    monkeypatch.chdir(tmp_path)
    (pair,) = compare([name], 0.95).pairs
    assert (pair.base, pair.other, pair.won) == (name, "workspace", 1)


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """scikit-learn's digits, of which half are test, as fetch and split leave them."""
    folder = tmp_path_factory.mktemp("halves")
    (folder / "raw").mkdir()
    source = digits.fetch(load_section("fetch", FetchParams, BASE), make_run(), folder / "raw")
    records = digits.read_records(folder, folder / "raw", source)
    split = load_section("split", SplitParams, BASE)
    split = split.model_copy(update={"fractions": Fractions(train=0.4, val=0.1, test=0.5)})
    prepare_dataset(records, source, split, folder / "images", folder / "manifests", LocalEngine(1))
    return folder


def keep_every_tenth(halves: Path, manifests: Path) -> None:
    """Manifests with a tenth of the train images, and the same val and test."""
    info = read_dataset_info(halves / "manifests" / "dataset.json")
    train, val, test = (read_split(halves / "manifests", split, info) for split in ("train", "val", "test"))
    few = train.iloc[::10]
    counts = few["class"].value_counts()
    info = info.model_copy(
        update={"counts": info.counts | {"train": {name: int(counts[name]) for name in info.classes}}}
    )
    manifests.mkdir(parents=True)
    write_manifests(manifests, pd.concat([few, val, test]), info)


def train(halves: Path, manifests: Path, folder: Path, seed: int) -> str:
    """A run of a small model, trained until seeds make little difference; gives its name."""
    changes = {"model": "mlp", "epochs": 20, "seed": seed, "threads": 1}
    params = load_section("train", TrainParams, BASE).model_copy(update=changes)
    images, model = halves / "images", folder / "model.safetensors"
    train_model(manifests, images, params, make_run(cache_dir=str(halves / "cache")), model, folder / "reports")
    table, _ = predict_splits(model, manifests, images, 500, 1, None)
    return write_run(folder, table)


def test_a_model_trained_twice_with_two_seeds_is_no_evidence_of_a_difference(halves: Path, tmp_path: Path) -> None:
    names = [train(halves, halves / "manifests", tmp_path / f"seed{seed}", seed) for seed in (1, 2)]
    (pair,) = compare(names, 0.95).pairs
    assert pair.verdict == "no evidence"
    assert pair.lost + pair.won > 0  # they are two models, not one


def test_a_model_trained_with_a_tenth_of_the_data_is_found_worse(halves: Path, tmp_path: Path) -> None:
    keep_every_tenth(halves, tmp_path / "manifests")
    whole = train(halves, halves / "manifests", tmp_path / "whole", 1)
    (pair,) = compare([whole, train(halves, tmp_path / "manifests", tmp_path / "tenth", 1)], 0.95).pairs
    assert pair.verdict == "worse"
    assert pair.p < 0.001
