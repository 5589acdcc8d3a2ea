"""The workers as they last reported, as arrays by slot."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from rtp_serve.routing.slots import Slots
from rtp_serve.routing.types import Bools, Floats, Ints, Role, WorkerId, WorkerStatus

_ROLES = tuple(Role)
_ROLE_NUMBERS = {role: number for number, role in enumerate(_ROLES)}


class Fleet:
    """One row a slot. Array attributes are read only, [max_workers]."""

    def __init__(self, max_workers: int) -> None:
        self.slots = Slots(max_workers)
        self.stores = Slots(max_workers)
        self.num_blocks: Ints = np.zeros(max_workers, np.int64)
        self.num_free_blocks: Ints = np.zeros(max_workers, np.int64)
        self.num_decoding: Ints = np.zeros(max_workers, np.int64)
        self.itl_s: Floats = np.zeros(max_workers)
        self.store_slots: Ints = np.full(max_workers, -1, np.int64)
        """−1 of a worker without tiers below its device."""
        self._seen_s: Floats = np.full(max_workers, -np.inf)
        self._roles: Ints = np.full(max_workers, -1, np.int64)
        self._epochs = [0] * max_workers
        self._names: npt.NDArray[np.object_] = np.full(max_workers, None, np.object_)
        self._statuses: dict[str, WorkerStatus] = {}
        self._is_usable: Bools = np.zeros(max_workers, np.bool_)
        self._by_role: dict[frozenset[Role], Ints] = {}
        self._named: tuple[Ints, tuple[WorkerId, ...]] | None = None

    def __len__(self) -> int:
        return len(self.slots)

    def worker_id(self, slot: int) -> WorkerId:
        return WorkerId(self.slots.name(slot))

    def worker_ids(self, slots: Ints) -> tuple[WorkerId, ...]:
        """Of many; `worker_id` asked a thousand times takes as long as all of a decision. Those of
        an array that `usable` gave are kept: another worker makes it give another array."""
        named = self._named
        if named is None or named[0] is not slots:
            named = self._named = slots, tuple(self._names[slots].tolist())
        return named[1]

    def role(self, slot: int) -> Role:
        """Of a worker that is there."""
        return _ROLES[int(self._roles[slot])]

    def is_usable(self, slot: int) -> bool:
        """Whether it reports, as far as `silence` was called."""
        return bool(self._is_usable[slot])

    def epoch(self, worker_id: WorkerId) -> int | None:
        """Of its present life; None if it is unknown."""
        slot = self.slots.get(worker_id)
        return None if slot is None else self._epochs[slot]

    def statuses(self) -> Iterator[tuple[int, WorkerStatus, float]]:
        """Every worker's slot, its last report, and when that came."""
        for worker_id, status in self._statuses.items():
            slot = self.slots.get(worker_id)
            assert slot is not None, worker_id
            yield slot, status, float(self._seen_s[slot])

    def update(self, status: WorkerStatus, now: float) -> int:
        """Take a report; the slot of the worker, which may be new."""
        slot = self.slots.add(status.worker_id)
        self._names[slot] = status.worker_id
        self.num_blocks[slot] = status.num_blocks
        self.num_free_blocks[slot] = status.num_free_blocks
        self.num_decoding[slot] = status.num_decoding
        self.itl_s[slot] = status.itl_s
        self.store_slots[slot] = self.stores.add(status.store) if status.store else -1
        self._seen_s[slot] = now
        self._statuses[status.worker_id] = status
        self._epochs[slot] = status.epoch
        role = _ROLE_NUMBERS[status.role]
        if self._roles[slot] != role or not self._is_usable[slot]:
            self._roles[slot], self._is_usable[slot] = role, True
            self._by_role.clear()
        return slot

    def remove(self, worker_id: WorkerId) -> int:
        """It is gone; the slot that it had."""
        slot = self.slots.remove(worker_id)
        del self._statuses[worker_id]
        self._roles[slot], self._is_usable[slot] = -1, False
        self._by_role.clear()
        return slot

    def unused_stores(self) -> tuple[str, ...]:
        """Stores that no worker shares any more."""
        used = {status.store for status in self._statuses.values()}
        return tuple(name for name in self.stores if name not in used)

    def silence(self, now: float, limit_s: float) -> tuple[WorkerId, ...]:
        """Pass over workers that have said nothing for longer, until they do; name the new ones."""
        late = np.flatnonzero(self._is_usable & (now - self._seen_s > limit_s)).tolist()
        if late:
            self._is_usable[late] = False
            self._by_role.clear()
        return tuple(self.worker_id(slot) for slot in late)

    def usable(self, roles: frozenset[Role]) -> Ints:
        """Slots of workers of these roles that report; not to be written to."""
        found = self._by_role.get(roles)
        if found is None:
            wanted = np.isin(self._roles, [_ROLE_NUMBERS[role] for role in roles])
            found = self._by_role[roles] = np.flatnonzero(self._is_usable & wanted)
        return found
