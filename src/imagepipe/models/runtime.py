"""[torch] PyTorch's global state, as far as it changes bits, which the stages set; and what it says of memory."""

from collections.abc import Generator
from contextlib import contextmanager

import torch

from imagepipe.core.errors import EnvironmentFault


def fix_arithmetic(threads: int, *, compiles: bool) -> None:
    """Use `threads` threads for arithmetic (the count changes the order of sums) and deterministic algorithms only.

    `compiles` says whether a model will be compiled, since what compiles has a setting of its own.
    """
    torch.set_num_threads(threads)
    if compiles:
        torch.use_deterministic_algorithms(True)
    else:  # the same but for the compiler, which takes one to two seconds to import
        torch.set_deterministic_debug_mode("error")
    # Else torch fills all new memory with NaN, to expose who reads it too early: a twentieth of the time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]


@contextmanager
def report_memory(work: str, remedy: str) -> Generator[None]:
    """Raise EnvironmentFault, saying while what and what helps, where memory does not suffice.

    Of the processor's memory torch has no kind of error of its own.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        said = str(error).partition("\n")[0] or type(error).__name__
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in said:
            raise EnvironmentFault(f"out of memory while {work} ({said}); {remedy}.") from error
        raise
