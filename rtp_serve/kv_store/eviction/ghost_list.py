"""Keys of blocks that were here, as digests, for policies that learn from what comes back."""

from collections import OrderedDict

from rtp_serve.kv_cache.block import BlockHash

DIGEST_BYTES = 8
"""Keys are hashes, so any bytes of theirs are. Keys that share a digest are taken for one another:
among a million, one time in 10⁷."""


class GhostList:
    """Digests in the order in which they came."""

    def __init__(self) -> None:
        self._digests: OrderedDict[bytes, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._digests)

    def __contains__(self, key: BlockHash) -> bool:
        return key[:DIGEST_BYTES] in self._digests

    def push(self, key: BlockHash) -> None:
        """It becomes the newest."""
        digest = key[:DIGEST_BYTES]
        self._digests.pop(digest, None)
        self._digests[digest] = None

    def discard(self, key: BlockHash) -> bool:
        """Whether it was here."""
        digest = key[:DIGEST_BYTES]
        was_here = digest in self._digests
        self._digests.pop(digest, None)
        return was_here

    def drop_oldest(self) -> None:
        self._digests.popitem(last=False)
