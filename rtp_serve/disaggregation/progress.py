"""Which layers of which blocks have come, of those that a decode replica has reserved."""

from collections.abc import Sequence
from itertools import groupby

from rtp_serve.disaggregation.protocol import Span


class Progress:
    """Blocks are named by their index in the prompt's chain; layers of a block are a bit mask."""

    def __init__(self, first_block: int, block_ids: tuple[int, ...], num_layers: int) -> None:
        self._first = first_block
        self._target_ids = block_ids
        self._num_layers = num_layers
        self._all = (1 << num_layers) - 1
        self._done = [0] * len(block_ids)
        self._requested = [0] * len(block_ids)
        self._source_first = 0
        self._source_ids: list[int] = []

    @property
    def num_complete(self) -> int:
        """Of the reserved blocks, from the first on."""
        done = self._done
        return next((i for i, mask in enumerate(done) if mask != self._all), len(done))

    @property
    def num_present(self) -> int:
        """Of the chain, from its beginning."""
        return self._first + self.num_complete

    @property
    def is_complete(self) -> bool:
        return self.num_complete == len(self._target_ids)

    def begin_attempt(self) -> None:
        """Forget what is not complete: layers of one block are to be one replica's arithmetic."""
        num_kept = self.num_complete
        num_left = len(self._target_ids) - num_kept
        self._done = [self._all] * num_kept + [0] * num_left
        self._requested = list(self._done)
        self._source_ids = []

    def add_source(self, first_block: int, block_ids: Sequence[int]) -> bool:
        """False if there would be a gap."""
        if not self._source_ids:
            self._source_first = first_block
            self._source_ids = list(block_ids)
            return 0 <= first_block <= self.num_present and bool(block_ids)
        offset = first_block - self._source_first
        if not 0 <= offset <= len(self._source_ids):
            return False
        known = self._source_ids[offset : offset + len(block_ids)]
        if known != list(block_ids[: len(known)]):
            return False  # a block has one place
        self._source_ids += block_ids[len(known) :]
        return True

    def is_known(self, blocks: Span, layers: Span) -> bool:
        """Whether the peer has said where these are, and they can be."""
        end = self._source_first + len(self._source_ids)
        return (
            self._source_first <= blocks[0] < blocks[1] <= end
            and 0 <= layers[0] < layers[1] <= self._num_layers
        )

    def request(self, blocks: Span, layers: Span) -> list[tuple[Span, Span]]:
        """Of these what is reserved and was not requested yet: (blocks, layers), each once.

        Never anything twice: a second copy could spoil what is complete, and then prove invalid.
        """
        begin = max(blocks[0], self._first)
        end = min(blocks[1], self._first + len(self._target_ids))
        pieces: list[tuple[Span, Span]] = []
        wanted = _mask(layers)
        for lacking, group in groupby(range(begin, end), lambda block: self._lacks(block, wanted)):
            same = list(group)
            span = same[0], same[-1] + 1
            pieces += [(span, run) for run in _runs(lacking)]
        for place in range(begin - self._first, end - self._first):
            self._requested[place] |= wanted
        return pieces

    def _lacks(self, block: int, wanted: int) -> int:
        return wanted & ~self._requested[block - self._first]

    def block_ids(self, blocks: Span) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """There and here."""
        begin, end = blocks
        first = self._source_first
        sources = tuple(self._source_ids[begin - first : end - first])
        return sources, self._target_ids[begin - self._first : end - self._first]

    def complete(self, blocks: Span, layers: Span) -> None:
        mask = _mask(layers)
        for place in range(blocks[0] - self._first, blocks[1] - self._first):
            self._done[place] |= mask


def _mask(layers: Span) -> int:
    return (1 << layers[1]) - (1 << layers[0])


def _runs(mask: int) -> list[Span]:
    """The layers of a mask, as ranges."""
    runs: list[Span] = []
    while mask:
        begin = (mask & -mask).bit_length() - 1
        length = (~(mask >> begin) & ((mask >> begin) + 1)).bit_length() - 1
        runs.append((begin, begin + length))
        mask &= ~_mask(runs[-1])
    return runs
