"""Networks by name, and the model file that holds one with its classes ([torch] inside its one function)."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def load_model(path: Path | str) -> "tuple[nn.Module, list[str]]":
    """The model in a file of the train stage, in evaluation mode, and the names of its classes.

    It takes uint8 images (B, C, H, W) and gives logits (B, classes). Raises InputError where the file cannot be used.
    """
    from imagepipe.models.classifier import load_classifier  # torch takes a second to import

    model = load_classifier(Path(path))
    return model, model.info.classes
