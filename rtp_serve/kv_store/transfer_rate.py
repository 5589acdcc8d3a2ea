"""How long moving blocks takes, learned from moves: to be compared with computing them again."""

_WEIGHT = 0.2
"""Of the newest observation."""

_FORGET_AFTER = 64

_MIN_HEAD_SHARE = 0.15
"""Of a chain; what is saved is as large a share of the time that moving all of it takes."""


class TransferRate:
    """Seconds for so many blocks, smoothed. What was never seen is taken to be free: it is tried.

    So is what was too slow for a number of questions: whatever made it slow may be over.
    """

    def __init__(self) -> None:
        self._block_s: float | None = None
        self._num_declined = 0

    def is_worth(self, num_blocks: int, recompute_s: float) -> bool:
        """Whether moving so many blocks is quicker than `recompute_s`; 0 there is not known."""
        if self._block_s is None or not recompute_s:
            return True
        if self._block_s * num_blocks < recompute_s:
            self._num_declined = 0
            return True
        self._num_declined += 1
        if self._num_declined >= _FORGET_AFTER:
            self._block_s, self._num_declined = None, 0
        return False

    def num_to_compute(self, num_blocks: int, recompute_s: float) -> int:
        """How many of so many blocks, the first ones, to compute while the others are moved, so
        that both end together; `recompute_s` is one block's. 0 where that would save little, or is
        not known."""
        if self._block_s is None or not recompute_s:
            return 0
        share = self._block_s / (self._block_s + recompute_s)
        return int(num_blocks * share) if share >= _MIN_HEAD_SHARE else 0

    def observe(self, num_blocks: int, elapsed_s: float) -> None:
        """So many blocks, at least one, took so long, asking for them included."""
        block_s = elapsed_s / num_blocks
        before = self._block_s
        self._block_s = block_s if before is None else before + _WEIGHT * (block_s - before)
