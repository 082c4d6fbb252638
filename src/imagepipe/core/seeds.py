"""Seeds for one purpose, from the one that the user gave: stage-local randomness never shares a stream."""

import hashlib

import numpy as np
from numpy.typing import NDArray


def derive_seed(seed: int, purpose: str, index: int = 0) -> int:
    """A number in [0, 2**63) that depends on (seed, purpose, index) alone."""
    digest = hashlib.sha256(f"{seed}\0{purpose}\0{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser, elementwise (Steele, Lea, Flood: Fast splittable pseudorandom generators, 2014)."""
    mixed = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def hash_positions(positions: NDArray[np.int64], stream: int) -> NDArray[np.uint64]:
    """64 random bits for each position, from the `stream` (0 to 2**64 - 1) and the position alone."""
    return mix(mix(positions.astype(np.uint64) + np.uint64(stream)))


def draw_uniform(positions: NDArray[np.int64], stream: int, count: int) -> NDArray[np.float64]:
    """`count` numbers in [0, 1) for each position, float64 (N, count), from the `stream` and the position alone.

    Each position begins a SplitMix64 sequence at its hash; a larger `count` continues it.
    """
    steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    bits = mix(hash_positions(positions, stream)[:, None] + steps)
    return (bits >> np.uint64(11)).astype(np.float64) / 2**53
