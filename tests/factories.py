"""Control-plane parts for tests: requests, and an engine over a worker that needs no model."""

import random
from collections.abc import Iterable
from hashlib import blake2b
from typing import Any

import numpy as np

from rtp_serve.clock import Clock, VirtualClock, WallClock
from rtp_serve.config.engine import ModelSource, SchedulerConfig
from rtp_serve.engine.client import ServedModel
from rtp_serve.engine.core import EngineCore
from rtp_serve.engine.exchange import Exchange
from rtp_serve.engine.executor import CompletedStep
from rtp_serve.engine.output import ModelOutput, NewSequence, SchedulerOutput
from rtp_serve.engine.publishing import Publishing
from rtp_serve.engine.receiving import Receiving
from rtp_serve.engine.request import Request, SequenceDelta
from rtp_serve.engine.sampling_params import SamplingParams
from rtp_serve.engine.scheduler import Scheduler
from rtp_serve.engine.tiering import Tiering
from rtp_serve.engine.version import ModelVersion
from rtp_serve.errors import CheckpointError
from rtp_serve.kv_cache.block_pool import BlockPool
from rtp_serve.kv_cache.manager import KVCacheManager
from rtp_serve.kv_store.device_blocks import WholeBlocks
from rtp_serve.kv_store.lower_tiers import LowerTiers, StoreAccess
from rtp_serve.observability.metrics import MetricsSink, PrometheusSink

VOCAB_SIZE = 1000
EOS = 2
NUM_LAYERS = 8
"""As publications count them; MemoryWorker has one."""


def make_request(
    request_id: str = "r0",
    prompt: Iterable[int] = (5, 6, 7),
    *,
    seed: int = 0,
    priority: int = 0,
    salt: str = "",
    **sampling: Any,
) -> Request:
    sampling.setdefault("max_tokens", 8)
    sampling.setdefault("temperature", 0.0)
    params = SamplingParams(**sampling)
    return Request(request_id, tuple(prompt), params, seed, priority, salt)


def make_prompt(length: int, seed: int = 0) -> tuple[int, ...]:
    rng = random.Random(seed)
    return tuple(rng.randrange(3, VOCAB_SIZE) for _ in range(length))


class MemoryWorker:
    """An executor whose "model" predicts a hash of what it finds in its KV memory.

    The memory is addressed through block tables, as the real one is, so a wrong block, a stale slot
    or a lost token changes the output. Where the real one holds keys and values, it holds tokens
    and the model version that computed them.
    """

    def __init__(
        self, num_blocks: int, block_size: int = 16, fail_at_step: int | None = None
    ) -> None:
        self._memory = np.full((num_blocks, block_size), -1, np.int64)
        self._block_size = block_size
        self._fail_at_step = fail_at_step
        self.broken_at_length: int | None = None
        """A sequence whose step ends at this many tokens is reported as not computable."""
        self._seqs: dict[int, _WorkerSequence] = {}
        self.steps: list[SchedulerOutput] = []
        self.dropped: list[int] = []
        """Model versions whose last sequence has ended."""
        self._num_loaded = 0
        self.is_shut_down = False

    def block(self, block_id: int) -> memoryview:
        """A block's bytes, as tiers take and fill them."""
        return memoryview(self._memory[block_id]).cast("B")

    @property
    def block_bytes(self) -> int:
        return self._memory[0].nbytes

    def submit(self, scheduled: SchedulerOutput) -> CompletedStep:
        if len(self.steps) + 1 == self._fail_at_step:
            raise RuntimeError("injected failure")
        self.steps.append(scheduled)
        for seq_id in scheduled.finished_seq_ids:
            del self._seqs[seq_id]
        for new in scheduled.new_seqs:
            assert new.seq_id not in self._seqs, f"sequence {new.seq_id} is here already"
            self._seqs[new.seq_id] = _WorkerSequence(new)
        for source, target in scheduled.block_copies:
            self._memory[target] = self._memory[source]
        self._write_all(scheduled)
        lengths = map(int.__add__, scheduled.num_computed_tokens, scheduled.num_scheduled_tokens)
        broken = {
            seq_id
            for seq_id, length in zip(scheduled.seq_ids, lengths, strict=True)
            if length == self.broken_at_length
        }
        token_ids = [
            -1 if seq_id in broken else self._predict(seq_id)
            for seq_id, is_sampled in zip(scheduled.seq_ids, scheduled.is_sampled, strict=True)
            if is_sampled
        ]
        errors = tuple((seq_id, "broken") for seq_id in broken)
        return CompletedStep(ModelOutput(np.array(token_ids, np.int32), errors=errors))

    def _write_all(self, scheduled: SchedulerOutput) -> None:
        """All tokens of the step are written before any sequence reads, as in a layer."""
        for i, seq_id in enumerate(scheduled.seq_ids):
            seq = self._seqs[seq_id]
            seq.block_ids += scheduled.new_block_ids[i]
            start = scheduled.num_computed_tokens[i]
            for position in range(start, start + scheduled.num_scheduled_tokens[i]):
                block_id = seq.block_ids[position // self._block_size]
                token = seq.token_ids[position] + seq.version * VOCAB_SIZE
                self._memory[block_id, position % self._block_size] = token

    def _predict(self, seq_id: int) -> int:
        seq = self._seqs[seq_id]
        rows = self._memory[seq.block_ids].reshape(-1)[: len(seq.token_ids)]
        digest = blake2b(rows.tobytes() + seq.seed.to_bytes(8, "little"), digest_size=8).digest()
        token_id = int.from_bytes(digest, "little") % VOCAB_SIZE
        seq.token_ids.append(token_id)
        return token_id

    def load(self, source: ModelSource | None = None) -> ModelVersion:
        if source is not None and source.model == "bad":
            raise CheckpointError("bad: no such checkpoint")
        if source is None or source.model != "same":
            self._num_loaded += 1
        return make_version(self._num_loaded)

    def drop(self, version: int) -> None:
        self.dropped.append(version)

    def check(self) -> None:
        pass

    def shutdown(self) -> None:
        self.is_shut_down = True


class _WorkerSequence:
    def __init__(self, new: NewSequence) -> None:
        self.token_ids = new.token_ids.tolist()
        self.block_ids = list(new.block_ids)
        self.seed = new.seed
        self.version = new.version


def predicted_tokens(
    request: Request, index: int = 0, count: int | None = None, version: int = 0
) -> list[int]:
    """What MemoryWorker must produce for a request run alone, computed without any engine."""
    seed = (request.seed + index * 0x9E3779B97F4A7C15) & ((1 << 64) - 1)
    token_ids = list(request.prompt_token_ids)
    limit = count or request.sampling.max_tokens or 0
    for _ in range(limit):
        memory = np.array(token_ids, np.int64) + version * VOCAB_SIZE
        data = memory.tobytes() + seed.to_bytes(8, "little")
        token_id = int.from_bytes(blake2b(data, digest_size=8).digest(), "little") % VOCAB_SIZE
        token_ids.append(token_id)
        if token_id == EOS and not request.sampling.ignore_eos:
            break
    return token_ids[len(request.prompt_token_ids) :]


def make_version(number: int, max_model_len: int = 512) -> ModelVersion:
    """Each with weights of its own."""
    model = ServedModel(
        "test",
        max_model_len,
        VOCAB_SIZE,
        (EOS,),
        f"fp_{number}",
        f"content_{number}",
        namespace=b"test%d" % number,
    )
    return ModelVersion(number, model)


def make_core(
    *,
    num_blocks: int = 64,
    max_model_len: int = 512,
    enable_prefix_caching: bool = True,
    enable_partial_hits: bool = True,
    worker: MemoryWorker | None = None,
    clock: VirtualClock | None = None,
    sink: MetricsSink | None = None,
    access: StoreAccess | None = None,
    tiers_clock: Clock | None = None,
    **scheduler: Any,
) -> EngineCore:
    """With `access` there are tiers below the worker's memory; the core is to be shut down then."""
    scheduler.setdefault("max_num_batched_tokens", 64)
    scheduler.setdefault("max_num_seqs", 8)
    cache = KVCacheManager(BlockPool(num_blocks), 16, enable_prefix_caching, enable_partial_hits)
    worker = worker or MemoryWorker(num_blocks)
    tiering = None
    if access is not None:
        tiers_clock = tiers_clock or WallClock()
        tiers = LowerTiers(
            access, WholeBlocks(worker.block), tiers_clock, max_storing=num_blocks // 2
        )
        tiering = Tiering(cache, tiers)
    receiving = Receiving(cache)
    return EngineCore(
        make_version(0, max_model_len),
        Scheduler(SchedulerConfig(**scheduler), cache, max_model_len, receiving, tiering),
        cache,
        worker,
        clock or VirtualClock(),
        sink or PrometheusSink(),
        Exchange(receiving, Publishing(cache.pool, NUM_LAYERS, 16)),
        tiering,
    )


def run_to_end(core: EngineCore, requests: Iterable[Request] = ()) -> dict[str, list[list[int]]]:
    """Add requests and step until nothing is left: request id → token ids of each sequence."""
    outputs: dict[str, list[list[int]]] = {}
    for request in requests:
        core.add_request(request)
        outputs[request.request_id] = [[] for _ in range(request.sampling.n)]
    while core.has_work:
        collect(outputs, core.step())
        core.check_invariants()
    return outputs


def collect(outputs: dict[str, list[list[int]]], deltas: Iterable[SequenceDelta]) -> None:
    for delta in deltas:
        if delta.request_id in outputs:
            outputs[delta.request_id][delta.index].extend(delta.token_ids)
