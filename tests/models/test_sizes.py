import pytest

from imagepipe.core.errors import InputError
from imagepipe.models.sizes import check_least_size


@pytest.mark.parametrize(("height", "width"), [(7, 9), (9, 7)])
def test_a_side_that_is_too_small_is_refused_with_the_least(height: int, width: int) -> None:
    message = rf"^train\.model: `net` needs at least 8×8 pixels, the images are {width}×{height}; use `mlp` or"
    with pytest.raises(InputError, match=message):
        check_least_size("net", 8, height, width)


def test_the_least_size_is_taken() -> None:
    check_least_size("net", 8, 8, 8)
