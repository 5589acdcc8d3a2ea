"""Ranks that load one checkpoint together: each file is read by one of them, and given to all.

    rank 0   wants ─┬─ meet ─┬─ reads files 0, W, 2 W …    ─┬─ each read goes to all ─┬─ meet
    rank 1   wants ─┘        └─ reads files 1, W + 1 …      ┘                         ┘

Ranks are threads of one process here, so giving is letting the other rank's collectors take rows
from the reader's buffer; other threads read on meanwhile. An error of any rank ends all of them:
who waits is woken, who reads stops at its next read, and nobody hangs.
"""

import threading
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Self

from rtp_serve.errors import CheckpointError
from rtp_serve.loader.identity import ContentDigest
from rtp_serve.loader.read_plan import Read
from rtp_serve.loader.reader import Deliver

RowsByName = Mapping[str, tuple[int, int]]
"""Tensor → the rows of it that are wanted, [begin, end)."""


def hull(wanted: Iterable[RowsByName]) -> RowsByName:
    """Of each tensor the rows from the first that anybody wants to the last."""
    found: dict[str, tuple[int, int]] = {}
    for rows_by_name in wanted:
        for name, (begin, end) in rows_by_name.items():
            first, last = found.get(name, (begin, end))
            found[name] = min(first, begin), max(last, end)
    return found


class RankGroup:
    """Made once for a load; every rank takes its own member to its own thread."""

    def __init__(self, world_size: int) -> None:
        assert world_size > 0, f"{world_size} ranks"
        self._world_size = world_size
        self._meeting = threading.Barrier(world_size)
        self._lock = threading.Lock()
        self._wanted: dict[int, RowsByName] = {}
        self._deliver: dict[int, Deliver] = {}
        self._error: tuple[int, BaseException] | None = None
        self.digest = ContentDigest()
        """Of what all ranks have read."""

    def member(self, rank: int) -> "Member":
        assert 0 <= rank < self._world_size, f"rank {rank} of {self._world_size}"
        return Member(self, rank)

    def join(self, rank: int, wanted: RowsByName, deliver: Deliver) -> RowsByName:
        """Wait for all ranks; what any of them wants. The same on every rank."""
        with self._lock:
            assert rank not in self._wanted, f"rank {rank} has joined already"
            self._wanted[rank], self._deliver[rank] = wanted, deliver
        self.meet()
        return hull(self._wanted.values())

    def deliver(self, read: Read, data: memoryview) -> None:
        """To every rank."""
        self.check()
        for deliver in self._deliver.values():
            deliver(read, data)

    def own(self, rank: int, reads: Sequence[Read]) -> list[Read]:
        """Of reads sorted by file, those of every file whose number is the rank's."""
        numbers = {file: number for number, file in enumerate(dict.fromkeys(r.file for r in reads))}
        return [read for read in reads if numbers[read.file] % self._world_size == rank]

    def meet(self) -> None:
        """Wait for all ranks. Raises CheckpointError once any of them has failed."""
        try:
            self._meeting.wait()
        except threading.BrokenBarrierError:
            self.check()
            raise

    def fail(self, rank: int, error: BaseException) -> None:
        """End the load of every rank; the first error is the one that they are told."""
        with self._lock:
            self._error = self._error or (rank, error)
        self._meeting.abort()

    def check(self) -> None:
        """Raise CheckpointError if a rank has failed."""
        if self._error is not None:
            rank, error = self._error
            raise CheckpointError(f"rank {rank} could not load its files: {error}") from error


class Member:
    """One rank's part in a group, for the length of its `with` block.

    An error that leaves the block is every rank's.
    """

    def __init__(self, group: RankGroup, rank: int) -> None:
        self.group = group
        self.rank = rank

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            self.group.fail(self.rank, error)
