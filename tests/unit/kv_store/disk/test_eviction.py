from rtp_serve.kv_store.disk.eviction import survivors
from rtp_serve.kv_store.disk.record import DiskLocation, Record
from tests.unit.kv_store.blocks import make_chain, requests_of

RECORDS = [
    Record(request, DiskLocation(request.key, 1, 8192 * i, 4096, bytes(16)))
    for i, request in enumerate(requests_of(make_chain(5)))
]


def _kept(uses: list[int], max_bytes: int) -> list[int]:
    kept = survivors(RECORDS, lambda record: uses[RECORDS.index(record)], max_bytes)
    return [RECORDS.index(record) for record in kept]


def test_what_nobody_used_is_not_kept() -> None:
    assert _kept([1, 0, 3, 0, 1], 1 << 20) == [0, 2, 4]
    assert _kept([0, 0, 0, 0, 0], 1 << 20) == []


def test_the_most_used_are_kept_as_far_as_there_is_room() -> None:
    assert _kept([1, 2, 3, 2, 1], 3 * 8192) == [1, 2, 3]
    assert _kept([1, 2, 3, 2, 1], 3 * 8192 - 1) == [1, 2]
    assert _kept([3, 3, 3, 3, 3], 8191) == []


def test_of_equally_used_ones_those_before_others_are_kept() -> None:
    assert _kept([2, 2, 2, 2, 2], 2 * 8192) == [0, 1]
