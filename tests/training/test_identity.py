import re
from importlib import metadata

from imagepipe.training.identity import find_version, hash_code


def test_the_code_of_a_run_has_a_hash_that_repeats() -> None:
    assert re.fullmatch("[0-9a-f]{64}", hash_code())
    assert hash_code() == hash_code()


def test_versions_are_those_that_are_installed() -> None:
    assert find_version("torch") == metadata.version("torch")
    assert find_version("no-such-package") == ""
