import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from imagepipe.models.runtime import fix_arithmetic


@pytest.fixture(autouse=True)
def restore_arithmetic() -> Iterator[None]:
    """Leave torch's global state as it was."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.utils.deterministic.fill_uninitialized_memory = fill
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


@pytest.mark.parametrize("threads", [1, 3])
def test_arithmetic_uses_the_threads_that_are_asked_for(threads: int) -> None:
    fix_arithmetic(threads, compiles=False)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("compiles", [False, True])
def test_an_operation_without_a_deterministic_form_is_refused(compiles: bool) -> None:
    torch.use_deterministic_algorithms(False)
    fix_arithmetic(1, compiles=compiles)
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    with pytest.raises(RuntimeError, match="does not have a deterministic implementation"):
        torch.zeros(4).put_(torch.tensor([0]), torch.tensor([1.0]))


def test_the_compiler_is_told_too_where_there_is_something_to_compile() -> None:
    from torch._inductor import config

    torch.use_deterministic_algorithms(False)
    fix_arithmetic(1, compiles=True)
    assert config.deterministic


def test_the_compiler_is_not_imported_where_there_is_nothing_to_compile() -> None:
    code = (
        "import sys; from imagepipe.models.runtime import fix_arithmetic; fix_arithmetic(1, compiles=False); "
        "print(sorted({'torch', 'torch._dynamo', 'torch._inductor'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['torch']"


def test_new_memory_is_not_filled() -> None:
    torch.utils.deterministic.fill_uninitialized_memory = True
    fix_arithmetic(1, compiles=False)
    assert not torch.utils.deterministic.fill_uninitialized_memory
