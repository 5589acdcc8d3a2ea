"""A modelled engine: prefills one prompt after the other, decodes all sequences together.

While a prompt is computed, sequences get a token with each of its chunks, and each chunk takes a
decode step longer. A prefill replica holds a prompt until it is copied to the decode replica, which
gives the first token then.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from rtp_serve.routing.block_stream import BlockDelta
from rtp_serve.routing.types import Prefilled, PrefillPoint, Role, WorkerId, WorkerStatus
from rtp_serve.simulation.block_cache import BlockCache
from rtp_serve.simulation.decode_pool import DecodePool
from rtp_serve.simulation.engine_model import EngineModel
from rtp_serve.simulation.events import Events
from rtp_serve.simulation.requests import Served


@dataclass(slots=True)
class _Prefill:
    request_id: str
    served: Served
    num_blocks: int
    """That it holds while it runs."""
    decode: "ModelledWorker | None" = None
    """Where it is decoded, if not where its prompt is computed."""


class ModelledWorker:
    """One replica. `changed` is called whenever there is something to report."""

    def __init__(
        self,
        worker_id: WorkerId,
        model: EngineModel,
        block_size: int,
        events: Events,
        changed: Callable[["ModelledWorker"], None],
        role: Role = Role.MIXED,
    ) -> None:
        self.worker_id = worker_id
        self.role = role
        self._model = model
        self._block_size = block_size
        self._events = events
        self._changed = changed
        self._cache = BlockCache(model.num_blocks)
        self._version = 0
        self._queue: deque[_Prefill] = deque()
        self._prefilling: _Prefill | None = None
        self._rate_while_prefilling = 0.0
        self._decoding: dict[str, _Prefill] = {}
        self._leaving: dict[str, _Prefill] = {}  # on the way to their decode replicas
        self._pool = DecodePool()
        self._num_held_blocks = 0
        self._next_end: tuple[float, int] | None = None  # of a sequence, and its turn in `events`
        self._wake_up: tuple[float, int] | None = None  # planned, no later than that
        self._prefilled: list[Prefilled] = []
        self._finished: list[str] = []
        self._has_reported = False

    def submit(
        self, request_id: str, served: Served, decode: "ModelledWorker | None" = None
    ) -> None:
        """A request comes; it is decoded here or at `decode`."""
        request = served.request
        tokens = request.num_tokens + (0 if decode else request.num_new_tokens)
        self._queue.append(_Prefill(request_id, served, self._blocks(tokens), decode))
        if self._prefilling is None:
            self._start_next()

    def take_over(self, request_id: str, served: Served) -> None:
        """A prompt comes that another replica has computed; it waits for memory at most."""
        request = served.request
        blocks = self._blocks(request.num_tokens + request.num_new_tokens)
        self._queue.append(_Prefill(request_id, served, blocks))
        self._advance()
        self._begin_decoding()
        self._set_rate()
        self._changed(self)

    def report(self) -> tuple[BlockDelta | None, WorkerStatus]:
        """What has happened since the last one."""
        added, removed = self._cache.changes()
        delta = None
        if added or removed:
            base, self._version = self._version, self._version + 1
            delta = BlockDelta(self.worker_id, 1, base, self._version, added, removed)
        waiting = [each.request_id for each in self._queue]
        running = [*self._decoding, *self._leaving]
        if self.role is Role.DECODE:  # what waits there for memory has its first token
            waiting, running = [], running + waiting
        if self._prefilling is not None:
            waiting.insert(0, self._prefilling.request_id)
        status = WorkerStatus(
            self.worker_id,
            1,
            self.role,
            num_blocks=self._model.num_blocks,
            num_free_blocks=max(0, self._model.num_blocks - self._num_held_blocks),
            num_decoding=len(self._decoding),
            itl_s=self._step_s() if self._decoding else 0.0,
            waiting_ids=tuple(waiting),
            running_ids=tuple(running),
            prefilled=tuple(self._prefilled),
            finished_ids=tuple(self._finished),
            self_benchmark=() if self._has_reported else tuple(self._model.self_benchmark()),
        )
        self._has_reported = True
        self._prefilled, self._finished = [], []
        return delta, status

    # -- prefill --

    def _start_next(self) -> None:
        if not self._queue or not self._has_room(self._queue[0]):
            return
        prefill = self._prefilling = self._queue.popleft()
        request = prefill.served.request
        found = self._cache.use(request.block_hashes)
        cached = min(found * self._block_size, request.num_tokens - 1)
        prefill.served.num_cached_tokens = cached
        self._hold(prefill.num_blocks)
        new = request.num_tokens - cached
        num_chunks = -(-new // self._model.chunk_tokens)
        took = self._model.prefill_s(new, cached)
        self._advance()
        if self._decoding:
            took += num_chunks * self._step_s()
        self._rate_while_prefilling = num_chunks / took
        self._set_rate()
        point = PrefillPoint(new, cached, took)
        self._events.after(took, lambda: self._end_prefill(prefill, point))

    def _end_prefill(self, prefill: _Prefill, point: PrefillPoint) -> None:
        request = prefill.served.request
        self._advance()
        self._prefilling = None
        self._cache.store(request.block_hashes)
        self._prefilled.append(Prefilled(prefill.request_id, point))
        if prefill.decode is None:
            prefill.served.ttft_s = self._events.now - request.arrival_s
            self._decode(prefill)
            self._end_sequences()
        else:
            self._leaving[prefill.request_id] = prefill
            self._events.after(
                self._model.transfer_s(request.num_tokens), lambda: self._hand_over(prefill)
            )
        self._start_next()
        self._set_rate()
        self._changed(self)

    def _hand_over(self, prefill: _Prefill) -> None:
        assert prefill.decode is not None
        prefill.served.ttft_s = self._events.now - prefill.served.request.arrival_s
        del self._leaving[prefill.request_id]
        self._hold(-prefill.num_blocks)
        prefill.decode.take_over(prefill.request_id, prefill.served)
        if self._prefilling is None:
            self._start_next()
        self._changed(self)

    # -- decode --

    def _decode(self, prefill: _Prefill) -> None:
        request = prefill.served.request
        self._decoding[prefill.request_id] = prefill
        self._pool.add(prefill.request_id, max(0, request.num_new_tokens - 1), request.num_tokens)

    def _begin_decoding(self) -> None:
        """A decode replica takes what it has memory for."""
        while self._queue and self._has_room(self._queue[0]):
            prefill = self._queue.popleft()
            self._hold(prefill.num_blocks)
            self._decode(prefill)
        self._end_sequences()

    def _step_s(self) -> float:
        return self._model.decode_step_s(len(self._pool), self._pool.num_kv_tokens)

    def _advance(self) -> None:
        self._pool.advance(self._events.now)

    def _set_rate(self) -> None:
        rate = self._rate_while_prefilling if self._prefilling else 1 / self._step_s()
        self._pool.set_rate(rate)
        end_s = self._pool.next_end_s()
        self._next_end = None if end_s is None else (end_s, self._events.turn())
        self._plan_wake_up()

    def _plan_wake_up(self) -> None:
        """One is planned at a time, and may come too early: most rates that are set are lower."""
        end = self._next_end
        if end is not None and (self._wake_up is None or end < self._wake_up):
            self._wake_up = end
            self._events.at(end[0], lambda: self._on_wake_up(end), end[1])

    def _on_wake_up(self, planned: tuple[float, int]) -> None:
        if planned != self._wake_up:
            return
        self._wake_up = None
        if planned != self._next_end:
            self._plan_wake_up()
            return
        self._advance()
        self._end_sequences()
        if self.role is Role.DECODE:
            self._begin_decoding()
        elif self._prefilling is None:
            self._start_next()
        self._set_rate()
        self._changed(self)

    def _end_sequences(self) -> None:
        for request_id in self._pool.pop_ended():
            prefill = self._decoding.pop(request_id)
            prefill.served.e2e_s = self._events.now - prefill.served.request.arrival_s
            self._hold(-prefill.num_blocks)
            self._finished.append(request_id)

    # -- memory --

    def _blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self._block_size)

    def _has_room(self, prefill: _Prefill) -> bool:
        """A sequence waits for memory; one that is larger than all of it runs alone."""
        held = self._num_held_blocks
        return not held or held + prefill.num_blocks <= self._model.num_blocks

    def _hold(self, num_blocks: int) -> None:
        """Cached prefixes have what running sequences leave, and share blocks with them."""
        self._num_held_blocks += num_blocks
        self._cache.capacity = max(0, self._model.num_blocks - self._num_held_blocks)
        self._cache.shrink(self._cache.capacity)
