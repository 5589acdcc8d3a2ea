"""Real processes over one arena, killed where it hurts. The test's own process owns the index."""

import subprocess
import sys
from pathlib import Path

from rtp_serve.kv_store.arena_files import ArenaFiles, ArenaMember
from rtp_serve.kv_store.index import BlockIndex, IndexLimits
from rtp_serve.kv_store.index_stats import SlabState
from rtp_serve.kv_store.reservation import Reservation, StoreRequest
from tests.unit.kv_store.arenas import LAYOUT, content, make_key, place_of, read
from tests.unit.kv_store.blocks import LRU, TAG

ROOT = Path(__file__).parents[3]
LIMITS = IndexLimits(session_s=10, quarantine_s=60, lease_s=10)

ACTOR = """
import sys
from pathlib import Path

import numpy as np

from rtp_serve.kv_store.arena import Arena
from rtp_serve.kv_store.arena_files import ArenaFiles
from rtp_serve.kv_store.lease import Location
from rtp_serve.kv_store.slab_header import checksum_of
from tests.unit.kv_store.arenas import LAYOUT, content, make_reservation, place_of

root, verb, name, slab, generation, deadline_s = sys.argv[1:]
member = ArenaFiles(Path(root)).join("n", 5000, LAYOUT, 1 << 20)


def halfway(targets, sources):
    return list(map(copy_halfway, targets, sources))


def copy_halfway(into, source):
    pieces = []
    for part in (slice(2500), slice(2500, None)):
        if pieces:
            print("halfway", flush=True)
            sys.stdin.readline()
        pieces.append(source[part].tobytes())
        into[part] = np.frombuffer(pieces[-1], np.uint8)
    return checksum_of(memoryview(b"".join(pieces)))


arena = Arena(member._memory, member.arena.geometry, halfway)
reservation = make_reservation(name, int(slab), int(generation), deadline_s=float(deadline_s))
if verb == "put":
    print(*arena.put([reservation], [content(name)], 0.0), flush=True)
else:
    filled = arena.read_into([place_of(reservation)], [memoryview(bytearray(5000))])
    print(filled == [content(name)], flush=True)
"""

OWNER = """
import sys
from pathlib import Path

from rtp_serve.kv_store.arena_files import ArenaFiles
from rtp_serve.kv_store.index import BlockIndex
from tests.unit.kv_store.arenas import LAYOUT, content, make_key
from tests.unit.kv_store.blocks import LRU, TAG
from rtp_serve.kv_store.reservation import StoreRequest

member = ArenaFiles(Path(sys.argv[1])).join("n", 5000, LAYOUT, 1 << 20)
index = BlockIndex(member.arena.scan(), 5000, member.own(), LRU(), member.arena, 0)
a, b, c = map(make_key, "abc")
requests = [StoreRequest(key, parent, "tenant", TAG) for key, parent in ((a, None), (b, a), (c, b))]
reservations = index.reserve(requests, "w", 0)
for name, reservation in zip("ab", reservations):
    member.arena.put([reservation], [content(name)], 0)
index.complete(reservations[:2])
index.acquire([a, b], "r", 0)
index.pin([a], "r", None)
print(reservations[2].slab, reservations[2].generation, flush=True)
sys.stdin.readline()
"""


class Child:
    """A process that says where it is and waits to be told to go on."""

    def __init__(self, script: str, *arguments: object) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", script, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )

    def hear(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def go_on(self) -> str:
        """Its last word."""
        out, _ = self._process.communicate("\n")
        return out.strip()

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


def actor(member: ArenaMember, verb: str, name: str, reservation: Reservation) -> Child:
    child = Child(
        ACTOR,
        member.path.parent,
        verb,
        name,
        reservation.slab,
        reservation.generation,
        reservation.deadline_s,
    )
    assert child.hear() == "halfway"
    return child


def join(root: Path) -> ArenaMember:
    return ArenaFiles(root).join("n", 5000, LAYOUT, 1 << 20)


def start_index(member: ArenaMember, now_s: float = 0) -> BlockIndex:
    epoch = member.own()
    assert epoch is not None
    return BlockIndex(member.arena.scan(), 5000, epoch, LRU(), member.arena, now_s, LIMITS)


def reserve(index: BlockIndex, name: str, owner: str, now_s: float = 0) -> Reservation:
    """For the request that `make_reservation` makes in the other process."""
    (answer,) = index.reserve([StoreRequest(make_key(name), None, "tenant", TAG)], owner, now_s)
    assert isinstance(answer, Reservation)
    return answer


def put(member: ArenaMember, index: BlockIndex, name: str, now_s: float = 0) -> Reservation:
    reservation = reserve(index, name, "here", now_s)
    assert member.arena.put([reservation], [content(name)], now_s) == [True]
    assert index.complete([reservation]) == (True,)
    return reservation


def states(index: BlockIndex) -> dict[SlabState, int]:
    index.check_invariants()
    return index.stats().slabs_by_state


def test_a_writer_killed_in_the_middle_of_a_put_leaves_nothing(tmp_path: Path):
    member = join(tmp_path)
    index = start_index(member)
    start = states(index)
    reservation = reserve(index, "a", "dead")
    actor(member, "put", "a", reservation).kill()
    assert read(member.arena, place_of(reservation)) is None
    index.owner_died("dead")
    assert states(index) == start
    put(member, index, "a")


def test_a_writer_killed_in_the_middle_whose_death_nobody_tells_leaves_nothing_for_long(
    tmp_path: Path,
):
    member = join(tmp_path)
    index = start_index(member)
    start = states(index)
    actor(member, "put", "a", reserve(index, "a", "dead")).kill()
    index.reap(LIMITS.session_s + LIMITS.quarantine_s)
    assert states(index) == start


def test_a_writer_that_sleeps_through_everything_spoils_nothing_but_a_hit(tmp_path: Path):
    """It goes on writing when its slab has long been another's, and READY."""
    member = join(tmp_path)
    index = start_index(member)
    late = reserve(index, "late", "sleeper")
    sleeper = actor(member, "put", "late", late)
    now_s = LIMITS.session_s + LIMITS.quarantine_s
    index.reap(now_s)
    reservations = [put(member, index, f"{i}", now_s) for i in range(states(index)[SlabState.FREE])]
    (taken,) = (each for each in reservations if each.slab == late.slab)
    name = str(reservations.index(taken))
    assert read(member.arena, place_of(taken)) == content(name).tobytes()
    assert sleeper.go_on() == "False"
    lease = index.acquire([taken.request.key], "r", now_s)
    assert read(member.arena, lease.locations[0]) is None
    index.mismatch(lease.locations[0], now_s)
    index.release(lease.lease_id)
    assert states(index)[SlabState.QUARANTINED] == 1
    assert index.complete([late]) == (False,)
    others = [each for each in reservations if each is not taken]
    assert all(read(member.arena, place_of(each)) is not None for each in others)


def test_a_reader_killed_in_the_middle_of_a_get_holds_nothing(tmp_path: Path):
    member = join(tmp_path)
    index = start_index(member)
    reservation = put(member, index, "a")
    start = states(index), index.stats().num_leases
    index.acquire([reservation.request.key], "dead", 0)
    actor(member, "get", "a", reservation).kill()
    assert states(index)[SlabState.LEASED] == 1
    index.owner_died("dead")
    assert (states(index), index.stats().num_leases) == start
    assert index.drop_oldest(1) == 1


def test_a_reader_that_outlives_its_lease_gets_a_miss(tmp_path: Path):
    member = join(tmp_path)
    index = start_index(member)
    reservation = put(member, index, "a")
    index.acquire([reservation.request.key], "slow", 0)
    reader = actor(member, "get", "a", reservation)
    index.reap(LIMITS.lease_s)
    assert index.drop_oldest(1) == 1
    for i in range(states(index)[SlabState.FREE]):
        put(member, index, f"{i}", LIMITS.lease_s)
    assert reader.go_on() == "False"


def test_a_reader_in_the_middle_when_the_index_starts_anew_gets_its_block(tmp_path: Path):
    member, heir = join(tmp_path), join(tmp_path)
    index = start_index(member)
    reservation = put(member, index, "a")
    reader = actor(member, "get", "a", reservation)
    member.leave()
    assert states(start_index(heir))[SlabState.READY] == 1
    assert reader.go_on() == "True"


def test_an_index_whose_owner_is_killed_is_rebuilt_from_the_slabs(tmp_path: Path):
    """Its writer is in the middle of a put meanwhile, and stays there."""
    member = join(tmp_path)
    owner = Child(OWNER, tmp_path)
    slab, generation = map(int, owner.hear().split())
    assert member.own() is None
    owner.kill()
    index = start_index(member)
    num_slabs = member.arena.geometry.num_slabs
    expected = dict.fromkeys(SlabState, 0) | {
        SlabState.READY: 2,
        SlabState.QUARANTINED: 1,
        SlabState.FREE: num_slabs - 3,
    }
    assert states(index) == expected
    assert (index.stats().num_leases, index.stats().num_pins) == (0, 0)
    lease = index.acquire([make_key(name) for name in "abc"], "r", 0)
    copies = [read(member.arena, place) for place in lease.locations]
    assert copies == [content("a").tobytes(), content("b").tobytes()]
    index.release(lease.lease_id)
    (new,) = index.reserve([StoreRequest(make_key("c"), make_key("b"), "tenant", TAG)], "w", 0)
    assert isinstance(new, Reservation)
    assert new.slab != slab
    assert new.generation > generation
    index.abandon([new])
    index.reap(LIMITS.session_s + LIMITS.quarantine_s)
    assert index.drop_oldest(9) == 2
    assert states(index) == dict.fromkeys(SlabState, 0) | {SlabState.FREE: num_slabs}
