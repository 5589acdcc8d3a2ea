"""A node in small steps: writers, a reader and the index's owner over a few slabs of two bytes.

Every step that others can come between is a step here: each call to the index, each half of a
payload and of a header. At any step any actor may die, and the owner come back with an index that
it reads from the headers. The index, the headers and the checksums are the real ones; what is
written down again here is the order of `Arena.put` and `Arena.read_into`, which touch memory.

A writer that just stands still needs no step of its own: others move and time passes meanwhile.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from rtp_serve.kv_cache.block import BlockHash
from rtp_serve.kv_store.arena import SlabRecord
from rtp_serve.kv_store.index import BlockIndex, IndexLimits
from rtp_serve.kv_store.index_stats import SlabState
from rtp_serve.kv_store.reservation import Reservation, StoreRequest
from rtp_serve.kv_store.slab_header import (
    checksum_of,
    decode,
    encode,
    mark_of,
    ready,
    ready_at,
    reserved,
)
from tests.unit.kv_store.blocks import LRU, SLAB_BYTES, TAG
from tests.unit.kv_store.cloning import clone, state_of
from tests.unit.kv_store.model_actors import (
    HALF,
    Actor,
    Budget,
    Faults,
    Reader,
    Slab,
    Violation,
    Writer,
)

_LIMITS = IndexLimits(session_s=1, quarantine_s=1, lease_s=1)
_FOREVER_S = 1e9


Step = tuple[str, Callable[["World"], None]]


def content_of(key: BlockHash) -> tuple[bytes, bytes]:
    """A block's two bytes."""
    return key[:1], key[1:2]


class World:
    """One state. Steps change it; `copy` before."""

    def __init__(
        self, num_slabs: int, actors: Sequence[Actor], budget: Budget, faults: Faults
    ) -> None:
        self.memory = [Slab()] * num_slabs
        self.actors = list(actors)
        self.budget = budget
        self.faults = faults
        self.now_s = 0
        self.epoch = 0
        self.given: frozenset[int] = frozenset()
        self._index: BlockIndex | None = None
        self._index_state: object = None
        self.start_index()

    def copy(self) -> "World":
        """It has its own index when it calls it."""
        other = object.__new__(World)
        other.__dict__.update(self.__dict__)
        other.memory, other.actors = list(self.memory), list(self.actors)
        return other

    @property
    def index(self) -> BlockIndex:
        """The index, to be called once in a step."""
        assert self._index is not None, "the index is dead"
        self._index, self._index_state = clone(self._index, self), None
        return self._index

    @property
    def is_index_alive(self) -> bool:
        return self._index is not None

    def state(self) -> object:
        """Equal for worlds in which the same can happen."""
        if self._index_state is None:
            self._index_state = state_of(self._index)
        world = tuple(self.memory), tuple(self.actors), self.budget, self.now_s, self.epoch
        return world, self._index_state

    # What can happen next

    def steps(self) -> Iterator[Step]:
        for place, actor in enumerate(self.actors):
            steps = self._writer_steps if isinstance(actor, Writer) else self._reader_steps
            yield from steps(place, actor)
            if self.budget.deaths and actor.step != "done":
                yield f"{actor.name} dies", lambda world, place=place: world._die(place)
        if not self.is_index_alive:
            yield "index restarts", World.start_index
        elif self.budget.restarts:
            yield "index dies", World._end_index
        if self.budget.ticks:
            yield "time passes", World._tick

    def _writer_steps(self, place: int, writer: Writer) -> Iterator[Step]:
        if writer.step == "done":
            return
        is_call = writer.step in ("reserve", "complete", "abandon")
        if not is_call or self.is_index_alive:
            name = f"{writer.name}: {writer.step}"
            yield name, lambda world: getattr(world, f"_{writer.step}")(place, writer)
        if writer.step == "reserve" and self.is_index_alive and self.budget.restarts:
            yield f"index dies answering {writer.name}", lambda world: world._half_mark(writer)

    def _reader_steps(self, place: int, reader: Reader) -> Iterator[Step]:
        if reader.step == "acquire" and self.is_index_alive:
            for chain in reader.chains:
                name = f"{reader.name}: acquire {chain[-1][:2]!r}"
                yield name, lambda world, chain=chain: world._acquire(place, reader, chain)
        elif reader.step in ("first", "second", "verify"):
            name = f"{reader.name}: {reader.step}"
            yield name, lambda world: getattr(world, f"_{reader.step}")(place, reader)
        elif reader.step == "release" and self.is_index_alive:
            yield f"{reader.name}: release", lambda world: world._release(place, reader)

    # The index and its owner

    def records(self) -> Iterator[SlabRecord]:
        for number, slab in enumerate(self.memory):
            raw = b"".join(slab.header)
            header = decode(raw, number)
            yield SlabRecord(number, mark_of(raw, header), header)

    def start_index(self) -> None:
        if not (self.faults.same_epoch and self.epoch):
            self.epoch += 1
        self._index, self._index_state = self.new_index(self.epoch), None

    def new_index(self, epoch: int) -> BlockIndex:
        limits = replace(_LIMITS, quarantine_s=0) if self.faults.no_quarantine else _LIMITS
        return BlockIndex(self.records(), SLAB_BYTES, epoch, LRU(), self, self.now_s, limits)

    def mark_reserved(self, reservation: Reservation) -> None:
        if reservation.generation in self.given:
            raise Violation(f"generation {reservation.generation} was given twice")
        self.given |= {reservation.generation}
        for each in self.actors:
            if isinstance(each, Writer) and each.is_writing:
                held_until_s = each.current.deadline_s + _LIMITS.quarantine_s
                if each.current.slab == reservation.slab and self.now_s < held_until_s:
                    raise Violation(f"{each.name} may be writing into slab {reservation.slab}")
        if not self.faults.no_marks:
            slab, raw = reservation.slab, encode(reserved(reservation), reservation.slab)
            self.memory[slab] = replace(self.memory[slab], header=(raw[:HALF], raw[HALF:]))

    def _end_index(self) -> None:
        self._index, self._index_state = None, None
        self.budget = replace(self.budget, restarts=self.budget.restarts - 1)

    def _half_mark(self, writer: Writer) -> None:
        """The owner dies before it answers, with half of the last mark written."""
        before = list(self.memory)
        answers = self.index.reserve(writer.batches[0], writer.name, self.now_s)
        for answer in answers[-1:]:
            if isinstance(answer, Reservation):
                half = self.memory[answer.slab].header[0], before[answer.slab].header[1]
                self.memory[answer.slab] = replace(self.memory[answer.slab], header=half)
        self._end_index()

    def _tick(self) -> None:
        self.now_s += 1
        self.budget = replace(self.budget, ticks=self.budget.ticks - 1)
        if self.is_index_alive:
            self.index.reap(self.now_s)

    def _die(self, place: int) -> None:
        """A death that is not known to the index is an actor that stands still."""
        self.budget = replace(self.budget, deaths=self.budget.deaths - 1)
        actor = self.actors[place]
        self.actors[place] = replace(actor, step="done")
        if self.is_index_alive:
            self.index.owner_died(actor.name)

    # Writing

    def _reserve(self, place: int, writer: Writer) -> None:
        answers = self.index.reserve(writer.batches[0], writer.name, self.now_s)
        mine = tuple(answer for answer in answers if isinstance(answer, Reservation))
        writing = replace(writer, step="check", reservations=mine)
        self.actors[place] = writing if mine else writer.after_batch

    def _is_mine(self, writer: Writer) -> bool:
        mine = writer.current
        if self.faults.no_marks:
            return True
        return b"".join(self.memory[mine.slab].header) == encode(reserved(mine), mine.slab)

    def _check(self, place: int, writer: Writer) -> None:
        is_late = self.now_s >= writer.current.deadline_s
        step = "abandon" if is_late or not self._is_mine(writer) else "low"
        checksum = checksum_of(memoryview(b"".join(content_of(writer.current.request.key))))
        self.actors[place] = replace(writer, step=step, checksum=checksum)

    def _low(self, place: int, writer: Writer) -> None:
        self._write_payload(writer.current, 0)
        self.actors[place] = replace(writer, step="high")

    def _high(self, place: int, writer: Writer) -> None:
        self._write_payload(writer.current, 1)
        if self.faults.checksum_of_slab:
            slab = self.memory[writer.current.slab]
            writer = replace(writer, checksum=checksum_of(memoryview(b"".join(slab.payload))))
        step = "seal" if self._is_mine(writer) else "abandon"
        self.actors[place] = replace(writer, step=step)

    def _write_payload(self, mine: Reservation, half: int) -> None:
        data = content_of(mine.request.key)[half]
        self.memory[mine.slab] = self.memory[mine.slab].with_half("payload", half, data)

    def _seal(self, place: int, writer: Writer) -> None:
        self._write_seal(writer, 0)
        self.actors[place] = replace(writer, step="sealed")

    def _sealed(self, place: int, writer: Writer) -> None:
        self._write_seal(writer, 1)
        num_written = writer.num_written + 1
        step = "check" if num_written < len(writer.reservations) else "complete"
        self.actors[place] = replace(writer, step=step, num_written=num_written)

    def _write_seal(self, writer: Writer, half: int) -> None:
        mine = writer.current
        raw = encode(ready(mine, 2, writer.checksum), mine.slab)
        data = raw[HALF:] if half else raw[:HALF]
        self.memory[mine.slab] = self.memory[mine.slab].with_half("header", half, data)

    def _complete(self, place: int, writer: Writer) -> None:
        self.index.complete(writer.reservations)
        self.actors[place] = writer.after_batch

    def _abandon(self, place: int, writer: Writer) -> None:
        """What was written before is complete; the rest never will be."""
        index = self.index
        index.complete(writer.reservations[: writer.num_written])
        index.abandon(writer.reservations[writer.num_written :])
        self.actors[place] = writer.after_batch

    # Reading

    def _acquire(self, place: int, reader: Reader, chain: Sequence[BlockHash]) -> None:
        lease = self.index.acquire(chain, reader.name, self.now_s)
        step = "first" if lease.locations else "done"
        self.actors[place] = replace(reader, step=step, lease=lease)

    def _first(self, place: int, reader: Reader) -> None:
        """Looking at the header before the copy saves copies only: it must be the same after."""
        slab = self.memory[reader.current.slab]
        raw = b"".join(slab.header)
        if ready_at(raw, reader.current) is None:
            self.actors[place] = replace(reader, step="release", is_miss=True)
            return
        self.actors[place] = replace(reader, step="second", raw=raw, copy=slab.payload[0])

    def _second(self, place: int, reader: Reader) -> None:
        copy = reader.copy + self.memory[reader.current.slab].payload[1]
        self.actors[place] = replace(reader, step="verify", copy=copy)

    def _verify(self, place: int, reader: Reader) -> None:
        place_of, raw = reader.current, reader.raw
        found = ready_at(raw, place_of)
        assert found is not None
        _, checksum = found
        is_whole = b"".join(self.memory[place_of.slab].header) == raw
        if not self.faults.no_checksum:
            is_whole = is_whole and checksum_of(memoryview(reader.copy)) == checksum
        if not is_whole:
            self.actors[place] = replace(reader, step="release", is_miss=True)
            return
        if reader.copy != b"".join(content_of(place_of.key)):
            raise Violation(f"{reader.name} was given {reader.copy!r} for {place_of}")
        assert reader.lease is not None
        num_read = reader.num_read + 1
        step = "first" if num_read < len(reader.lease.locations) else "release"
        self.actors[place] = replace(reader, step=step, num_read=num_read, raw=b"", copy=b"")

    def _release(self, place: int, reader: Reader) -> None:
        assert reader.lease is not None
        index = self.index
        if reader.is_miss:
            index.mismatch(reader.current, self.now_s)
        index.release(reader.lease.lease_id)
        self.actors[place] = replace(reader, step="done")

    # What must hold in every state

    def check(self, before: "World") -> None:
        """`before` was checked, and is one step away."""
        if self.memory != before.memory:
            self._check_no_wrong_bytes()
            self._check_no_leak(self.new_index(self.epoch + 1))
        if self._index is not None and self._index is not before._index:
            self._index.check_invariants()
            self._check_no_leak(clone(self._index, self))

    def _check_no_wrong_bytes(self) -> None:
        """Who reads now, and is not disturbed, gets a key's own bytes from any slab, or none."""
        for number, slab in enumerate(self.memory):
            header = decode(b"".join(slab.header), number)
            copy = b"".join(slab.payload)
            if header is None or header.checksum != checksum_of(memoryview(copy)):
                continue
            if copy != b"".join(content_of(header.request.key)):
                raise Violation(f"slab {number} has {copy!r} for {header.request.key[:2]!r}")

    def _check_no_leak(self, index: BlockIndex) -> None:
        """When all are dead and all time has passed, every slab is free or readable."""
        for actor in self.actors:
            index.owner_died(actor.name)
        index.reap(_FOREVER_S)
        index.check_invariants()
        by_state = index.stats().slabs_by_state
        if by_state[SlabState.FREE] + by_state[SlabState.READY] != len(self.memory):
            raise Violation(f"a slab has leaked: {by_state}")


def explore(start: World) -> int:
    """Every state that can be reached; how many. Raises Violation with the steps that led to it."""
    seen = {start.state()}
    waiting: list[tuple[World, tuple[object, ...]]] = [(start, ())]
    while waiting:
        world, trace = waiting.pop()
        for name, take in world.steps():
            after = world.copy()
            try:
                take(after)
                state = after.state()
                if state in seen:
                    continue
                seen.add(state)
                after.check(world)
            except Violation as violation:
                steps = [name]
                while trace:
                    trace, earlier = trace
                    steps.append(earlier)
                raise Violation(f"{violation}, after: {'; '.join(reversed(steps))}") from violation
            waiting.append((after, (trace, name)))
    return len(seen)


def request(key: BlockHash, parent: BlockHash | None = None) -> StoreRequest:
    return StoreRequest(key, parent, "t", TAG)
