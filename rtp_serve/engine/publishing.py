"""Tells who wants a prompt's keys and values when they are there, layer by layer.

    step:   layers 0‥3 ─► tell   layers 4‥7 ─► tell   …   last layers ─► tell    sample
                          blocks of this step's chunk, these layers

What was told is held until the publication ends, whatever becomes of its sequence: nobody writes to
these blocks meanwhile, for a prompt's keys and values never change.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from rtp_serve.engine.sequence import Sequence as TokenSequence
from rtp_serve.kv_cache.block_pool import BlockPool

_MIN_TOKENS_PER_GROUP = 64
"""A step of fewer is over so soon that a word for each group would cost more than it saves."""


class PublicationSink(Protocol):
    """Who wants a prompt's keys and values."""

    max_groups: int
    """In so many groups layers are told in a step, at most: the last one's copy is what is
    exposed."""

    def ready(self, first: int, block_ids: Sequence[int], layers: range) -> None:
        """Blocks `first`, first + 1, … of the chain are in these blocks of the device, for these
        layers. Called on the engine's thread, within steps; must return at once.

        Each block comes once for each layer, and each block is the same for all layers.
        """
        ...


@dataclass(slots=True, eq=False)
class _Publication:
    sink: PublicationSink
    block_ids: list[int] = field(default_factory=list)
    """Of the chain, held: those told, or about to be in this step."""


@dataclass(slots=True)
class _Part:
    """What a step adds to a publication."""

    publication: _Publication
    first: int
    block_ids: tuple[int, ...]


class Publishing:
    """The publications of one engine; for its thread."""

    def __init__(self, pool: BlockPool, num_layers: int, block_size: int) -> None:
        self._pool = pool
        self._num_layers = num_layers
        self._block_size = block_size
        self._publications: dict[str, _Publication] = {}
        self._parts: list[_Part] = []
        self._num_told = 0

    @property
    def is_asked(self) -> bool:
        """Whether anything is published at all."""
        return bool(self._publications)

    @property
    def is_active(self) -> bool:
        """Whether blocks are held for anybody."""
        return any(each.block_ids for each in self._publications.values())

    def begin(self, request_id: str, sink: PublicationSink) -> None:
        """Publish the prompt of a request, which has one sequence and is yet to be added."""
        assert request_id not in self._publications, f"{request_id!r} is published"
        self._publications[request_id] = _Publication(sink)

    def end(self, request_id: str) -> None:
        """Tell and hold nothing of it any more; unknown ones are ignored. Between steps."""
        publication = self._publications.pop(request_id, None)
        if publication is not None:
            self._pool.release(publication.block_ids)

    def begin_step(self, rows: Iterable[tuple[TokenSequence, int]]) -> int:
        """A step computes these sequences up to so many tokens. Returns after how many layers each
        it is to be told, or 0."""
        self._parts, self._num_told = [], 0
        num_tokens = 0
        for seq, end in rows:
            publication = self._publications.get(seq.request.request_id)
            if publication is None:
                continue
            num_tokens += end - seq.num_computed_tokens
            self._add_part(publication, seq, min(end, seq.num_prompt_tokens))
        if not self._parts:
            return 0
        wanted = max(part.publication.sink.max_groups for part in self._parts)
        num_groups = max(1, min(wanted, num_tokens // _MIN_TOKENS_PER_GROUP))
        return -(-self._num_layers // num_groups)

    def tell(self, num_layers: int) -> None:
        """The step's keys and values of the first so many layers are written."""
        layers = range(self._num_told, num_layers)
        self._num_told = max(self._num_told, num_layers)
        if layers:
            for part in self._parts:
                part.publication.sink.ready(part.first, part.block_ids, layers)

    def end_step(self) -> None:
        """It has run, in whatever way: what was not told is there now."""
        if not self._parts:
            return
        self.tell(self._num_layers)
        self._parts = []

    def holders(self) -> Counter[int]:
        """Every block that is held, and how often. For tests and idle debug runs."""
        held: Counter[int] = Counter()
        for each in self._publications.values():
            held.update(each.block_ids)
        return held

    def _add_part(self, publication: _Publication, seq: TokenSequence, num_tokens: int) -> None:
        """The last block of a prompt is told as it is, others once they are full."""
        is_whole = num_tokens == seq.num_prompt_tokens
        num_blocks = (
            -(-num_tokens // self._block_size) if is_whole else num_tokens // self._block_size
        )
        first = len(publication.block_ids)
        block_ids = tuple(seq.block_ids[first:num_blocks])
        if block_ids:
            self._pool.hold(block_ids)
            publication.block_ids += block_ids
            self._parts.append(_Part(publication, first, block_ids))
