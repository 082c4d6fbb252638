"""Images of the page: which are shown, as pictures that stand in the page itself, with what the model thought."""

import base64
import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from imagepipe.core.slices import list_image_files
from imagepipe.data.images import open_image
from imagepipe.evaluation.calibration import find_log_probabilities
from imagepipe.evaluation.metrics import list_predicted_classes
from imagepipe.evaluation.predictions import LOGIT
from imagepipe.report.plots import caption_prediction, draw_grid

LARGEST = 160  # pixels of a side on the page
LOSSLESS = 64  # pixels of a side up to which a picture is a PNG: an enlarged JPEG of few pixels misleads
BARS = 3  # probabilities that are shown with an image


def pick_mistakes(test: pd.DataFrame, count: int) -> pd.DataFrame:
    """The wrong predictions with the largest loss, worst first; equal losses by key."""
    wrong = test[test["class"] != test["predicted"]]
    return wrong.sort_values(["loss", "key"], ascending=[False, True]).head(count)


def pick_examples(test: pd.DataFrame, count: int) -> pd.DataFrame:
    """Test images drawn by the hash of their key, so that nobody chose them and every run shows the same."""
    lot = test["key"].map(lambda key: hashlib.sha256(f"examples\0{key}".encode()).hexdigest())
    return test.loc[lot.sort_values().index[:count]]


def draw_gallery(rows: pd.DataFrame, images_dir: Path, title: str, path: Path) -> None:
    """The images of `rows`, captioned `P: x | T: y`."""
    pairs = zip(rows["predicted"], rows["class"], strict=True)
    captions = [caption_prediction(predicted, true) for predicted, true in pairs]
    draw_grid(open_images(rows, images_dir), captions, path, title)


def open_images(rows: pd.DataFrame, images_dir: Path) -> list[Image.Image]:
    """The images that rows of a predictions table name."""
    files = list_image_files(rows, images_dir)
    return [open_image(files, index) for index in range(len(files))]


def make_cards(rows: pd.DataFrame, images_dir: Path) -> list[dict[str, Any]]:
    """For each row: `key`, `true`, `predicted`, `right`, `picture` (a data URI) and `bars`.

    The bars are the most probable classes, BARS at most, and the true one where it is not among them: pairs of name and
    probability, the largest first.
    """
    classes = list_predicted_classes(rows)
    logits = rows[[f"{LOGIT}{name}" for name in classes]].to_numpy(np.float64)
    probabilities = np.exp(find_log_probabilities(logits)) if len(rows) else logits
    cards: list[dict[str, Any]] = []
    for (_, row), shares, image in zip(rows.iterrows(), probabilities, open_images(rows, images_dir), strict=True):
        order = np.argsort(-shares, kind="stable")[:BARS].tolist()
        own = classes.index(row["class"])
        shown = order if own in order else [*order, own]
        cards.append(
            {
                "key": row["key"],
                "true": row["class"],
                "predicted": row["predicted"],
                "right": row["class"] == row["predicted"],
                "picture": encode_picture(image),
                "bars": [(classes[index], float(shares[index])) for index in shown],
            }
        )
    return cards


def encode_picture(image: Image.Image) -> str:
    """A copy as a data URI, at most LARGEST pixels a side: small images as PNG, bit for bit, larger ones as JPEG."""
    buffer = io.BytesIO()
    if max(image.size) <= LOSSLESS:
        image.save(buffer, "PNG")
        return encode("image/png", buffer.getvalue())
    small = image.copy()
    small.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    small.save(buffer, "JPEG", quality=80)
    return encode("image/jpeg", buffer.getvalue())


def encode(kind: str, data: bytes) -> str:
    """`data` of a MIME type as a data URI."""
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"
