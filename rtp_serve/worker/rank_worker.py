"""One rank with everything it needs: the versions it loads, KV memory of its heads, its worker."""

import mmap
import threading
from collections.abc import Callable, Collection

from rtp_serve.clock import Clock
from rtp_serve.config.engine import EngineConfig, ModelSource
from rtp_serve.config.model import ModelConfig
from rtp_serve.engine.output import ModelOutput, SchedulerOutput
from rtp_serve.engine.version import ModelVersion
from rtp_serve.kv_cache.tensors import KVCacheTensors
from rtp_serve.observability.metrics import MetricsSink
from rtp_serve.parallel.collectives import Collectives
from rtp_serve.worker.capacity import Capacity
from rtp_serve.worker.model_versions import ModelVersions
from rtp_serve.worker.threads import kept_to, use_compute_threads
from rtp_serve.worker.worker import Worker


class RankWorker:
    """Steps run in the thread that asks, loads in another one if need be."""

    def __init__(
        self,
        config: EngineConfig,
        collectives: Collectives,
        clock: Clock,
        sink: MetricsSink | None = None,
        kv_memory: Callable[[int], mmap.mmap | None] | None = None,
        cores: Collection[int] = (),
    ) -> None:
        """Loads nothing yet. `kv_memory` gives so many bytes of zeros for keys and values, or None
        for memory of this process alone, as without it. Steps run on `cores`; empty is any."""
        self._config = config
        self._cores = cores
        self._kv_memory = kv_memory
        self._versions = ModelVersions(config, clock, sink, collectives)
        self._worker: Worker | None = None
        self._tensors: KVCacheTensors | None = None
        self._prepared_thread: int | None = None

    @property
    def capacity(self) -> Capacity:
        """Of this rank, once the first version is loaded."""
        return self._versions.first.capacity

    @property
    def model_config(self) -> ModelConfig:
        """Of the model, once the first version is loaded."""
        return self._versions.first.config

    @property
    def tensors(self) -> KVCacheTensors:
        """KV memory, once the first version is loaded."""
        assert self._tensors is not None, "nothing is loaded yet"
        return self._tensors

    def report_layers(self, tell: Callable[[int], None]) -> None:
        """See `Worker.report_layers`."""
        assert self._worker is not None, "nothing is loaded yet"
        self._worker.report_layers(tell)

    def load(self, source: ModelSource | None = None) -> ModelVersion:
        """See `Executor.load`; the first load makes the memory too."""
        version, loaded = self._versions.load(source)
        if loaded is not None:
            if self._worker is None:
                self._worker = self._made()
            self._worker.add(version.number, loaded)
        return version

    def take_back(self, version: int) -> None:
        """Forget what was loaded last, if it is this version; nothing has run on it."""
        if self._versions.take_back(version):
            self.drop(version)

    def drop(self, version: int) -> None:
        """Free a version's weights. Its sequences have ended."""
        assert self._worker is not None, "nothing is loaded yet"
        self._worker.drop(version)

    def execute(self, scheduled: SchedulerOutput) -> ModelOutput:
        """See `Worker.execute`. Thread counts belong to a thread: the first step sets its own."""
        if not self._cores:
            return self._execute(scheduled)
        with kept_to(self._cores):
            return self._execute(scheduled)

    def check_invariants(self) -> None:
        """Recompute the books from scratch."""
        assert self._worker is not None, "nothing is loaded yet"
        self._worker.check_invariants()

    def _execute(self, scheduled: SchedulerOutput) -> ModelOutput:
        assert self._worker is not None, "nothing is loaded yet"
        thread = threading.get_ident()
        if thread != self._prepared_thread:
            use_compute_threads(self._config.num_threads)
            self._prepared_thread = thread
        return self._worker.execute(scheduled)

    def _made(self) -> Worker:
        spec, num_blocks = self.capacity.spec, self.capacity.num_blocks
        give = self._kv_memory
        memory = give(num_blocks * spec.block_bytes) if give is not None else None
        self._tensors = KVCacheTensors(spec, num_blocks, memory=memory)
        max_num_seqs = self._config.scheduler.max_num_seqs
        return Worker(self._tensors, max_num_seqs, self.capacity.max_model_len)
