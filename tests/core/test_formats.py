"""A file of another version's format is named as such, with the way out."""

from pathlib import Path

import pytest

from imagepipe.core.errors import InputError
from imagepipe.core.formats import check_format


def check(description: str | bytes) -> None:
    check_format(Path("a.json"), description, 2, "make it again")


def test_a_newer_file_asks_for_a_newer_imagepipe() -> None:
    with pytest.raises(InputError) as caught:
        check('{"format": 3, "what": "nobody knows yet"}')
    assert str(caught.value) == (
        "a.json: made by a newer imagepipe: format 3, this one reads up to 2; update imagepipe, or make it again."
    )


def test_an_older_file_is_to_be_made_again() -> None:
    with pytest.raises(InputError) as caught:
        check(b'{"format": 1}')
    assert str(caught.value) == "a.json: made by an older imagepipe: format 1, this one reads 2; make it again."


@pytest.mark.parametrize(
    "description",
    [
        '{"format": 2}',
        "{}",
        '{"format": "3"}',
        '{"format": true}',
        '{"format": 3.5}',
        "[3]",
        "",
        b"\xff",
        "[" * 100_000,
    ],
)
def test_what_is_not_the_number_of_another_format_is_left_to_the_reader(description: str | bytes) -> None:
    check(description)
