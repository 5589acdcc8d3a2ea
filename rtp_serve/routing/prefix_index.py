"""Which holders have which blocks, and how much of a prompt each of them has from its beginning.

`hash → bits of holders`. A prompt is matched in one pass: the set of holders that have all blocks
up to here only shrinks, and whoever drops out at block i has i blocks. (To count blocks that
*somebody* has, and credit them to the holder of the last, would be wrong.)
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from rtp_serve.kv_cache.block import BlockHash
from rtp_serve.native.prefix_match import match_prefix
from rtp_serve.routing.block_stream import BlockDelta, SnapshotPage, StreamOutcome
from rtp_serve.routing.slots import Slots
from rtp_serve.routing.types import Ints


@dataclass(slots=True)
class _Snapshot:
    """Pages that have come so far, and what the holder has said since."""

    version: int
    num_pages: int
    pages: list[tuple[BlockHash, ...]] = field(default_factory=list)
    following: list[BlockDelta] = field(default_factory=list)

    @property
    def end_version(self) -> int:
        return self.following[-1].version if self.following else self.version


@dataclass(slots=True)
class _Stream:
    """What is known of one holder."""

    epoch: int
    version: int = 0
    blocks: dict[BlockHash, None] = field(default_factory=dict)
    """As a set. Python's collector reads sets whole, and passes such dictionaries over."""
    snapshot: _Snapshot | None = None


class PrefixIndex:
    """Of one tier. Its holders have slots in `slots`, which others may share and only they change;
    a holder is forgotten before its slot is freed."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._masks: dict[BlockHash, int] = {}  # no zeros
        self._streams: dict[str, _Stream] = {}
        self._bits = [1 << slot for slot in range(slots.capacity)]  # most blocks have one holder

    def __len__(self) -> int:
        """Different blocks."""
        return len(self._masks)

    def versions(self) -> Iterator[tuple[str, int, int]]:
        """Every holder with its epoch and version."""
        return ((name, each.epoch, each.version) for name, each in self._streams.items())

    def position(self, holder: str) -> tuple[int, int] | None:
        """Its epoch and version; None of one that has said nothing."""
        stream = self._streams.get(holder)
        return (stream.epoch, stream.version) if stream else None

    def blocks(self, holder: str) -> frozenset[BlockHash]:
        """What it has, a copy."""
        stream = self._streams.get(holder)
        return frozenset(stream.blocks) if stream else frozenset()

    def num_blocks(self, holder: str) -> int:
        """How many it has."""
        stream = self._streams.get(holder)
        return len(stream.blocks) if stream else 0

    # -- what holders say --

    def apply(self, delta: BlockDelta) -> StreamOutcome:
        """Follow a holder. After a gap it is believed to have what it had, until its snapshot
        comes; in a new life it has nothing."""
        assert delta.version > delta.base_version, delta
        stream = self._stream(delta.holder, delta.epoch)
        if stream is None:
            return StreamOutcome.STALE
        snapshot = stream.snapshot
        if snapshot is not None and delta.base_version == snapshot.end_version:
            snapshot.following.append(delta)
            return StreamOutcome.PENDING
        if delta.version <= stream.version:
            return StreamOutcome.STALE
        if delta.base_version != stream.version:
            return StreamOutcome.NEEDS_SNAPSHOT
        self._change(delta.holder, stream, delta.added, delta.removed)
        stream.version = delta.version
        return StreamOutcome.APPLIED

    def apply_page(self, page: SnapshotPage) -> StreamOutcome:
        """Collect a snapshot, whose pages come in order; it takes the place of what is known when
        the last one is there."""
        assert 0 <= page.page < page.num_pages, page
        stream = self._stream(page.holder, page.epoch)
        if stream is None or page.version < stream.version:
            return StreamOutcome.STALE
        if not page.page:
            stream.snapshot = _Snapshot(page.version, page.num_pages)
        snapshot = stream.snapshot
        if snapshot is None or page.version < snapshot.version:
            return StreamOutcome.STALE
        if (page.version, page.num_pages, page.page) != (
            snapshot.version,
            snapshot.num_pages,
            len(snapshot.pages),
        ):
            stream.snapshot = None  # a page is missing, or two snapshots are mixed
            return StreamOutcome.NEEDS_SNAPSHOT
        snapshot.pages.append(page.hashes)
        if len(snapshot.pages) < snapshot.num_pages:
            return StreamOutcome.PENDING
        self._take(page.holder, stream, snapshot)
        return StreamOutcome.APPLIED

    def begin(self, holder: str, epoch: int) -> None:
        """It is in this life, and has nothing of the ones before."""
        self._stream(holder, epoch)

    def forget(self, holder: str) -> None:
        """It has nothing any more, and whatever it says is its first word."""
        stream = self._streams.pop(holder, None)
        if stream is not None:
            self._change(holder, stream, (), tuple(stream.blocks))

    def _stream(self, holder: str, epoch: int) -> _Stream | None:
        """None if `epoch` is a life that has ended."""
        stream = self._streams.get(holder)
        if stream is None or epoch > stream.epoch:
            self.forget(holder)
            stream = self._streams[holder] = _Stream(epoch)
        return stream if epoch == stream.epoch else None

    def _take(self, holder: str, stream: _Stream, snapshot: _Snapshot) -> None:
        whole = {key for hashes in snapshot.pages for key in hashes}
        added, removed = tuple(whole - stream.blocks.keys()), tuple(stream.blocks.keys() - whole)
        self._change(holder, stream, added, removed)
        for delta in snapshot.following:
            self._change(holder, stream, delta.added, delta.removed)
        stream.version = snapshot.end_version
        stream.snapshot = None

    def _change(
        self,
        holder: str,
        stream: _Stream,
        added: Sequence[BlockHash],
        removed: Sequence[BlockHash],
    ) -> None:
        slot = self._slots.get(holder)
        assert slot is not None, f"{holder} has no slot"
        bit, masks, blocks = self._bits[slot], self._masks, stream.blocks
        for key in removed:
            if key in blocks:
                del blocks[key]
                mask = masks.pop(key) ^ bit
                if mask:
                    masks[key] = mask
        for key in added:
            if key not in blocks:
                blocks[key] = None
                mask = masks.get(key, 0)
                masks[key] = mask | bit if mask else bit

    # -- what the Master asks --

    def match(
        self, hashes: tuple[BlockHash, ...], assumed: dict[BlockHash, int] | None = None
    ) -> Ints:
        """Blocks that each slot has from the beginning of `hashes`, [slots.size]. `assumed` gives
        bits of slots that count as well."""
        return match_prefix(hashes, self._masks, assumed or {}, self._slots.size)

    def check_invariants(self) -> None:
        masks: dict[BlockHash, int] = {}
        for holder, stream in self._streams.items():
            slot = self._slots.get(holder)
            assert slot is not None, f"{holder} has no slot"
            for key in stream.blocks:
                masks[key] = masks.get(key, 0) | 1 << slot
        assert masks == self._masks, f"{len(masks)} blocks, {len(self._masks)} in the table"
