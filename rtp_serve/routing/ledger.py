"""Requests that were sent and have not ended: the work and memory that workers do not report yet.

    CREATED → IN_TRANSIT → CONFIRMED → RUNNING → FINISHED
                  └────────────┴──────────┴────→ LOST | TIMEOUT

CREATED is a decision in the making. IN_TRANSIT is sent, unseen by its worker; CONFIRMED waits there
for its first token, RUNNING has it. LOST was dropped or died with its worker; TIMEOUT was not heard
of for too long. After the first token a request of a disaggregated fleet is IN_TRANSIT again, to
its decode worker.

A worker's queue is taken for one line, first come, first served: `wait_s` is what is predicted for
all of it, less what its head has had. Each first token corrects it.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

import numpy as np

from rtp_serve.kv_cache.block import BlockHash
from rtp_serve.routing.types import Floats, Ints


class RequestState(Enum):
    CREATED = "created"
    IN_TRANSIT = "in transit"
    CONFIRMED = "confirmed"
    RUNNING = "running"
    FINISHED = "finished"
    LOST = "lost"
    TIMEOUT = "timeout"


@dataclass(slots=True)
class Entry:
    """One request. Only the ledger writes to it."""

    request_id: str

    slot: int
    """Of the worker that computes the prompt."""

    decode_slot: int
    """Of the worker that decodes; the same in an aggregated fleet."""

    num_tokens: int
    """To compute before its first token."""

    prefill_s: float
    """Predicted for them."""

    prompt_blocks: int
    """That it holds at `slot` until its first token, if it decodes elsewhere."""

    decode_blocks: int
    """That it holds at `decode_slot` at most."""

    created_s: float

    assumed: tuple[BlockHash, ...] = ()
    """Blocks that `slot` will have when they are computed."""

    state: RequestState = RequestState.CREATED

    seen_s: float = 0.0
    """When it was last heard of."""

    has_first_token: bool = False

    @property
    def owner_slot(self) -> int:
        """Of the worker that has it now."""
        return self.decode_slot if self.has_first_token else self.slot

    @property
    def num_reserved_at_slot(self) -> int:
        return 0 if self.slot == self.decode_slot else self.prompt_blocks


class Ledger:
    """Entries by request id, and their sums by slot. Array attributes are read only,
    [max_slots]."""

    def __init__(self, max_slots: int) -> None:
        self.pending_s: Floats = np.zeros(max_slots)
        """Predicted for everything before its first token."""
        self.pending_tokens: Ints = np.zeros(max_slots, np.int64)
        self.reserved_blocks: Ints = np.zeros(max_slots, np.int64)
        self.num_in_flight: Ints = np.zeros(max_slots, np.int64)
        """Requests before their first token."""
        self.head_s: Floats = np.zeros(max_slots)
        """Predicted for the first in line."""
        self.head_start_s: Floats = np.zeros(max_slots)
        """When that began."""
        self.ended: Counter[RequestState] = Counter()
        """How requests have ended."""
        self._entries: dict[str, Entry] = {}
        self._queues: list[dict[str, Entry]] = [{} for _ in range(max_slots)]
        self._owned: list[dict[str, Entry]] = [{} for _ in range(max_slots)]

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, request_id: str) -> Entry | None:
        return self._entries.get(request_id)

    def entries(self) -> Iterable[Entry]:
        return self._entries.values()

    def wait_s(self, num_slots: int, now: float) -> Floats:
        """Until a worker has done all that was sent to it before, [num_slots]."""
        had = np.minimum(now - self.head_start_s[:num_slots], self.head_s[:num_slots])
        return np.maximum(self.pending_s[:num_slots] - had, 0.0)

    # -- a request's life --

    def create(self, entry: Entry) -> None:
        """Book a request's work and memory; it is last in its worker's line."""
        assert entry.request_id not in self._entries, f"{entry.request_id} is in flight"
        entry.seen_s = entry.created_s
        self._entries[entry.request_id] = entry
        self._owned[entry.slot][entry.request_id] = entry
        slot = entry.slot
        self._queues[slot][entry.request_id] = entry
        self.pending_s[slot] += entry.prefill_s
        self.pending_tokens[slot] += entry.num_tokens
        self.num_in_flight[slot] += 1
        self.reserved_blocks[slot] += entry.num_reserved_at_slot
        self.reserved_blocks[entry.decode_slot] += entry.decode_blocks
        if len(self._queues[slot]) == 1:
            self._start_head(slot, entry.created_s)

    def sent(self, request_id: str, now: float) -> None:
        entry = self._entries[request_id]
        entry.state, entry.seen_s = RequestState.IN_TRANSIT, now

    def confirm(
        self, slot: int, waiting: Iterable[str], running: Iterable[str], now: float
    ) -> None:
        """At the worker at `slot` these wait for their first token, and those have it."""
        owned = self._owned[slot]
        for state, request_ids in (
            (RequestState.CONFIRMED, waiting),
            (RequestState.RUNNING, running),
        ):
            for request_id in request_ids:
                entry = owned.get(request_id)
                if entry is not None:
                    entry.state, entry.seen_s = state, now

    def first_token(self, slot: int, request_id: str, now: float) -> Entry | None:
        """Its prompt is computed at `slot`; it decodes there, or is on the way to where it does.
        A decode worker may have computed it itself. None if nobody waits for that any more."""
        entry = self._entries.get(request_id)
        if entry is None or entry.has_first_token or slot not in (entry.slot, entry.decode_slot):
            return None
        self._leave_queue(entry, now)
        del self._owned[entry.slot][request_id]
        entry.has_first_token = True
        entry.seen_s = now
        moves = entry.decode_slot != slot
        entry.state = RequestState.IN_TRANSIT if moves else RequestState.RUNNING
        self._owned[entry.decode_slot][request_id] = entry
        return entry

    def has_passed(self, slot: int, request_id: str) -> bool:
        """Whether it goes on elsewhere, or was never here: that it has ended at `slot` says
        nothing."""
        entry = self._entries.get(request_id)
        if entry is None or slot == entry.decode_slot:
            return False
        return slot != entry.slot or entry.has_first_token

    def end(self, request_id: str, state: RequestState, now: float) -> Entry | None:
        """Give back what it has; None if it had ended before."""
        assert state in (RequestState.FINISHED, RequestState.LOST, RequestState.TIMEOUT), state
        entry = self._entries.pop(request_id, None)
        if entry is None:
            return None
        if not entry.has_first_token:
            self._leave_queue(entry, now)
        del self._owned[entry.owner_slot][request_id]
        self.reserved_blocks[entry.decode_slot] -= entry.decode_blocks
        entry.state = state
        self.ended[state] += 1
        return entry

    # -- what has gone wrong --

    def missing(self, slot: int, mentioned: frozenset[str]) -> tuple[str, ...]:
        """Requests that the worker at `slot` had confirmed, and lists no more."""
        return tuple(
            request_id
            for request_id, entry in self._owned[slot].items()
            if entry.state in (RequestState.CONFIRMED, RequestState.RUNNING)
            and request_id not in mentioned
        )

    def at(self, slot: int) -> tuple[str, ...]:
        """Requests that end if the worker at `slot` dies: it has them, or is to decode them."""
        return tuple(
            request_id
            for request_id, entry in self._entries.items()
            if slot in (entry.owner_slot, entry.decode_slot)
        )

    def overdue(self, now: float, transit_s: float, silent_s: float) -> dict[str, RequestState]:
        """What must be given up: unconfirmed for `transit_s`, or not heard of for `silent_s`."""
        found: dict[str, RequestState] = {}
        for request_id, entry in self._entries.items():
            silence = now - entry.seen_s
            if silence > silent_s:
                found[request_id] = RequestState.TIMEOUT
            elif silence > transit_s and entry.state is RequestState.IN_TRANSIT:
                found[request_id] = RequestState.LOST
        return found

    # -- lines --

    def _leave_queue(self, entry: Entry, now: float) -> None:
        slot = entry.slot
        queue = self._queues[slot]
        was_head = next(iter(queue)) == entry.request_id
        del queue[entry.request_id]
        self.pending_s[slot] = self.pending_s[slot] - entry.prefill_s if queue else 0.0
        self.pending_tokens[slot] -= entry.num_tokens
        self.num_in_flight[slot] -= 1
        self.reserved_blocks[slot] -= entry.num_reserved_at_slot
        if was_head:
            self._start_head(slot, now)

    def _start_head(self, slot: int, now: float) -> None:
        head = next(iter(self._queues[slot].values()), None)
        self.head_s[slot] = head.prefill_s if head else 0.0
        self.head_start_s[slot] = now

    def check_invariants(self) -> None:
        """Sums are those of the entries."""
        size = len(self.pending_s)
        pending_s, tokens = np.zeros(size), np.zeros(size, np.int64)
        blocks, in_flight = np.zeros(size, np.int64), np.zeros(size, np.int64)
        for request_id, entry in self._entries.items():
            assert request_id in self._owned[entry.owner_slot]
            assert (request_id in self._queues[entry.slot]) != entry.has_first_token
            blocks[entry.decode_slot] += entry.decode_blocks
            if not entry.has_first_token:
                pending_s[entry.slot] += entry.prefill_s
                tokens[entry.slot] += entry.num_tokens
                in_flight[entry.slot] += 1
                blocks[entry.slot] += entry.num_reserved_at_slot
        assert np.allclose(pending_s, self.pending_s, atol=1e-9)
        assert (tokens == self.pending_tokens).all()
        assert (blocks == self.reserved_blocks).all()
        assert (in_flight == self.num_in_flight).all()
        assert sum(map(len, self._owned)) == len(self._entries)
        assert sum(map(len, self._queues)) == in_flight.sum()
        for slot, queue in enumerate(self._queues):
            head = next(iter(queue.values()), None)
            assert self.head_s[slot] == (head.prefill_s if head else 0.0)
