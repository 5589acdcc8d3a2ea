"""Blocks by what they begin with: which one has most of the tokens that come next in a prompt.

The blocks after one parent are kept in the order of their token ids. So the one that shares the
longest beginning with other tokens stands next to where those would stand.
"""

from bisect import bisect_left, insort
from typing import NamedTuple

from rtp_serve.kv_cache.block import BlockContent, BlockHash


class Donor(NamedTuple):
    """A block whose first tokens are those that are wanted."""

    block_id: int
    num_tokens: int
    """How many, at least one."""


class DonorIndex:
    """Blocks whose keys and values are there; partial ones and full ones alike."""

    def __init__(self) -> None:
        # parent → (token ids, block id), ascending
        self._by_parent: dict[BlockHash, list[tuple[tuple[int, ...], int]]] = {}

    def add(self, block_id: int, content: BlockContent) -> None:
        insort(self._by_parent.setdefault(content.parent, []), (content.token_ids, block_id))

    def remove(self, block_id: int, content: BlockContent) -> None:
        """Forget a block that was added with this content."""
        entries = self._by_parent[content.parent]
        place = bisect_left(entries, (content.token_ids, block_id))
        assert entries[place] == (content.token_ids, block_id), f"block {block_id} is not here"
        del entries[place]
        if not entries:
            del self._by_parent[content.parent]

    def find(self, parent: BlockHash, token_ids: tuple[int, ...]) -> Donor | None:
        """The block after `parent` that shares most of the beginning of `token_ids`, if any."""
        entries = self._by_parent.get(parent)
        if entries is None:
            return None
        # Before every block that holds just these.
        place = bisect_left(entries, (token_ids, 0))
        best: Donor | None = None
        for held_ids, block_id in entries[max(0, place - 1) : place + 1]:
            num_tokens = _num_common(held_ids, token_ids)
            if num_tokens > (best.num_tokens if best else 0):
                best = Donor(block_id, num_tokens)
        return best

    def check_invariants(self, contents: dict[int, BlockContent]) -> None:
        """Compare with what the blocks say of themselves (id → content)."""
        held = {
            (parent, *entry) for parent, entries in self._by_parent.items() for entry in entries
        }
        expected = {(each.parent, each.token_ids, i) for i, each in contents.items()}
        assert held == expected, "donor index and blocks disagree"
        for entries in self._by_parent.values():
            assert entries, "a parent without blocks is kept"
            assert entries == sorted(entries), "blocks are out of order"


def _num_common(first: tuple[int, ...], second: tuple[int, ...]) -> int:
    count = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        count += 1
    return count
