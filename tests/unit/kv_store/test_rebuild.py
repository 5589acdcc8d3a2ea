from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from rtp_serve.kv_cache.block import BlockHash
from rtp_serve.kv_store.arena import SlabRecord
from rtp_serve.kv_store.index_stats import SlabState
from rtp_serve.kv_store.rebuild import sort_slabs
from rtp_serve.kv_store.reservation import Reservation
from rtp_serve.kv_store.slab_header import SlabMark, ready, reserved
from tests.unit.kv_store.arenas import make_key, make_reservation
from tests.unit.kv_store.blocks import LIMITS, found, make_chain, make_index, requests_of, reserve

FUTURE = 1 << 32


def whole(reservation: Reservation) -> SlabRecord:
    return SlabRecord(reservation.slab, SlabMark.READY, ready(reservation, 5, b"c" * 16))


def begun(reservation: Reservation) -> SlabRecord:
    return SlabRecord(reservation.slab, SlabMark.RESERVED, reserved(reservation))


def torn(slab: int) -> SlabRecord:
    return SlabRecord(slab, SlabMark.TORN, None)


def chain_records(chain: Sequence[BlockHash], slabs: Sequence[int]) -> list[SlabRecord]:
    """As an index of epoch 1 would have stored a chain in these slabs."""
    index = make_index(8)
    reservations = reserve(index, requests_of(chain))
    return [
        whole(Reservation(each.request, slab, each.generation, "w", each.deadline_s))
        for each, slab in zip(reservations, slabs, strict=True)
    ]


def test_a_chain_is_found_again_in_whatever_slabs_it_lies():
    chain = make_chain(3)
    records = sorted(chain_records(chain, [2, 0, 1]), key=lambda record: record.slab)
    index = make_index(records=records, epoch=2)
    index.check_invariants()
    assert [place.slab for place in index.acquire(chain, "r", 0).locations] == [2, 0, 1]
    assert index.stats().bytes_by_tenant.keys() == {"t"}


def test_what_comes_after_a_gap_is_free():
    chain = make_chain(3)
    first, _, third = chain_records(chain, [0, 1, 2])
    index = make_index(records=[first, torn(1), third], epoch=2)
    assert found(index, chain) == 1
    assert index.stats().slabs_by_state[SlabState.FREE] == 1


def test_of_two_slabs_with_one_key_the_newer_counts():
    old, new = (make_reservation("a", slab=i, generation=5 + i) for i in range(2))
    for records in ([whole(old), whole(new)], [whole(new), whole(old)]):
        slabs = sort_slabs(records, FUTURE)
        assert [each.slab for each in slabs.ready] == [1]
        assert slabs.free == (0,)


def test_a_header_that_claims_a_generation_to_come_is_torn():
    slabs = sort_slabs([whole(make_reservation("a", generation=FUTURE))], FUTURE)
    assert slabs.unsettled == (torn(0),)


def test_a_slab_that_was_reserved_is_kept_back_until_its_writer_cannot_be_writing():
    index = make_index(records=[begun(make_reservation("a", deadline_s=4))], epoch=2, now_s=1)
    index.reap(4 + LIMITS.quarantine_s - 1)
    assert index.stats().slabs_by_state[SlabState.QUARANTINED] == 1
    index.reap(4 + LIMITS.quarantine_s)
    assert index.stats().slabs_by_state[SlabState.FREE] == 1


def test_a_deadline_is_not_believed_beyond_a_session():
    records = [begun(make_reservation("a", deadline_s=1e12)), torn(1)]
    index = make_index(records=records, epoch=2, now_s=1)
    index.reap(1 + LIMITS.session_s + LIMITS.quarantine_s - 0.1)
    assert index.stats().slabs_by_state[SlabState.QUARANTINED] == 2
    index.reap(1 + LIMITS.session_s + LIMITS.quarantine_s)
    assert index.stats().slabs_by_state[SlabState.FREE] == 2


def test_a_writer_that_outlived_the_index_tells_the_next_one_that_it_has_stopped():
    reservation = make_reservation("a")
    index = make_index(records=[begun(reservation)], epoch=2)
    assert index.complete([reservation]) == (False,)
    assert index.stats().slabs_by_state[SlabState.FREE] == 1


def test_older_chains_are_evicted_first_and_each_from_its_leaf():
    index = make_index(4)
    chains = make_chain(2, "old"), make_chain(2, "new")
    reservations = [each for chain in chains for each in reserve(index, requests_of(chain))]
    index = make_index(records=[whole(each) for each in reservations], epoch=2)
    for left in ((1, 2), (0, 2), (0, 1), (0, 0)):
        assert index.drop_oldest(1) == 1
        keys = index.snapshot().keys
        assert tuple(sum(key in keys for key in chain) for chain in chains) == left


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_any_set_of_slabs_makes_a_consistent_index(data: st.DataObject):
    names = st.sampled_from("abcd")
    records = []
    for slab in range(data.draw(st.integers(1, 6))):
        reservation = make_reservation(
            data.draw(names), slab, slab, data.draw(st.none() | names), deadline_s=3
        )
        kind = data.draw(st.sampled_from([whole, begun, None]))
        records.append(kind(reservation) if kind else torn(slab))
    index = make_index(records=records, epoch=2)
    index.check_invariants()
    index.reap(1e9)
    by_state = index.stats().slabs_by_state
    assert by_state[SlabState.FREE] + by_state[SlabState.READY] == len(records)
    roots = {
        record.header.request.key
        for record in records
        if record.mark is SlabMark.READY and record.header and not record.header.request.parent
    }
    for key in map(make_key, "abcd"):
        assert found(index, [key]) >= (key in roots and newest_is_root(records, key))


def newest_is_root(records: Sequence[SlabRecord], key: BlockHash) -> bool:
    headers = [
        record.header
        for record in records
        if record.mark is SlabMark.READY and record.header and record.header.request.key == key
    ]
    return max(headers, key=lambda header: header.generation).request.parent is None
