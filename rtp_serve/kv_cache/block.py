"""Identity of a KV block: a hash chained over everything that determines its content."""

from collections.abc import Sequence
from hashlib import blake2b
from typing import NamedTuple, NewType

import numpy as np

BlockHash = NewType("BlockHash", bytes)
"""32 bytes. Positional by construction: it covers the hash of the block before it."""

_DIGEST_SIZE = 32
_SOME_ROOT = BlockHash(bytes(_DIGEST_SIZE))


class BlockContent(NamedTuple):
    """What a block has keys and values of: tokens after a chain."""

    parent: BlockHash
    """Hash of the block before it; of a first block, the root."""

    token_ids: tuple[int, ...]
    """From the block's beginning: `block_size` of them, or fewer of a partial block; none of one
    whose tokens nobody here knows."""

    is_first: bool


def root_hash(namespace: bytes, salt: str) -> BlockHash:
    """The parent of every first block: what computes (namespace) and who may share (salt).

    Any string is a salt, a lone surrogate (valid in JSON) included.
    """
    return BlockHash(_digest(b"root", namespace, salt.encode("utf-8", "surrogatepass")))


def chain_hash(parent: BlockHash, token_ids: Sequence[int], extras: bytes = b"") -> BlockHash:
    """Hash of the block that holds `token_ids` after `parent`. `extras` is non-token content."""
    return BlockHash(_digest(parent, np.asarray(token_ids, "<i4").tobytes(), extras))


def chain_hashes(
    root: BlockHash, token_ids: Sequence[int], block_size: int
) -> tuple[BlockHash, ...]:
    """Hashes of all full blocks of a sequence after `root`, from its beginning."""
    hashes: list[BlockHash] = []
    for end in range(block_size, len(token_ids) + 1, block_size):
        parent = hashes[-1] if hashes else root
        hashes.append(chain_hash(parent, token_ids[end - block_size : end]))
    return tuple(hashes)


def unread_content(chain: Sequence[BlockHash], index: int) -> BlockContent:
    """Of a block of which its chain's hashes alone are known: without tokens, it is no donor."""
    return BlockContent(chain[index - 1] if index else _SOME_ROOT, (), is_first=index == 0)


def _digest(*parts: bytes) -> bytes:
    """BLAKE2b over length-framed parts, so that no two lists of parts read alike."""
    state = blake2b(digest_size=_DIGEST_SIZE)
    for part in parts:
        state.update(len(part).to_bytes(8, "little"))
        state.update(part)
    return state.digest()
