"""Counter-based random numbers in numpy: Philox4x32-10 (Salmon et al., 2011)."""

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 10
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_KEY_STEPS = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)

Words = NDArray[np.uint64]
"""32-bit words, each in 64 bits so that products keep their high half."""


def uniforms(seeds: NDArray[np.uint64], positions: NDArray[np.int64]) -> NDArray[np.float64]:
    position = positions.astype(np.uint64)
    zero = np.zeros_like(position)
    counter = (position & _LOW, position >> _HALF, zero, zero)
    first, second, _, _ = philox(counter, (seeds & _LOW, seeds >> _HALF))
    bits = (first << _HALF | second) >> np.uint64(11)
    return bits.astype(np.float64) * 2.0**-53


def philox(
    counter: tuple[Words, Words, Words, Words], key: tuple[Words, Words]
) -> tuple[Words, Words, Words, Words]:
    """Four random words for each counter under its key. All arrays [n]."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        low_product, high_product = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (high_product >> _HALF) ^ c1 ^ k0,
            high_product & _LOW,
            (low_product >> _HALF) ^ c3 ^ k1,
            low_product & _LOW,
        )
        k0, k1 = (k0 + _KEY_STEPS[0]) & _LOW, (k1 + _KEY_STEPS[1]) & _LOW
    return c0, c1, c2, c3
