"""Streams over replicas that come and go.

    request ─► journal ─► attempt 1 at some replica ─► deltas ─► client
                 │            ✗ the replica is lost
                 └─ the rest ─► attempt 2 at another one ─► deltas ─► client

An attempt is lost once a replica had taken it, and refused before. Losses are bounded by number;
the search for a replica that takes the rest, by time. From a replica that Serve withdraws a stream
moves when another one has taken its rest, and not before (`deployments/stream_run.py`).
"""

from collections.abc import AsyncGenerator

from deployments.attempt import AttemptStarter
from deployments.master.client import MasterClient
from deployments.replica_search import ReplicaSearch, StreamLimits
from deployments.resumption_figures import ResumptionFigures
from deployments.role_pool import RolePool
from deployments.stream_run import StreamRun
from deployments.token_stream.listener import TokenListener
from rtp_serve.engine.request import Request, SequenceDelta


class StreamRunner:
    """Runs requests on the replicas of a pool; belongs to one event loop."""

    def __init__(
        self,
        replicas: RolePool,
        listener: TokenListener,
        limits: StreamLimits,
        figures: ResumptionFigures,
        master: MasterClient | None = None,
    ) -> None:
        """Without `master` Serve chooses the replicas."""
        self._limits = limits
        self._figures = figures
        self._attempts = AttemptStarter(replicas, listener, master)
        self._replicas = replicas

    @property
    def num_calls(self) -> int:
        """Control calls that are open."""
        return self._attempts.num_calls

    def generate(self, request: Request) -> AsyncGenerator[SequenceDelta, None]:
        """See EngineClient: the deltas of one uninterrupted request, whatever happens between."""
        search = ReplicaSearch(self._limits, self._figures)
        return StreamRun(request, self._attempts, search, self._replicas).deltas()
