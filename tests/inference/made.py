"""A model file of three classes for 8×8 grey images."""

from pathlib import Path

from imagepipe.models.classifier import Classifier, build_classifier, save_classifier
from tests.made import make_conversion, make_model_info


def make_model(path: Path, **conversion: int | str) -> Classifier:
    """A softmax model, saved, with `split.image` as in recipes/base.yaml but for these changes."""
    info = make_model_info().model_copy(update={"conversion": make_conversion(**conversion)})
    model = build_classifier(info, 1).eval()
    save_classifier(model, path)
    return model
