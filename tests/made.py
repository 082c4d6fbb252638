"""A dataset of three classes of 8×8 grey images, and the description of a model for it."""

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from imagepipe.core.config import load_section
from imagepipe.core.hashes import hash_pixels
from imagepipe.core.manifest import COLUMNS, SPLITS, DatasetInfo, ImageInfo, LeakInfo, write_manifests
from imagepipe.models.classifier import FORMAT, ModelInfo
from imagepipe.prepare.params import SplitParams

ROOT = Path(__file__).resolve().parents[1]
CLASSES = ["cat", "dog", "NA"]


def make_conversion(**changes: int | str) -> dict[str, int | str]:
    """`split.image` as recipes/base.yaml has it, with these changes."""
    return load_section("split", SplitParams, ROOT / "recipes" / "base.yaml").image.model_dump() | changes


def make_dataset_info() -> DatasetInfo:
    return DatasetInfo(
        format=1,
        classes=CLASSES,
        image=ImageInfo(mode="L", width=8, height=8),
        mean=[0.5],
        std=[0.25],
        counts={},
        source={"name": "made", "homepage": "none", "licence": "none", "citation": "none", "options": {}},
        split={
            "strategy": "random",
            "seed": 1,
            "official": {},
            "layout": "single",
            "leaks": "auto",
            "image": make_conversion(),
        },
        leaks=LeakInfo(policy="error", duplicates=0, groups=0, labels=0, dropped=0, repeated=0, near=None),
    )


def make_model_info(classes: list[str] = CLASSES, width: int = 8) -> ModelInfo:
    return ModelInfo(
        format=FORMAT,
        model="softmax",
        choices={},
        normalize="unit",
        classes=classes,
        image=ImageInfo(mode="L", width=width, height=8),
        mean=[0.5],
        std=[0.25],
        manifests={},
        conversion=make_conversion(),
    )


def make_dataset(folder: Path, sizes: dict[str, int]) -> DatasetInfo:
    """Manifests in `folder` and random images in `folder/images`; labels go round the classes."""
    generator = np.random.default_rng(0)
    (folder / "images").mkdir()
    rows: list[dict[str, object]] = []
    for split in SPLITS:
        for _ in range(sizes[split]):
            number = len(rows)
            pixels = generator.integers(0, 256, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "images" / f"{number:05d}.png")
            label = number % len(CLASSES)
            row = [f"{number:05d}.png", label, CLASSES[label], split, "", hash_pixels("L", pixels), 8, 8, "L", "made"]
            rows.append(dict(zip(COLUMNS, row, strict=True)))
    table = pd.DataFrame(rows)
    counts = {
        split: {name: int(((table["split"] == split) & (table["class"] == name)).sum()) for name in CLASSES}
        for split in SPLITS
    }
    info = make_dataset_info().model_copy(update={"counts": counts})
    write_manifests(folder, table, info)
    return info
