"""What an engine tells the Master: it notes, and whoever reports takes what was noted.

    engine's thread, submit, abort ──notes──► BlockChanges, RequestLog ◄──take── any thread

Neither waits for the other longer than a container takes to be swapped, or a snapshot to be copied.
"""

from collections.abc import Mapping

from rtp_serve.engine.output import SchedulerOutput
from rtp_serve.engine.prefill_times import PrefillTimes
from rtp_serve.engine.request_log import RequestLog
from rtp_serve.engine.sequence import Sequence
from rtp_serve.kv_cache.block_changes import BlockChanges
from rtp_serve.kv_cache.block_pool import BlockPool
from rtp_serve.routing.block_stream import BlockDelta
from rtp_serve.routing.block_teller import BlockTeller
from rtp_serve.routing.report import WorkerIdentity, WorkerReport
from rtp_serve.routing.types import PrefillPoint, WorkerStatus

_ITL_WEIGHT = 0.1
"""Of the newest step."""

_MIN_WAITING_CHANGES = 256


class EngineReporter:
    """A Reporter of one engine, from between two of its steps on."""

    def __init__(
        self,
        identity: WorkerIdentity,
        pool: BlockPool,
        self_benchmark: tuple[PrefillPoint, ...] = (),
    ) -> None:
        """Watches `pool`. Requests that were submitted before are not told of."""
        self.requests = RequestLog()
        """Kept by whoever submits them and hears of their ends."""

        self._identity = identity
        self._pool = pool
        self._self_benchmark = self_benchmark
        # With more changes than that, a snapshot is not much longer.
        max_waiting = max(_MIN_WAITING_CHANGES, pool.num_usable // 2)
        self._blocks = BlockChanges(pool.hashes(), max_waiting)
        pool.watch(self._blocks.note)
        self._teller = BlockTeller(identity.worker_id, identity.epoch)
        self._prefills = PrefillTimes()
        self._last_step_s: float | None = None
        self._itl_s = 0.0

    # -- for the engine's thread --

    def settle(self) -> None:
        """Between steps: what can be found in the pool is true."""
        self._blocks.settle()

    def stepped(
        self,
        scheduled: SchedulerOutput,
        seqs: Mapping[int, Sequence],
        started_s: float,
        ended_s: float,
    ) -> None:
        """A step has run and its sequences have its tokens; none of them is forgotten yet."""
        self.settle()  # before first tokens: who hears of those looks for the blocks
        first_tokens = self._prefills.stepped(scheduled, seqs, ended_s - started_s)
        num_prefills = len(self._prefills) + len(first_tokens)
        if len(scheduled.seq_ids) > num_prefills and self._last_step_s is not None:
            gap_s = ended_s - self._last_step_s  # who decodes got the token before in that step
            weight = _ITL_WEIGHT if self._itl_s else 1.0
            self._itl_s += weight * (gap_s - self._itl_s)
        self._last_step_s = ended_s
        for request, point in first_tokens:
            self.requests.prefilled(request, point)

    # -- Reporter --

    def take(self) -> WorkerReport:
        """See `Reporter.take`."""
        # In this order, a first token is never told before the blocks of its prompt.
        requests, blocks = self.requests.take(), self._blocks.take()
        told = self._teller.tell(blocks) if blocks is not None else ()
        identity, pool = self._identity, self._pool
        status = WorkerStatus(
            identity.worker_id,
            identity.epoch,
            identity.role,
            identity.node_id,
            identity.store,
            num_blocks=pool.num_usable,
            num_free_blocks=pool.num_free,
            num_decoding=requests.num_decoding,
            itl_s=self._itl_s if requests.num_decoding else 0.0,
            waiting_ids=requests.waiting_ids,
            running_ids=requests.running_ids,
            prefilled=requests.prefilled,
            finished_ids=requests.finished_ids,
            self_benchmark=self._self_benchmark,
        )
        if isinstance(told, BlockDelta):
            return WorkerReport((told,), (), status)
        return WorkerReport((), told, status)

    def send_all(self) -> None:
        """See `Reporter.send_all`."""
        self._blocks.want_all()

    @property
    def has_news(self) -> bool:
        """See `Reporter.has_news`."""
        return self.requests.has_news or self._blocks.has_news
