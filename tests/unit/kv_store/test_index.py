import pytest

from rtp_serve.kv_store.index import BlockIndex, IndexLimits
from rtp_serve.kv_store.index_stats import SlabState
from rtp_serve.kv_store.lease import Location
from rtp_serve.kv_store.reservation import RefusalReason
from tests.unit.kv_store.blocks import (
    LIMITS,
    LRU,
    SLAB_BYTES,
    Marks,
    found,
    make_chain,
    make_index,
    reasons,
    requests_of,
    reserve,
    store,
)


def slabs(index: BlockIndex) -> dict[str, int]:
    """Slabs by state, those without any left out; the index is consistent."""
    index.check_invariants()
    return {str(state): count for state, count in index.stats().slabs_by_state.items() if count}


def test_a_stored_chain_is_found_up_to_its_end():
    index, chain = make_index(), make_chain(3)
    reservations = store(index, chain[:2])
    lease = index.acquire(chain, "r", 0)
    assert [place.key for place in lease.locations] == chain[:2]
    assert [(place.slab, place.generation) for place in lease.locations] == [
        (each.slab, each.generation) for each in reservations
    ]
    counts = index.stats().counts
    assert (counts.hits, counts.misses, counts.stored) == (2, 1, 2)


def test_a_block_is_found_only_when_it_is_complete_and_its_chain_is():
    index, chain = make_index(), make_chain(2)
    first, second = reserve(index, requests_of(chain))
    assert index.complete([second]) == (True,)
    assert found(index, chain) == 0
    assert index.complete([first]) == (True,)
    assert found(index, chain) == 2


def test_a_block_that_is_there_or_being_written_is_not_written_twice():
    index, chain = make_index(), make_chain(3)
    store(index, chain[:1])
    reserve(index, requests_of(chain[:2], 1))
    answers = index.reserve(requests_of(chain), "other", 0)
    assert reasons(answers) == [RefusalReason.PRESENT, RefusalReason.RESERVED, None]
    twice = [*requests_of(make_chain(1, "b")), *requests_of(make_chain(1, "b"))]
    assert reasons(index.reserve(twice, "other", 0)) == [None, RefusalReason.RESERVED]


def test_a_block_whose_parent_is_not_there_is_refused():
    index, chain = make_index(), make_chain(2)
    assert reasons(index.reserve(requests_of(chain, 1), "w", 0)) == [RefusalReason.NO_PARENT]


def test_a_slab_is_marked_before_its_writer_hears_of_it():
    marks = Marks()
    index = make_index(marks=marks)
    assert marks.reservations == reserve(index, requests_of(make_chain(2)))


def test_a_generation_is_never_given_twice():
    index = make_index(2)
    seen = [each.generation for i in range(5) for each in store(index, make_chain(2, str(i)))]
    assert seen == sorted(set(seen))
    assert store(make_index(epoch=2), make_chain(1))[0].generation > max(seen)


def test_completing_twice_is_no_mistake():
    index, chain = make_index(), make_chain(1)
    reservations = reserve(index, requests_of(chain))
    assert index.complete(reservations) == index.complete(reservations) == (True,)
    assert index.stats().counts.stored == 1


def test_an_abandoned_slab_is_free_at_once():
    index, chain = make_index(2), make_chain(1)
    index.abandon(reserve(index, requests_of(chain)))
    assert slabs(index) == {"free": 2}
    assert found(index, chain) == 0


def test_what_was_reserved_below_an_abandoned_block_is_kept_back():
    """Whoever writes there does not know yet that it is for nothing."""
    index, chain = make_index(3), make_chain(2)
    (first,) = reserve(index, requests_of(chain[:1]), "a")
    (second,) = reserve(index, requests_of(chain, 1), "b")
    index.abandon([first])
    assert slabs(index) == {"free": 2, "quarantined": 1}
    assert index.complete([second]) == (False,)
    assert slabs(index) == {"free": 3}


def test_a_ready_block_goes_with_the_parent_that_was_never_written():
    index, chain = make_index(2), make_chain(2)
    first, second = reserve(index, requests_of(chain))
    index.complete([second])
    index.abandon([first])
    assert slabs(index) == {"free": 2}
    assert index.stats().counts.orphaned == 1


def test_a_reservation_that_runs_out_is_kept_back_and_then_free():
    index = make_index(1)
    reserve(index, requests_of(make_chain(1)))
    index.reap(LIMITS.session_s - 1)
    assert slabs(index) == {"reserved": 1}
    index.reap(LIMITS.session_s)
    assert slabs(index) == {"quarantined": 1}
    assert reasons(index.reserve(requests_of(make_chain(1)), "v", 11)) == [RefusalReason.FULL]
    index.reap(LIMITS.session_s + LIMITS.quarantine_s)
    assert slabs(index) == {"free": 1}
    assert index.stats().counts.reaped == 1


def test_the_same_block_can_be_reserved_elsewhere_while_its_old_slab_is_kept_back():
    index, chain = make_index(2), make_chain(1)
    (old,) = reserve(index, requests_of(chain), "w", 0)
    (new,) = reserve(index, requests_of(chain), "v", LIMITS.session_s)
    assert old.slab != new.slab
    assert index.complete([new]) == (True,)
    assert index.complete([old]) == (False,)
    assert index.acquire(chain, "r", 11).locations[0].slab == new.slab
    assert slabs(index) == {"free": 1, "leased": 1}


def test_a_late_completion_proves_that_the_writer_has_stopped():
    index = make_index(1)
    reservations = reserve(index, requests_of(make_chain(1)))
    index.reap(LIMITS.session_s)
    assert index.complete(reservations) == (False,)
    assert slabs(index) == {"free": 1}
    assert index.stats().counts.stale == 1


def test_a_dead_owner_holds_nothing():
    index, chain = make_index(4), make_chain(3)
    store(index, chain[:2])
    reserve(index, requests_of(chain, 2), "dead")
    index.acquire(chain, "dead", 0)
    assert index.pin(chain[:1], "dead", None) == 1
    reserve(index, requests_of(make_chain(1, "b")), "alive")
    index.owner_died("dead")
    assert slabs(index) == {"reserved": 1, "ready": 2, "free": 1}
    assert (index.stats().num_leases, index.stats().num_pins) == (0, 0)


def test_the_index_names_everybody_for_whom_it_holds_something():
    index, chain = make_index(4), make_chain(1)
    reserve(index, requests_of(make_chain(1, "late")), "late")
    index.reap(LIMITS.session_s)
    store(index, chain)
    index.acquire(chain, "reader", 0)
    index.pin(chain, "pinner", None)
    reserve(index, requests_of(make_chain(1, "b")), "writer", 0)
    assert index.owners() == {"late", "reader", "pinner", "writer"}
    for owner in index.owners():
        index.owner_died(owner)
    assert index.owners() == set()
    assert slabs(index) == {"free": 3, "ready": 1}


def test_a_death_ends_a_quarantine():
    index = make_index(2)
    reserve(index, requests_of(make_chain(1)), "dead")
    reserve(index, requests_of(make_chain(1, "b")), "silent")
    index.reap(LIMITS.session_s)
    index.owner_died("dead")
    assert slabs(index) == {"quarantined": 1, "free": 1}


def test_a_chain_is_evicted_from_its_leaf():
    index, chain = make_index(4), make_chain(4)
    store(index, chain)
    store(index, make_chain(2, "b"))
    assert found(index, chain) == 2
    assert index.stats().counts.evictions == 2


def test_the_longest_unused_leaf_goes_first():
    index, a, b, c = make_index(2), make_chain(1, "a"), make_chain(1, "b"), make_chain(1, "c")
    store(index, a)
    store(index, b)
    assert found(index, a) == 1
    store(index, c)
    assert (found(index, a), found(index, b), found(index, c)) == (1, 0, 1)


def test_leased_pinned_reserved_and_interior_blocks_are_not_evicted():
    index = make_index(5)
    leased, pinned, chain = make_chain(1, "l"), make_chain(1, "p"), make_chain(2, "c")
    store(index, leased)
    store(index, pinned)
    store(index, chain[:1])
    reserve(index, requests_of(chain, 1))
    reserve(index, requests_of(make_chain(1, "r")))
    lease = index.acquire(leased, "r", 0)
    index.pin(pinned, "api", None)
    other = requests_of(make_chain(1, "o"))
    assert reasons(index.reserve(other, "w", 0)) == [RefusalReason.FULL]
    assert (found(index, leased), found(index, pinned), found(index, chain)) == (1, 1, 1)
    index.release(lease.lease_id)
    assert reasons(index.reserve(other, "w", 0)) == [None]
    assert found(index, leased) == 0
    assert index.stats().counts.refused_full == 1


def test_a_block_does_not_push_out_the_one_before_it():
    index, chain = make_index(1), make_chain(2)
    store(index, chain[:1])
    assert reasons(index.reserve(requests_of(chain, 1), "w", 0)) == [RefusalReason.FULL]
    assert found(index, chain) == 1


def test_a_chain_longer_than_the_arena_is_stored_as_far_as_it_fits():
    index, chain = make_index(2), make_chain(4)
    answers = index.reserve(requests_of(chain), "w", 0)
    assert reasons(answers) == [None, None, RefusalReason.FULL, RefusalReason.NO_PARENT]


def test_a_lease_ends_with_its_deadline_unless_it_is_renewed():
    index, chain = make_index(1), make_chain(1)
    store(index, chain)
    lease = index.acquire(chain, "r", 0)
    renewed = index.renew(lease.lease_id, 15)
    assert renewed is not None
    assert renewed.deadline_s == 15 + LIMITS.lease_s
    index.reap(LIMITS.lease_s)
    assert slabs(index) == {"leased": 1}
    index.reap(renewed.deadline_s)
    assert slabs(index) == {"ready": 1}
    assert index.renew(lease.lease_id, 40) is None
    index.release(lease.lease_id)


def test_renewing_never_shortens_a_lease():
    index, chain = make_index(1), make_chain(1)
    store(index, chain)
    lease = index.acquire(chain, "r", 10)
    renewed = index.renew(lease.lease_id, 5)
    assert renewed is not None
    assert renewed.deadline_s == lease.deadline_s


def test_a_policy_hears_of_uses_before_it_chooses():
    policy = LRU()
    index, a, b = make_index(2, policy=policy), make_chain(1, "a"), make_chain(1, "b")
    store(index, a)
    store(index, b)
    assert found(index, a) == 1
    index.check_invariants()
    store(index, make_chain(1, "c"))
    assert (found(index, a), found(index, b)) == (1, 0)


@pytest.mark.parametrize("num_uses", [1, 1025])
def test_what_was_used_may_go(num_uses: int):
    index, chain = make_index(2), make_chain(2)
    store(index, chain)
    for _ in range(num_uses):
        index.release(index.acquire(chain, "r", 0).lease_id)
        index.check_invariants()
    index.trim(2 * SLAB_BYTES)
    index.check_invariants()
    assert found(index, chain) == 0


def test_the_beginning_of_a_chain_looks_newer_than_its_end():
    """So that a policy meets leaves first."""
    policy = LRU()
    index, a, b = make_index(4, policy=policy), make_chain(2, "a"), make_chain(2, "b")
    store(index, a)
    store(index, b)
    assert list(policy.keys) == [a[1], a[0], b[1], b[0]]
    assert found(index, a) == 2
    index.reap(0)
    assert list(policy.keys) == [b[1], b[0], a[1], a[0]]


def test_a_lease_of_nothing_is_not_kept():
    index = make_index()
    assert index.acquire(make_chain(2), "r", 0).locations == ()
    assert index.stats().num_leases == 0


def test_a_mismatch_removes_the_block_and_all_after_it():
    index, chain = make_index(3), make_chain(3)
    store(index, chain)
    lease = index.acquire(chain, "r", 0)
    index.release(lease.lease_id)
    index.mismatch(lease.locations[1], 5)
    assert found(index, chain) == 1
    assert slabs(index) == {"ready": 1, "free": 1, "quarantined": 1}
    index.mismatch(lease.locations[1], 6)
    counts = index.stats().counts
    assert (counts.mismatches, counts.stale, counts.orphaned) == (1, 1, 1)
    index.reap(5 + LIMITS.quarantine_s)
    assert slabs(index) == {"ready": 1, "free": 2}


def test_a_removed_block_keeps_its_slab_until_its_readers_are_done():
    index, chain = make_index(2), make_chain(2)
    store(index, chain)
    first, second = index.acquire(chain, "a", 0), index.acquire(chain, "b", 0)
    index.mismatch(first.locations[0], 0)
    assert slabs(index) == {"evicting": 2}
    index.release(first.lease_id)
    assert slabs(index) == {"evicting": 2}
    index.owner_died("b")
    assert slabs(index) == {"quarantined": 1, "free": 1}
    index.release(second.lease_id)
    assert slabs(index) == {"quarantined": 1, "free": 1}


def test_a_mismatch_of_another_generation_is_only_counted():
    index, chain = make_index(1), make_chain(1)
    (old,) = store(index, make_chain(1, "old"))
    store(index, chain)
    (place,) = index.acquire(chain, "r", 0).locations
    for stale in (
        Location(old.request.key, old.slab, old.generation),
        Location(old.request.key, place.slab, place.generation),
        Location(place.key, place.slab + 1, place.generation),
    ):
        index.mismatch(stale, 0)
    assert found(index, chain) == 1
    assert index.stats().counts.stale == 3


def test_pins_are_counted_by_owner_and_expire():
    index, chain = make_index(4), make_chain(2)
    store(index, chain)
    assert index.pin(chain, "api", 100) == 2
    assert index.pin(chain, "api", 50) == 2
    assert index.pin([chain[1], *make_chain(1, "absent")], "member", None) == 0
    assert index.stats().num_pins == 2  # the arena's half
    index.unpin([chain[0]], "api")
    index.unpin([chain[0]], "nobody")
    assert index.pin([chain[1]], "member", None) == 1
    index.reap(50)
    assert index.stats().num_pins == 1
    assert index.drop_oldest(9) == 0
    index.owner_died("member")
    assert index.drop_oldest(9) == 2
    assert slabs(index) == {"free": 4}


def test_a_block_that_is_being_written_is_not_pinned():
    index, chain = make_index(), make_chain(1)
    reserve(index, requests_of(chain))
    assert index.pin(chain, "api", None) == 0


def test_a_pin_goes_with_its_block():
    index, chain = make_index(4), make_chain(1)
    store(index, chain)
    index.pin(chain, "api", None)
    lease = index.acquire(chain, "r", 0)
    index.mismatch(lease.locations[0], 0)
    assert index.stats().num_pins == 0
    index.check_invariants()


def test_what_a_tenant_has_above_its_quota_goes_first():
    index = make_index(4, quotas={"small": 2, "large": 1})
    small, large = make_chain(2, "small"), make_chain(2, "large")
    store(index, small, tenant="small")
    store(index, large, tenant="large")
    assert found(index, large) == 2  # small's are the longest unused
    store(index, make_chain(1, "new"), tenant="large")
    assert (found(index, small), found(index, large)) == (2, 1)


def test_a_tenant_within_its_quota_loses_nothing_to_others():
    index = make_index(2, quotas={"a": 1, "b": 1})
    a, b = make_chain(1, "a"), make_chain(1, "b")
    store(index, a, tenant="a")
    store(index, b, tenant="b")
    assert reasons(index.reserve(requests_of(make_chain(1, "c"), tenant="c"), "w", 0)) == [
        RefusalReason.FULL
    ]
    store(index, make_chain(1, "new"), tenant="a")
    assert (found(index, a), found(index, b)) == (0, 1)


def test_bytes_are_told_by_tenant():
    index = make_index(4)
    store(index, make_chain(2, "a"), tenant="a")
    reserve(index, requests_of(make_chain(1, "b"), tenant="b"))
    assert index.stats().bytes_by_tenant == {"a": 2 * SLAB_BYTES, "b": SLAB_BYTES}


def test_trimming_drops_whole_blocks():
    index, chain = make_index(4), make_chain(4)
    store(index, chain)
    assert index.trim(SLAB_BYTES + 1) == 2 * SLAB_BYTES
    assert found(index, chain) == 2
    assert index.trim(10 * SLAB_BYTES) == 2 * SLAB_BYTES
    assert index.trim(1) == 0


def test_events_tell_what_can_be_found_and_a_snapshot_what_they_forgot():
    index, chain = make_index(2, limits=IndexLimits(num_events=3)), make_chain(2)
    start = index.snapshot()
    assert (start.keys, index.events_since(start.version)) == ((), ())
    store(index, chain)
    events = index.events_since(start.version)
    assert events is not None
    assert [(event.version - start.version, event.key, event.is_added) for event in events] == [
        (1, chain[1], True),
        (2, chain[0], True),
    ]
    assert index.events_since(start.version + 3) is None
    index.drop_oldest(2)
    assert index.events_since(start.version) is None
    events = index.events_since(start.version + 2)
    assert [event.is_added for event in events or ()] == [False, False]
    store(index, chain)
    snapshot = index.snapshot()
    assert (snapshot.version, snapshot.keys) == (start.version + 6, tuple(chain))
    assert index.events_since(snapshot.version) == ()


def test_numbers_of_an_earlier_index_mean_nothing_to_this_one():
    """Members that were there before it still have some."""
    index, chain = make_index(1, epoch=1), make_chain(1)
    store(index, chain)
    old_lease, old_version = index.acquire(chain, "r", 0), index.snapshot().version
    index = make_index(1, epoch=2)
    store(index, chain)
    assert index.events_since(old_version) is None
    index.acquire(chain, "r", 0)
    index.release(old_lease.lease_id)
    assert index.renew(old_lease.lease_id, 0) is None
    assert slabs(index) == {"leased": 1}


def test_every_slab_is_in_one_state():
    index, chain = make_index(6), make_chain(3)
    store(index, chain)
    index.acquire(chain[:1], "r", 0)
    reserve(index, requests_of(make_chain(1, "b")))
    by_state = index.stats().slabs_by_state
    assert set(by_state) == set(SlabState)
    assert sum(by_state.values()) == 6
    assert slabs(index) == {"ready": 2, "leased": 1, "reserved": 1, "free": 2}


def test_quotas_cannot_be_more_than_there_is():
    with pytest.raises(AssertionError, match="quotas"):
        make_index(2, quotas={"a": 2, "b": 1})
