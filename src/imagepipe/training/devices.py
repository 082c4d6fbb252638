"""[torch] Where training computes."""

import torch

from imagepipe.core.errors import EnvironmentFault


def find_device(name: str, local_rank: int = 0) -> str:
    """The device that `train.device` means; `auto` takes a GPU where there is one, `cuda` the one of `local_rank`.

    Raises EnvironmentFault for one that is absent: a run that silently went elsewhere would take hours, and its figures
    would be another machine's.
    """
    present = [*list_accelerators(), "cpu"]
    if name == "auto":
        name = present[0]
    if name not in present:
        raise EnvironmentFault(
            f"train.device is {name}, but torch finds {' and '.join(present)} only; set train.device to one of these "
            "or to auto, or mend the driver."
        )
    return f"cuda:{local_rank}" if name == "cuda" else name


def list_accelerators() -> list[str]:
    """The kinds of GPU that torch can use here."""
    found = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}
    return [name for name, is_available in found.items() if is_available()]
