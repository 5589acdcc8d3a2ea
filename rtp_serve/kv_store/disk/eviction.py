"""Which blocks are kept when their segment goes: those that were used since they were written.

Segments go in the order in which they came, and a block that was found gets a second chance: it is
written again at the end of the log, as one that nobody has used yet. So what nobody asks for is
gone after one round, and little else is written twice. An order over single blocks, which an
`EvictionPolicy` gives, would leave holes in all segments, and most of a segment would have to be
written again for each of its holes.

Whoever finds a block has found those before it, so these have at least as many uses.
"""

from collections.abc import Callable, Iterable

from rtp_serve.kv_store.disk.record import Record


def survivors(
    records: Iterable[Record], uses: Callable[[Record], int], max_bytes: int
) -> list[Record]:
    """The most used ones, at most `max_bytes` of them; in the order in which they lie."""
    kept: list[Record] = []
    used = [record for record in records if uses(record)]
    for record in sorted(used, key=uses, reverse=True):  # stable: blocks before those after them
        max_bytes -= record.location.record_bytes
        if max_bytes < 0:
            break
        kept.append(record)
    return sorted(kept, key=lambda record: record.location.offset)
