"""Python's search for cycles among objects, in a process that ends as soon as its work is done."""

import gc

# Objects made before Python looks for cycles among them. A stage makes millions that live to its end, and looking at
# them again after every 700, as it does by itself, took a twentieth of split's time and a sixth of importing PyTorch.
YOUNG_OBJECTS = 200_000


def collect_seldom() -> None:
    """To be called first, before what takes long to import."""
    gc.set_threshold(YOUNG_OBJECTS)


def collect_no_more() -> None:
    """To be called last: as it ends, Python would look at every object once more, which takes a second with PyTorch."""
    gc.freeze()
