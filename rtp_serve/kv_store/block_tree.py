"""The blocks that can be found by key, each under the block before it.

A block is never here without its parent: what is taken out takes along all that comes after it,
since no chain could reach it any more.
"""

from collections.abc import Iterable, Iterator

from rtp_serve.kv_cache.block import BlockHash
from rtp_serve.kv_store.block import Block, BlockState


class BlockTree:
    """RESERVED and READY blocks."""

    def __init__(self) -> None:
        self._blocks: dict[int, Block] = {}
        self._generations: dict[BlockHash, int] = {}

    def __len__(self) -> int:
        return len(self._blocks)

    def __iter__(self) -> Iterator[Block]:
        return iter(self._blocks.values())

    def find(self, key: BlockHash) -> Block | None:
        generation = self._generations.get(key)
        return None if generation is None else self._blocks[generation]

    def of_generation(self, generation: int) -> Block | None:
        return self._blocks.get(generation)

    def ready_prefix(self, chain: Iterable[BlockHash]) -> list[Block]:
        """The READY blocks of a chain, from its beginning to the first that is not."""
        found: list[Block] = []
        for generation in map(self._generations.get, chain):
            if generation is None:
                break
            block = self._blocks[generation]
            if block.state is not BlockState.READY:
                break
            found.append(block)
        return found

    def add(self, block: Block) -> None:
        """Its parent is here, its key is not."""
        assert block.key not in self._generations, f"{block} has a key that is here"
        assert block.generation not in self._blocks, f"{block} has a generation that is here"
        if block.parent is not None:
            self._blocks[block.parent].children.add(block.generation)
        self._blocks[block.generation] = block
        self._generations[block.key] = block.generation

    def take(self, block: Block) -> list[Block]:
        """Take out a block and all that comes after it: these, each before its parent."""
        if block.parent is not None:
            self._blocks[block.parent].children.discard(block.generation)
        taken = [block]
        for each in taken:  # grows meanwhile
            taken.extend(self._blocks[child] for child in each.children)
            each.children.clear()
            del self._blocks[each.generation]
            del self._generations[each.key]
        taken.reverse()
        return taken

    def check_invariants(self) -> None:
        keys = {block.key: block.generation for block in self}
        assert keys == self._generations, "keys and blocks disagree"
        for generation, block in self._blocks.items():
            assert block.generation == generation, f"{block} is filed under {generation}"
            assert block.state is not BlockState.EVICTING, f"{block} can still be found"
            children = {each.generation for each in self if each.parent == generation}
            assert children == block.children, f"children of {block} are {children}"
            assert block.parent is None or block.parent in self._blocks, f"{block} has no parent"
