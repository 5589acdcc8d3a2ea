"""Counter-based random numbers: Philox4x32-10 (Salmon et al., 2011), the same on every machine.

There is no state. The number of a position is a function of the sequence's seed and the position,
so it does not matter in which batch, on which replica or how often the position is sampled.
"""

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 10
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_KEY_STEPS = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)

Words = NDArray[np.uint64]
"""32-bit words, each in 64 bits so that products keep their high half."""


def uniforms(seeds: NDArray[np.uint64], positions: NDArray[np.integer]) -> NDArray[np.float64]:
    """[n], float64 in [0, 1) with 53 random bits: one for each (seed, position).

    A position is the token's index in prompt plus output.
    """
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
