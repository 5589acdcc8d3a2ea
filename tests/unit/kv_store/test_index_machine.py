"""Random members and times against an index, with the books kept a second time, the simple way."""

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from rtp_serve.kv_cache.block import BlockHash
from rtp_serve.kv_store.arena import SlabRecord
from rtp_serve.kv_store.index_stats import SlabState
from rtp_serve.kv_store.lease import Lease
from rtp_serve.kv_store.reservation import Refusal, RefusalReason, Reservation, StoreRequest
from rtp_serve.kv_store.slab_header import SlabMark, encode, ready, ready_at, reserved
from tests.unit.kv_store.blocks import (
    LIMITS,
    SLAB_BYTES,
    empty_records,
    make_chain,
    make_index,
    requests_of,
)

OWNERS = st.sampled_from(["p", "q"])
FOREVER_S = 1e9


def make_branches() -> list[list[BlockHash]]:
    """Two chains with a common beginning, and one apart."""
    trunk, other = make_chain(2, "trunk"), make_chain(3, "other")
    left, right = make_chain(2, "left"), make_chain(2, "right")
    return [trunk + left, trunk + right, other]


class IndexMachine(RuleBasedStateMachine):
    """`headers` is what the arena would have; `found` is what the events say."""

    @initialize(
        num_slabs=st.integers(2, 5), quotas=st.sampled_from([{}, {"a": 2}, {"a": 1, "b": 1}])
    )
    def start(self, num_slabs: int, quotas: dict[str, int]) -> None:
        self.headers = empty_records(num_slabs)
        self.quotas = quotas
        self.now_s = 0.0
        self.epoch = 0
        self.chains = make_branches()
        self.generations: set[int] = set()
        self.tenants: dict[BlockHash, str] = {}
        self.writing: list[Reservation] = []
        self.start_index()

    def start_index(self) -> None:
        """Who is writing goes on; what anybody reads, this index has never heard of."""
        self.epoch += 1
        self.index = make_index(
            records=self.headers,
            epoch=self.epoch,
            now_s=self.now_s,
            quotas=self.quotas,
            marks=self,
        )
        self.leases: list[Lease] = []
        self.found = set(self.index.snapshot().keys)
        self.version = self.index.snapshot().version

    def mark_reserved(self, reservation: Reservation) -> None:
        assert reservation.generation not in self.generations
        self.generations.add(reservation.generation)
        slab = reservation.slab
        held = {place.slab for lease in self.leases for place in lease.locations}
        assert slab not in held, "a slab that is being read was given away"
        writers = {
            each.slab for each in self.writing if self.now_s < each.deadline_s + LIMITS.quarantine_s
        }
        assert slab not in writers, "a slab that may be written to was given away"
        self.headers[slab] = SlabRecord(slab, SlabMark.RESERVED, reserved(reservation))

    @rule(chain=st.integers(0, 2), owner=OWNERS, tenant=st.sampled_from(["a", "b"]))
    def reserve(self, chain: int, owner: str, tenant: str) -> None:
        self.forget_ended_leases()
        requests = requests_of(self.chains[chain], tenant=tenant)
        before = set(self.found)
        safe = self.safe_from(tenant)
        answers = self.index.reserve(requests, owner, self.now_s)
        assert safe <= set(self.index.snapshot().keys), "a tenant lost what its quota is for"
        for request, answer in zip(requests, answers, strict=True):
            if isinstance(answer, Reservation):
                assert answer.request == request
                self.writing.append(answer)
                self.tenants[request.key] = tenant
            elif answer.reason is RefusalReason.PRESENT:
                assert request.key in before
        self.check_refusals(requests, answers)

    @rule(chain=st.integers(0, 2), owner=OWNERS, tenant=st.sampled_from(["a", "b"]))
    def put(self, chain: int, owner: str, tenant: str) -> None:
        """A whole batch, with nothing in between."""
        before = len(self.writing)
        self.reserve(chain, owner, tenant)
        mine, self.writing = self.writing[before:], self.writing[:before]
        assert self.write(mine) == [True] * len(mine)

    def safe_from(self, tenant: str) -> set[BlockHash]:
        """Keys that no other tenant's blocks may push out."""
        used = Counter(self.index.stats().bytes_by_tenant)
        within = {
            each
            for each, quota in self.quotas.items()
            if each != tenant and used[each] <= quota * SLAB_BYTES
        }
        return {key for key in self.found if self.tenants[key] in within}

    def check_refusals(
        self, requests: list[StoreRequest], answers: tuple[Reservation | Refusal, ...]
    ) -> None:
        """After the first block that cannot be had, none can."""
        reasons = [each.reason for each in answers if isinstance(each, Refusal)]
        if RefusalReason.FULL in reasons:
            after = reasons[reasons.index(RefusalReason.FULL) + 1 :]
            assert set(after) <= {RefusalReason.NO_PARENT}

    @precondition(lambda self: self.writing)
    @rule(data=st.data(), is_whole=st.booleans())
    def finish(self, data: st.DataObject, is_whole: bool) -> None:
        """Some of the writers of a batch write and tell; a late one may still write."""
        which = data.draw(st.lists(st.sampled_from(self.writing), unique=True, min_size=1))
        for each in which:
            self.writing.remove(each)
        if not is_whole:
            self.index.abandon(which)
            return
        self.write(which)

    def write(self, reservations: list[Reservation]) -> list[bool]:
        """What the arena does, which looks whose the slab is, and what the index says."""
        for each in reservations:
            if self.headers[each.slab].header == reserved(each):
                whole = ready(each, 5, b"c" * 16)
                self.headers[each.slab] = SlabRecord(each.slab, SlabMark.READY, whole)
        are_there = self.index.complete(reservations)
        for each, is_there in zip(reservations, are_there, strict=True):
            assert not is_there or self.headers[each.slab].header == ready(each, 5, b"c" * 16)
        return list(are_there)

    @rule(chain=st.integers(0, 2), owner=OWNERS)
    def acquire(self, chain: int, owner: str) -> None:
        lease = self.index.acquire(self.chains[chain], owner, self.now_s)
        expected = []
        for key in self.chains[chain]:
            if key not in self.found:
                break
            expected.append(key)
        assert [place.key for place in lease.locations] == expected
        for place in lease.locations:
            header = self.headers[place.slab].header
            assert header is not None
            assert ready_at(encode(header, place.slab), place)
        self.leases.append(lease)

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), verb=st.sampled_from(["release", "renew", "mismatch"]))
    def use_lease(self, data: st.DataObject, verb: str) -> None:
        lease = self.leases.pop(data.draw(st.integers(0, len(self.leases) - 1)))
        if verb == "renew":
            renewed = self.index.renew(lease.lease_id, self.now_s)
            self.leases += [renewed] if renewed else []
            return
        if verb == "mismatch" and lease.locations:
            place = data.draw(st.sampled_from(lease.locations))
            self.index.mismatch(place, self.now_s)
            header = self.headers[place.slab].header
            if header is not None and ready_at(encode(header, place.slab), place):
                self.headers[place.slab] = SlabRecord(place.slab, SlabMark.TORN, None)
        self.index.release(lease.lease_id)

    @rule(chain=st.integers(0, 2), owner=OWNERS, for_s=st.none() | st.integers(1, 30))
    def pin(self, chain: int, owner: str, for_s: int | None) -> None:
        keys = self.chains[chain]
        expires_s = None if for_s is None else self.now_s + for_s
        before = self.index.stats().num_pins
        num_pinned = self.index.pin(keys, owner, expires_s)
        assert num_pinned <= sum(key in self.found for key in keys)
        assert before <= self.index.stats().num_pins <= before + num_pinned

    @rule(what=st.sampled_from(["unpin", "drop", "time", "death", "index's death"]), data=st.data())
    def end(self, what: str, data: st.DataObject) -> None:
        """One rule, so that more is put and read than ends."""
        if what == "unpin":
            self.index.unpin(data.draw(st.sampled_from(self.chains)), data.draw(OWNERS))
        elif what == "drop":
            self.drop_oldest(data.draw(st.integers(0, 3)))
        elif what == "time":
            self.time_passes(data.draw(st.sampled_from([1, 10, 30, 60])))
        elif what == "death":
            self.die(data.draw(OWNERS))
        else:
            self.start_index()

    def drop_oldest(self, num_blocks: int) -> None:
        before = len(self.found)
        num_dropped = self.index.drop_oldest(num_blocks)
        assert len(self.index.snapshot().keys) == before - num_dropped

    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds
        self.index.reap(self.now_s)
        self.forget_ended_leases()

    def forget_ended_leases(self) -> None:
        self.leases = [lease for lease in self.leases if lease.deadline_s > self.now_s]

    def die(self, owner: str) -> None:
        self.index.owner_died(owner)
        self.writing = [each for each in self.writing if each.owner != owner]
        self.leases = [each for each in self.leases if each.owner != owner]

    @invariant()
    def books_agree(self) -> None:
        self.index.check_invariants()
        for event in self.index.events_since(self.version) or ():
            assert (event.key in self.found) is not event.is_added
            (self.found.add if event.is_added else self.found.discard)(event.key)
            self.version = event.version
        snapshot = self.index.snapshot()
        assert set(snapshot.keys) == self.found
        assert len(snapshot.keys) == len(self.found)

    def teardown(self) -> None:
        if not hasattr(self, "index"):
            return
        for owner in ("p", "q"):
            self.index.owner_died(owner)
        self.index.reap(FOREVER_S)
        self.index.check_invariants()
        assert self.index.owners() == set()
        by_state = self.index.stats().slabs_by_state
        assert by_state[SlabState.FREE] + by_state[SlabState.READY] == len(self.headers)
        self.index.drop_oldest(len(self.headers))
        assert self.index.stats().slabs_by_state[SlabState.FREE] == len(self.headers)
        assert self.index.stats().bytes_by_tenant == {}


TestIndexMachine = IndexMachine.TestCase
TestIndexMachine.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
