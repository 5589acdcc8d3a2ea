"""Which blocks have blocks after them, as far as a policy was told.

A policy that knows this does not ask again and again about blocks that cannot go before others did.
"""

from rtp_serve.kv_cache.block import BlockHash


class Families:
    """Blocks and their parents. A parent counts its children even while it is not here itself: of
    blocks that come together, it comes after them."""

    def __init__(self) -> None:
        self._parents: dict[BlockHash, BlockHash | None] = {}
        self._num_children: dict[BlockHash, int] = {}

    def __len__(self) -> int:
        return len(self._parents)

    def __contains__(self, key: BlockHash) -> bool:
        return key in self._parents

    def add(self, key: BlockHash, parent: BlockHash | None) -> None:
        assert key not in self._parents, f"{key.hex()} was inserted twice"
        self._parents[key] = parent
        if parent is not None:
            self._num_children[parent] = self._num_children.get(parent, 0) + 1

    def remove(self, key: BlockHash) -> BlockHash | None:
        """The parent, if it has no other child; it may not be here."""
        parent = self._parents.pop(key)
        if parent is None:
            return None
        self._num_children[parent] -= 1
        if self._num_children[parent]:
            return None
        del self._num_children[parent]
        return parent

    def has_children(self, key: BlockHash) -> bool:
        return key in self._num_children

    def check_invariants(self) -> None:
        counts: dict[BlockHash, int] = {}
        for parent in self._parents.values():
            if parent is not None:
                counts[parent] = counts.get(parent, 0) + 1
        assert counts == self._num_children, f"children are {counts}"
