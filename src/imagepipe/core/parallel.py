"""Work in chunks over processes, in order, with bounded memory; small work stays in this process."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar, cast

import joblib

Item = TypeVar("Item")
Result = TypeVar("Result")

CHUNK = 1000  # items that a worker takes at once
FEW = 4000  # below this, starting worker processes costs more than it saves


def map_chunks(function: Callable[[Sequence[Item]], Result], items: Sequence[Item], jobs: int) -> Iterator[Result]:
    """`function` of each chunk of `items`, in order, computed by `jobs` processes (one for few items)."""
    chunks = [items[first : first + CHUNK] for first in range(0, len(items), CHUNK)]
    parallel = joblib.Parallel(n_jobs=jobs if len(items) > FEW else 1, return_as="generator")
    return cast("Iterator[Result]", parallel(joblib.delayed(function)(chunk) for chunk in chunks))
