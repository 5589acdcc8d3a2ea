"""How much of a prompt each holder has from its beginning, in one call."""

from typing import TypeVar

import numpy as np

from rtp_kernels import _C
from rtp_serve.native.worker_numbers import Ints

Key = TypeVar("Key", bound=bytes)


def match_prefix(
    hashes: tuple[Key, ...], held: dict[Key, int], assumed: dict[Key, int], num_slots: int
) -> Ints:
    """Blocks that each slot has from the beginning of `hashes`, [num_slots]. Bit i of a number in
    `held` or `assumed` is the holder at slot i. Raises ValueError or OverflowError for a bit that
    is no slot."""
    lengths: Ints = np.zeros(num_slots, np.int64)
    _C.match_prefix(lengths, hashes, held, assumed)
    return lengths
