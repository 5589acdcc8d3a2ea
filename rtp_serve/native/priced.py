"""The costs of the policy `priced`, whose module has their formula, in one pass."""

from typing import NamedTuple

from rtp_kernels import _C
from rtp_serve.native.worker_numbers import Floats, Ints


class Prices(NamedTuple):
    """Of work that was not necessary: by the shortest line of all, by a worker's own, and by what
    decodes there."""

    fleet: float
    queue: float
    decode: float


class Workloads(NamedTuple):
    """Of candidates, [num_candidates] each, contiguous and not empty."""

    wait_s: Floats
    prefill_s: Floats
    load_s: Floats
    num_decoding: Ints
    crowds: Floats
    """Waits ÷ the mean prefill time, to the queue's power."""
    free_fraction: Floats


def priced(costs: Floats, workloads: Workloads, mean_s: float, prices: Prices) -> list[int]:
    """Fill `costs` [num_candidates] and name the least, in ascending order: of all that are within
    a nanosecond of it, those with the most free blocks. `mean_s` is the mean prefill time.

    Raises ValueError for unequal lengths, TypeError for other elements.
    """
    return _C.priced(costs, *workloads, mean_s, *prices)
