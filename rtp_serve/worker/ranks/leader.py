"""Rank 0, with the engine in its process, and its way to the other ranks."""

import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import blake2b

from rtp_serve.config.engine import EngineConfig, ModelSource
from rtp_serve.engine.executor import CompletedStep
from rtp_serve.engine.output import SchedulerOutput
from rtp_serve.engine.version import ModelVersion
from rtp_serve.errors import (
    CheckpointError,
    ConfigError,
    ModelNotFound,
    RankError,
    RankLost,
    ReloadRefused,
    RtpServeError,
)
from rtp_serve.parallel.collectives import Collectives
from rtp_serve.parallel.partition import partition
from rtp_serve.worker.capacity import plan_capacity
from rtp_serve.worker.model_versions import content_of, fingerprint
from rtp_serve.worker.rank_worker import RankWorker
from rtp_serve.worker.ranks.links import Receiver, Sender
from rtp_serve.worker.ranks.messages import (
    Drop,
    End,
    Failed,
    Load,
    Loaded,
    Order,
    Step,
    TakeBack,
    decode_report,
    encode,
)
from rtp_serve.worker.ranks.plan import RankProcess
from rtp_serve.worker.ranks.shared_kv import SharedKV
from rtp_serve.worker.ranks_memory import RankMemory, RanksMemory

_TOLD = {kind.code: kind for kind in (ConfigError, CheckpointError, ModelNotFound, ReloadRefused)}
"""What a follower's failed load is told as; anything else is a RankError."""


@dataclass(frozen=True, slots=True)
class Links:
    """What the leader has of the other ranks."""

    collectives: Collectives
    orders: Sender
    """To all followers."""

    reports: Sequence[Receiver]
    """Of each follower, in order of rank."""

    processes: Sequence[RankProcess]


class RankedExecutor:
    """Tells every rank, and computes its own part in the thread that submits."""

    def __init__(
        self,
        config: EngineConfig,
        worker: RankWorker,
        links: Links,
        shared_kv: SharedKV | None = None,
    ) -> None:
        """Nothing is loaded yet; the followers have begun to. `shared_kv` is where ranks have their
        KV memory, if this process sees all of it."""
        self._config = config
        self._worker = worker
        self._links = links
        self._shared_kv = shared_kv
        # Steps are ordered by one thread, loads by another.
        self._ordering = threading.Lock()
        self._last: ModelVersion | None = None

    @property
    def worker(self) -> RankWorker:
        """Rank 0's."""
        return self._worker

    @property
    def version(self) -> ModelVersion:
        """What was loaded last."""
        assert self._last is not None, "nothing is loaded yet"
        return self._last

    def memory(self) -> RanksMemory | None:
        """KV memory of all ranks; None if this process does not see it. To be asked once."""
        if self._shared_kv is None:
            return None
        tensors, model = self._worker.tensors, self._worker.model_config
        memories = [tensors.memory]
        for rank in range(1, self._config.parallel.world_size):
            spec = plan_capacity(model, self._config, rank).spec
            memories.append(self._shared_kv.seen(rank, tensors.num_blocks * spec.block_bytes))
        heads = [part.kv_heads for part in partition(model, self._config.parallel)]
        files = [self._shared_kv.name(rank) for rank in range(len(memories))]
        return RanksMemory(
            tensors.spec,
            tensors.num_blocks,
            tensors.tile_order,
            tuple(map(RankMemory, heads, memories, files)),
        )

    def start(self) -> None:
        """Load the first version, as the followers do meanwhile. Raises what `load` does."""
        self._last = self._loaded(None)

    def submit(self, scheduled: SchedulerOutput) -> CompletedStep:
        """Run the step. Raises RankError if another rank cannot, CorruptWeights in place of a
        result that wrong weights may have made."""
        self._tell(Step(scheduled))
        try:
            return CompletedStep(self._worker.execute(scheduled))
        except BaseException:
            self._links.collectives.abort()
            raise

    def load(self, source: ModelSource | None = None) -> ModelVersion:
        """Every rank loads, and all take it back if one cannot, or nothing is new to any."""
        last = self.version
        self._tell(Load(source.model, source.revision) if source else Load(None, None))
        loaded = self._loaded(source)
        if loaded.namespace == last.namespace:
            self._take_back(loaded.number)
            return last
        self._last = loaded
        return loaded

    def drop(self, version: int) -> None:
        self._tell(Drop(version))
        self._worker.drop(version)

    def check(self) -> None:
        """Raises RankLost if a follower's process has ended."""
        for rank, process in enumerate(self._links.processes, start=1):
            if not process.is_alive:
                raise RankLost(f"rank {rank} has ended", rank)

    def shutdown(self) -> None:
        """End the followers: they are asked to, and soon made to."""
        links = self._links
        with suppress(RankError):
            self._tell(End())
        links.orders.close()
        links.collectives.close()
        for process in links.processes:
            process.dismiss()

    def _tell(self, order: Order) -> None:
        with self._ordering:
            self._links.orders.send(encode(order))

    def _loaded(self, source: ModelSource | None) -> ModelVersion:
        """Rank 0's version once all ranks have theirs, named after all of them."""
        own: ModelVersion | None = None
        error: RtpServeError | None = None
        try:
            own = self._worker.load(source)
        except RtpServeError as failure:
            error = failure
        parts = [Loaded(own.namespace, own.model.content)] if own else []
        for rank, link in enumerate(self._links.reports, start=1):
            report = decode_report(link.receive())
            if isinstance(report, Failed):
                error = error or _error_of(report, rank)
            else:
                parts.append(report)
        if error is not None:
            if self._last is not None:
                self._take_back(self._last.number + 1)
            raise error
        assert own is not None, "rank 0 has loaded"
        namespace = blake2b(b"".join(part.namespace for part in parts)).digest()
        named = replace(
            own.model,
            fingerprint=fingerprint(namespace),
            namespace=namespace,
            content=content_of([part.content for part in parts]),
        )
        return replace(own, model=named)

    def _take_back(self, number: int) -> None:
        """On every rank that has it."""
        self._tell(TakeBack(number))
        self._worker.take_back(number)


def _error_of(report: Failed, rank: int) -> RtpServeError:
    message = f"rank {rank}: {report.message}"
    kind = _TOLD.get(report.code)
    return kind(message) if kind else RankError(message, rank)
