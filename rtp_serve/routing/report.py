"""What a worker sends to the Master, and who makes it.

engine ──notes──► Reporter ──take, every 50 ms at most──► WorkerReport ──► Master
                     ▲                                                       │
                     └─────────────── send_all, after a gap ─────────────────┘
"""

from dataclasses import dataclass
from typing import Protocol

from rtp_serve.routing.block_stream import BlockDelta, SnapshotPage
from rtp_serve.routing.types import Role, WorkerId, WorkerStatus


@dataclass(frozen=True, slots=True)
class WorkerReport:
    """What a worker sends at one time: blocks first, its own and its store's, then status."""

    deltas: tuple[BlockDelta, ...]

    pages: tuple[SnapshotPage, ...]
    """Of one snapshot a holder, all of them and in order; there are no deltas of it beside them."""

    status: WorkerStatus


@dataclass(frozen=True, slots=True)
class WorkerIdentity:
    """As whom an engine reports."""

    worker_id: WorkerId

    epoch: int
    """Another number in each life of the worker, and a higher one."""

    role: Role

    node_id: str

    store: str = ""
    """Name of the tiers below the device that it shares with others; empty if it has none."""


class Reporter(Protocol):
    """One engine's. Reports are taken by one thread at a time, any."""

    def take(self) -> WorkerReport:
        """All since the last call. It waits for no step."""
        ...

    def send_all(self) -> None:
        """The Master has a gap or has restarted, or a report could not be delivered: the next one
        brings pages of a snapshot in place of deltas."""
        ...

    @property
    def has_news(self) -> bool:
        """Whether a report would say anything that the last did not: of blocks, of requests that
        came, got their first token or ended. Load alone is no news."""
        ...
