"""[torch] The part of PyTorch's global state that changes bits; set by the stages, never by the library."""

import torch


def fix_arithmetic(threads: int) -> None:
    """Use `threads` threads for arithmetic (the count changes the order of sums) and deterministic algorithms only."""
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    # Else torch fills all new memory with NaN, to expose who reads it too early: a twentieth of the time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
