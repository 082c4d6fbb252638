"""Seeds for one purpose, from the one that the user gave: stage-local randomness never shares a stream."""

import hashlib


def derive_seed(seed: int, purpose: str, index: int = 0) -> int:
    """A number in [0, 2**63) that depends on (seed, purpose, index) alone."""
    digest = hashlib.sha256(f"{seed}\0{purpose}\0{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
