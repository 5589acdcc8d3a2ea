"""Moves blocks between the device's cache and the tiers below it, between steps.

    waiting sequence ──► restore ──► its blocks are cached on the device ──► waiting again, in front
                            └──► from a slow disk: it computes the head meanwhile, up to the tail
                                 that is restored, and then waits for it, or the tail for it
    step's full blocks ──► store ◄── what was restored and the arena has not, after the next step

A restore fills the device's prefix cache and nothing else: its sequence then finds there what it
finds, like any other. So a restore that came to nothing, or blocks that were evicted meanwhile,
cost computing and never more. Blocks of a job are held by the job alone, whatever becomes of a
sequence.
"""

from collections import Counter
from collections.abc import Sequence as Items
from dataclasses import dataclass
from enum import StrEnum
from hashlib import blake2b

from rtp_serve.engine.prefetching import PrefetchCounts, Prefetching
from rtp_serve.engine.sequence import Sequence, SequenceStatus
from rtp_serve.engine.step_rate import StepRate
from rtp_serve.kv_cache.block import BlockHash
from rtp_serve.kv_cache.manager import KVCacheManager
from rtp_serve.kv_store.lower_tiers import STORE_BLOCKS, LowerTiers, Restore, Store
from rtp_serve.kv_store.reservation import MAX_TENANT_BYTES, StoreRequest

_MAX_RESTORES = 4


class RestoreStart(StrEnum):
    """What came of asking for a restore."""

    BEGUN = "begun"
    LATER = "later"
    """Others are under way, or blocks are about to be free; the sequence is to wait."""

    NOTHING = "nothing"
    """Nothing is to be restored, or there is no room."""


@dataclass(slots=True)
class _Restoring:
    job: Restore
    seq: Sequence | None
    """None once it was aborted."""

    status: SequenceStatus
    """The sequence's, before."""

    block_ids: list[int]
    """Of the chain, held: what the device had, so that the job's have a parent, and then the job's.
    While blocks before them are computed (`Restore.num_left`), those that are filled meanwhile."""

    origin: Sequence
    """Whose chain it is, even if it was aborted."""

    is_begun: bool = False
    """The sequence may compute what the job left; the job has no part in it any more."""

    is_ended: bool = False
    """The job has, and the sequence has yet to compute what it left."""


@dataclass(frozen=True, slots=True)
class _Restored:
    """What the arena does not have of a chain that was restored. Stored beside its sequence's first
    step, it would make that one slower."""

    chain: Items[BlockHash]
    """From its beginning to the last of the blocks."""

    block_ids: list[int]
    """Held. The chain's last ones."""

    namespace: bytes
    salt: str


class Tiering:
    """The jobs of one engine; for its thread."""

    def __init__(self, cache: KVCacheManager, tiers: LowerTiers) -> None:
        self._cache = cache
        self._tiers = tiers
        self._restoring: dict[int, _Restoring] = {}
        self._storing: dict[int, Store] = {}
        self._restored: list[_Restored] = []
        self._prefetching = Prefetching(cache.pool, tiers)
        self.rate = StepRate()
        """What steps cost; whoever runs them keeps it."""

        cache.keep_fresh()

    @property
    def tiers(self) -> LowerTiers:
        return self._tiers

    @property
    def is_active(self) -> bool:
        """Whether a job is under way, or about to be."""
        is_moving = self._restoring or self._storing or self._restored
        return bool(is_moving) or self._prefetching.is_active

    @property
    def prefetches(self) -> PrefetchCounts:
        return self._prefetching.counts

    @property
    def num_restoring(self) -> int:
        """Sequences that wait for a restore."""
        return sum(
            each.seq is not None and each.seq.status is SequenceStatus.RESTORING
            for each in self._restoring.values()
        )

    def begin_restore(self, seq: Sequence) -> RestoreStart:
        """Ask the tiers, once, for what the device lacks of a waiting sequence and has room for."""
        if seq.was_restored:
            return RestoreStart.NOTHING
        cached_ids = self._cache.lookup_prefix(seq)
        first = len(cached_ids)
        pool = self._cache.pool
        room = pool.num_free - pool.num_idle(cached_ids)
        num_missing = self._cache.num_missing(seq, first)
        # A block is left for the tokens that are to be computed.
        num_wanted = min(num_missing, room - 1)
        if num_wanted < num_missing and self._frees_blocks:
            return RestoreStart.LATER
        if num_wanted <= 0:
            return RestoreStart.NOTHING
        if len(self._restoring) >= _MAX_RESTORES or self._is_under_way(seq.block_hashes[first]):
            return RestoreStart.LATER
        pool.hold(cached_ids)
        block_ids = tuple(pool.allocate(num_wanted))
        chain = tuple(seq.block_hashes[: first + num_wanted])
        job = Restore(chain, first, block_ids, self.rate.token_s * self._cache.block_size)
        self._restoring[id(job)] = _Restoring(
            job, seq, seq.status, [*cached_ids, *block_ids], origin=seq
        )
        seq.status = SequenceStatus.RESTORING
        seq.was_restored = True
        self._tiers.restore(job)
        return RestoreStart.BEGUN

    def prefetch(self, chain: Items[BlockHash]) -> None:
        """Ask the tiers for a chain that requests are expected to begin with. Between steps."""
        self._prefetching.begin(chain, may_begin=not self._restoring)

    def abort(self, seq: Sequence) -> None:
        """The sequence goes, or does not wait for it any more; its restore ends by itself."""
        seq.num_head_tokens = 0
        for restoring in list(self._restoring.values()):
            if restoring.seq is seq:
                restoring.seq = None
                if restoring.is_ended:
                    self._drop(restoring)

    def hold_head(self, seq: Sequence) -> None:
        """A sequence has computed what its restore left; from now on it waits for it."""
        (restoring,) = [each for each in self._restoring.values() if each.seq is seq]
        assert len(seq.block_ids) == restoring.job.tail, f"{seq} is not where its restore begins"
        self._cache.pool.hold(seq.block_ids)
        restoring.block_ids = [*seq.block_ids, *restoring.block_ids]
        restoring.status = SequenceStatus.PREEMPTED
        seq.status = SequenceStatus.RESTORING
        seq.num_head_tokens = 0

    def take_finished(self) -> list[Sequence]:
        """Sequences that may run: their restore has ended, or leaves them something to compute, in
        the order in which they came."""
        ready: list[Sequence] = []
        for restoring in [each for each in self._restoring.values() if each.is_ended]:
            assert restoring.seq is not None, "blocks are held for nobody"
            match restoring.seq.status:
                case SequenceStatus.RESTORING:
                    ready += self._end_restore(restoring)
                case SequenceStatus.WAITING | SequenceStatus.PREEMPTED:
                    # There was no room to begin, and these blocks may be what others lack.
                    self.abort(restoring.seq)
        for job in self._tiers.take_finished():
            if isinstance(job, Store):
                self._cache.pool.release(self._storing.pop(id(job)).block_ids)
                continue
            if self._prefetching.has_ended(job):
                continue
            restoring = self._restoring[id(job)]
            if job.num_left and not restoring.is_begun:
                ready += self._begin_head(restoring)
            else:
                ready += self._finish(restoring)
        return ready

    def wait(self, timeout_s: float) -> None:
        """Until a job has ended. There is no step."""
        self._store_restored()
        self._tiers.wait(timeout_s)

    def begin_step(self, num_scheduled: Items[int], is_decoding: bool, num_waiting: int) -> None:
        """Storing takes its time beside a step of sequences with so many tokens each, unless
        somebody waits for the blocks it has, or what the step fills would find no room."""
        block_size = self._cache.block_size
        num_filled = sum(num_tokens // block_size + 1 for num_tokens in num_scheduled)
        self._tiers.set_pace(is_in_hurry=num_waiting > 0, num_expected=num_filled)
        self._tiers.set_decoding(is_decoding)

    def end_steps(self) -> None:
        """No sequence runs."""
        self._tiers.set_pace(is_in_hurry=True)
        self._tiers.set_decoding(False)

    def end_step(self, has_errors: bool) -> None:
        """A step has run: keep what it has filled, unless some of that is of no use."""
        self._store_restored()
        fresh = self._cache.take_fresh()
        if fresh and not has_errors:
            requests = [
                StoreRequest(each.key, each.parent, _tenant(each.salt), _tag(each.namespace))
                for each in fresh
            ]
            self._store(requests, [each.block_id for each in fresh])

    def store_cached(self, chain: Items[BlockHash], namespace: bytes, salt: str) -> None:
        """Store what the device has of a chain, from its beginning, in case the tiers have lost it;
        what they have they refuse. Between steps."""
        block_ids = self._cache.pool.lookup(chain)
        self._store(_requests(chain[: len(block_ids)], namespace, salt), block_ids)

    def close(self) -> None:
        """End the jobs."""
        self._store_restored()
        self._tiers.close()

    def holders(self) -> Counter[int]:
        """Every block that jobs hold, and how often. For tests and idle debug runs."""
        held: Counter[int] = Counter()
        for each in self._restoring.values():
            held.update(each.block_ids)
        for store in self._storing.values():
            held.update(store.block_ids)
        for restored in self._restored:
            held.update(restored.block_ids)
        return held + self._prefetching.holders()

    @property
    def _frees_blocks(self) -> bool:
        """Whether blocks that only wait to be stored will be free in a moment."""
        pool = self._cache.pool
        storing = [each.block_ids for each in self._storing.values()]
        restored = [each.block_ids for each in self._restored]
        return any(map(pool.num_held_once, [*storing, *restored]))

    def _is_under_way(self, key: BlockHash) -> bool:
        """Whether another sequence's restore, or a prefetch, brings the block."""
        return self._prefetching.is_bringing(key) or any(
            key in each.job.chain[each.job.num_cached :] for each in self._restoring.values()
        )

    def _begin_head(self, restoring: _Restoring) -> list[Sequence]:
        """The job goes on with the chain's tail; what is before it the sequence may compute."""
        job, seq = restoring.job, restoring.seq
        self._register(restoring, job.num_cached + job.num_host)
        self._cache.pool.release(restoring.block_ids[: job.tail])
        restoring.block_ids = restoring.block_ids[job.tail :]
        restoring.is_begun = True
        if seq is None:
            return []
        seq.num_head_tokens = job.tail * self._cache.block_size
        seq.status = restoring.status
        return [seq]

    def _finish(self, restoring: _Restoring) -> list[Sequence]:
        """Its job has ended."""
        seq = restoring.seq
        if seq is not None and seq.status is not SequenceStatus.RESTORING:
            restoring.is_ended = True
            return []
        if seq is None and restoring.job.num_left:
            self._drop(restoring)
            return []
        return self._end_restore(restoring)

    def _end_restore(self, restoring: _Restoring) -> list[Sequence]:
        job, seq = restoring.job, restoring.seq
        self._register(restoring, job.end)
        self._keep(restoring)
        self._drop(restoring)
        if seq is None:
            return []
        seq.status = restoring.status
        if seq.num_output_tokens == 0:
            seq.num_host_tokens = job.num_host * self._cache.block_size
            seq.num_disk_tokens = job.num_disk * self._cache.block_size
            seq.num_remote_tokens = job.num_remote * self._cache.block_size
            if job.num_left:  # it has run before, and what was cached then is noted
                seq.num_cached_tokens += seq.num_disk_tokens
        return [seq]

    def _register(self, restoring: _Restoring, end: int) -> None:
        """Let the job's blocks up to `end` of the chain be found."""
        job = restoring.job
        for index in range(job.num_cached, end):
            self._cache.register_restored(restoring.origin, index, restoring.block_ids[index])

    def _keep(self, restoring: _Restoring) -> None:
        """What the arena has not of it, until it is stored there."""
        job, origin = restoring.job, restoring.origin
        block_ids = restoring.block_ids[job.num_in_arena : job.end]
        if block_ids:
            self._cache.pool.hold(block_ids)
            chain = job.chain[: job.end]
            self._restored.append(_Restored(chain, block_ids, origin.namespace, origin.cache_salt))

    def _store_restored(self) -> None:
        restored, self._restored = self._restored, []
        for each in restored:
            requests = _requests(each.chain, each.namespace, each.salt)
            self._store(requests[-len(each.block_ids) :], each.block_ids)
            self._cache.pool.release(each.block_ids)

    def _drop(self, restoring: _Restoring) -> None:
        self._cache.pool.release(restoring.block_ids)
        del self._restoring[id(restoring.job)]

    def _store(self, requests: Items[StoreRequest], block_ids: Items[int]) -> None:
        """In parts, so that the device has blocks back before all are stored."""
        for first in range(0, len(requests), STORE_BLOCKS):
            part = slice(first, first + STORE_BLOCKS)
            job = self._tiers.store(requests[part], block_ids[part])
            if job is not None:
                self._cache.pool.hold(job.block_ids)
                self._storing[id(job)] = job


def _requests(chain: Items[BlockHash], namespace: bytes, salt: str) -> list[StoreRequest]:
    """For a chain, from its beginning."""
    tenant, tag = _tenant(salt), _tag(namespace)
    parents = [None, *chain[:-1]]
    return [
        StoreRequest(key, parent, tenant, tag) for key, parent in zip(chain, parents, strict=True)
    ]


def _tag(namespace: bytes) -> bytes:
    return namespace[:8].ljust(8, b"\0")


def _tenant(salt: str) -> str:
    """Whose a block is: what a salt begins with, up to a slash."""
    tenant = salt.partition("/")[0]
    raw = tenant.encode("utf-8", "surrogatepass")
    return tenant if len(raw) <= MAX_TENANT_BYTES else blake2b(raw, digest_size=16).hexdigest()
