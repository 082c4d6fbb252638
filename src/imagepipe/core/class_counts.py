"""What the numbers of images of the classes say: which has most, and what to weigh them by."""

from collections.abc import Iterable

from imagepipe.core.errors import InputError


def check_several(classes: Iterable[str], where: str) -> None:
    """Raise InputError, naming `where`, where the images are of one class only."""
    found = set(classes)
    if len(found) == 1:
        raise InputError(
            f"{where}: has images of 1 class only ({found.pop()!r}); a classifier needs two. Is the source read as it "
            "is meant (fetch.source, fetch.path, fetch.classes)?"
        )


def find_majority(classes: dict[str, int]) -> str:
    """The most frequent class; the first in class order where several are."""
    return max(classes, key=lambda name: classes[name])


def count_effective(images: int, total: int) -> float:
    """Effective number of a class's samples, (1 - β^n) / (1 - β): the more images, the less each of them adds.

    β = (N - 1) / N with N = `total`, the images of the whole train split (Cui et al., Class-Balanced Loss Based on
    Effective Number of Samples, CVPR 2019, arXiv:1901.05555; there N is the unknown volume of a class, and the choice
    of train's size is ours). 1 for one image, almost n for a rare class, never above N.
    """
    beta = (total - 1) / total
    return (1 - beta**images) / (1 - beta)


def weigh_balanced(train: dict[str, int]) -> dict[str, float]:
    """Inverse frequency, N / (k·n) for the k classes that have images, as scikit-learn's `class_weight="balanced"`.

    The mean over images is 1. A class without images has no weight.
    """
    present = {name: count for name, count in train.items() if count}
    total = sum(present.values())
    return {name: total / (len(present) * count) for name, count in present.items()}


def weigh_effective(train: dict[str, int]) -> dict[str, float]:
    """One over the effective number (`count_effective`), scaled so that the mean over classes is 1.

    Gentler to frequent classes than `weigh_balanced`. A class without images has no weight.
    """
    total = sum(train.values())
    inverse = {name: 1 / count_effective(count, total) for name, count in train.items() if count}
    mean = sum(inverse.values()) / len(inverse)
    return {name: value / mean for name, value in inverse.items()}
