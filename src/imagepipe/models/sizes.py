"""How small an image may be for a network of ours."""

from imagepipe.core.errors import InputError


def check_least_size(name: str, least: int, height: int, width: int) -> None:
    """Raise InputError where a side of the images is below `least` pixels, which the network `name` needs."""
    if min(height, width) < least:
        raise InputError(
            f"train.model: `{name}` needs at least {least}×{least} pixels, the images are {width}×{height}; use "
            "`mlp` or another."
        )
