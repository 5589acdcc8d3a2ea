"""Which worker decodes what another one has prefilled.

Memory decides: a sequence that finds none preempts others. What it will need is reserved with the
choice, so two requests that come at once do not count on the same blocks.
"""

import numpy as np

from rtp_serve.routing.types import Floats, Ints


def choose_decode(
    slots: Ints,
    free_blocks: Ints,
    num_blocks: Ints,
    itl_s: Floats,
    demand: int,
    itl_target_s: float,
) -> int | None:
    """The slot that keeps the largest part of its blocks free, among those that keep the ITL target
    if there are any; None if `demand` blocks fit nowhere. Arrays are [num_slots]."""
    fitting = np.flatnonzero(free_blocks >= demand)
    if not len(fitting):
        return None
    keeping = fitting[itl_s[fitting] <= itl_target_s]
    found = keeping if len(keeping) else fitting
    free = (free_blocks[found] - demand) / np.maximum(num_blocks[found], 1)
    return int(slots[found[free.argmax()]])
