"""[torch] The part of PyTorch's global state that changes bits; set by the stages, never by the library."""

import torch


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
