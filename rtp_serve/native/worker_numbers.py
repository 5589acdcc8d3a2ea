"""What a request would take at each worker, in one pass over columns with one element a worker."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from rtp_kernels import _C

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class WorkerColumns(NamedTuple):
    """[max_slots] each, contiguous. Whoever has them writes to them in place."""

    num_blocks: Ints
    num_free_blocks: Ints
    reserved_blocks: Ints
    num_in_flight: Ints
    num_decoding: Ints
    pending_s: Floats
    """Predicted for what waits, the first in line included."""
    head_s: Floats
    """Predicted for that one."""
    head_start_s: Floats
    base_s: Floats
    """Of a prefill; what comes for each token, and for each that another one reads."""
    token_s: Floats
    attention_s: Floats


class Numbers(NamedTuple):
    """Of the workers that were asked for, [num_slots] each."""

    wait_s: Floats
    prefill_s: Floats
    free_fraction: Floats
    num_cached_tokens: Ints
    num_in_flight: Ints
    num_decoding: Ints
    most_cached_tokens: int
    """That any of them has."""


class WorkerNumbers:
    """Array operations of a few elements take a microsecond each, and a decision needs forty of
    them; the numbers are theirs, bit for bit. Each call reads the columns as they are then."""

    def __init__(self, columns: WorkerColumns) -> None:
        """Raises TypeError for other elements, BufferError for another layout, ValueError for
        unequal lengths."""
        self._kernel = _C.WorkerNumbers(*columns)

    def free_blocks(self, slots: Ints, demand: int) -> tuple[Ints, int]:
        """Blocks neither held nor promised, [num_slots], and how many slots have `demand` of them.
        Raises ValueError for a slot that is not there."""
        free: Ints = np.empty(len(slots), np.int64)
        return free, self._kernel.free_blocks(free, slots, demand)

    def of(
        self,
        slots: Ints,
        free_blocks: Ints,
        cached_blocks: Ints,
        num_tokens: int,
        block_size: int,
        now: float,
    ) -> Numbers:
        """Of a prompt of `num_tokens`, whose first `cached_blocks` [slots of the fleet] are on a
        worker's device. `free_blocks` is what `free_blocks` gave for these slots. Raises ValueError
        for a slot that is not there."""
        floats, ints = np.empty((3, len(slots))), np.empty((3, len(slots)), np.int64)
        most = self._kernel.of(
            floats, ints, slots, free_blocks, cached_blocks, num_tokens, block_size, now
        )
        wait_s, prefill_s, free_fraction = floats
        cached, in_flight, decoding = ints
        return Numbers(wait_s, prefill_s, free_fraction, cached, in_flight, decoding, most)
