"""What the slabs' headers tell to an index that starts anew.

Of its predecessor no lease is left and no reservation; pins are elsewhere, see `pin_file`. Blocks
are found again if their chain is whole. A slab that was reserved may still be written, so it is
kept back.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rtp_serve.kv_cache.block import BlockHash
from rtp_serve.kv_store.arena import SlabRecord
from rtp_serve.kv_store.slab_header import SlabHeader, SlabMark


@dataclass(frozen=True, slots=True)
class ReadySlab:
    """A slab with a whole block."""

    slab: int
    header: SlabHeader


@dataclass(frozen=True, slots=True)
class SortedSlabs:
    """Every slab of a scan, in one of the three."""

    ready: tuple[ReadySlab, ...]
    """Each after its parent, newer chains before older ones; no key comes twice."""

    unsettled: tuple[SlabRecord, ...]
    free: tuple[int, ...]


def sort_slabs(records: Iterable[SlabRecord], first_generation: int) -> SortedSlabs:
    """`first_generation` is the lowest that the new index gives; what claims to have it is torn."""
    newest: dict[BlockHash, ReadySlab] = {}
    unsettled, free = [], []
    for record in records:
        header = record.header
        if record.mark is SlabMark.EMPTY:
            free.append(record.slab)
        elif header is None or header.generation >= first_generation:
            unsettled.append(SlabRecord(record.slab, SlabMark.TORN, None))
        elif record.mark is SlabMark.RESERVED:
            unsettled.append(record)
        else:
            found = ReadySlab(record.slab, header)
            other = newest.get(header.request.key)
            if other is not None:  # evicted once, and stored again elsewhere
                found, other = sorted((found, other), key=_generation, reverse=True)
                free.append(other.slab)
            newest[header.request.key] = found
    ready = _whole_chains(list(newest.values()))
    free += {each.slab for each in newest.values()} - {each.slab for each in ready}
    return SortedSlabs(ready, tuple(unsettled), tuple(sorted(free)))


def _whole_chains(found: Sequence[ReadySlab]) -> tuple[ReadySlab, ...]:
    """Those whose ancestors are all there, parents first; among siblings, the newest first."""
    by_parent: defaultdict[BlockHash | None, list[ReadySlab]] = defaultdict(list)
    for each in sorted(found, key=_generation):
        by_parent[each.header.request.parent].append(each)
    ready, rest = [], by_parent.pop(None, [])
    while rest:
        ready.append(rest.pop())
        rest += by_parent.pop(ready[-1].header.request.key, [])
    return tuple(ready)


def _generation(slab: ReadySlab) -> int:
    return slab.header.generation
