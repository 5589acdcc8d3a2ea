"""A slow disk: the beginning of what it has is computed while the rest comes.

Computing a block takes 16 ms and reading one 8 ms, on virtual clocks: of 12 blocks 4 are computed.
A read ends when the test lets it.
"""

import random
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from rtp_serve.clock import VirtualClock
from rtp_serve.engine.executor import CompletedStep
from rtp_serve.engine.output import SchedulerOutput
from rtp_serve.engine.request import Request, SequenceDelta
from rtp_serve.kv_store import lower_tiers
from rtp_serve.kv_store.disk.reader import DiskReader, ReadOutcome
from rtp_serve.kv_store.disk.record import DiskLocation
from tests.factories import (
    MemoryWorker,
    collect,
    make_core,
    make_prompt,
    make_request,
    predicted_tokens,
    run_to_end,
)
from tests.unit.engine.test_tiering import Node

READ_S = 0.008
TOKEN_S = 0.001


class SlowWorker(MemoryWorker):
    def __init__(self, num_blocks: int, clock: VirtualClock) -> None:
        super().__init__(num_blocks)
        self._clock = clock

    def submit(self, scheduled: SchedulerOutput) -> CompletedStep:
        self._clock.advance(TOKEN_S * scheduled.num_tokens)
        return super().submit(scheduled)


class SlowDisk:
    """What a test says to the reader, and hears of it."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.may_end = threading.Event()
        self.may_end.set()
        self.is_broken = False
        self.num_read: list[int] = []

    def reader(self, directory: Path) -> DiskReader:
        disk = self

        class Reader(DiskReader):
            def read(
                self, locations: Sequence[DiskLocation], buffers: Sequence[memoryview]
            ) -> list[ReadOutcome]:
                disk.num_read.append(len(locations))
                disk.clock.advance(READ_S * len(locations))
                assert disk.may_end.wait(10)
                if disk.is_broken:
                    return [ReadOutcome.FAILED] * len(locations)
                return super().read(locations, buffers)

        return Reader(directory)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> SlowDisk:
    disk = SlowDisk()
    monkeypatch.setattr(lower_tiers, "DiskReader", disk.reader)
    return disk


class Slow:
    """An engine with such a disk."""

    def __init__(self, node: Node, disk: SlowDisk, num_blocks: int = 40, **scheduler: int) -> None:
        clock = VirtualClock()
        self.disk = disk
        self.worker = SlowWorker(num_blocks, clock)
        self.core = make_core(
            num_blocks=num_blocks,
            worker=self.worker,
            clock=clock,
            access=node.access,
            tiers_clock=disk.clock,
            **scheduler,
        )

    @property
    def num_computed(self) -> int:
        """Tokens."""
        return sum(step.num_tokens for step in self.worker.steps)

    def step(self) -> list[SequenceDelta]:
        deltas = self.core.step()
        self.core.check_invariants()
        return deltas

    def begin(self, request: Request) -> None:
        """Until its first tokens are computed; the disk reads meanwhile."""
        self.core.add_request(request)
        self.worker.steps.clear()
        while not self.num_computed:
            self.step()

    def run(self) -> tuple[list[int], int, int]:
        """To the end: tokens, how many of the prompt's were cached and how many the disk gave."""
        tokens: list[int] = []
        cached = (0, 0)
        while self.core.has_work:
            for delta in self.step():
                tokens += delta.token_ids
                cached = (delta.num_cached_tokens, delta.num_disk_tokens)
        return tokens, *cached


@pytest.fixture
def slow(tmp_path: Path, disk: SlowDisk) -> Iterator[Slow]:
    """It knows how fast it and the disk are, and the disk has the prompts of seeds 0 and 1."""
    node = Node(disk=tmp_path / "disk")
    first = Slow(node, disk)
    requests = [make_request(f"{i}", make_prompt(200, i), max_tokens=1) for i in range(2)]
    for request in requests:
        run_to_end(first.core, [request])
    first.core.shutdown()
    node.settle()
    node.store.close()
    node = Node(disk=tmp_path / "disk")
    slow = Slow(node, disk, max_num_batched_tokens=40)
    for request in (make_request("new", make_prompt(200, 9), max_tokens=1), requests[1]):
        run_to_end(slow.core, [request])
    assert disk.num_read == [12]
    yield slow
    disk.may_end.set()
    slow.run()
    assert slow.core.stats.num_free_blocks == slow.core.stats.num_blocks
    slow.core.shutdown()
    node.check()
    node.store.close()


REQUEST = make_request("slow", make_prompt(200), max_tokens=4)
TOKENS = predicted_tokens(REQUEST)
HEAD, TAIL = 4 * 16, 8 * 16


def test_the_head_is_computed_and_waits_for_the_tail(slow: Slow):
    slow.disk.may_end.clear()
    slow.begin(REQUEST)
    while slow.core.stats.num_running:
        slow.step()
    assert slow.num_computed == HEAD
    assert slow.step() == []
    assert slow.core.stats.num_waiting == 1
    slow.disk.may_end.set()
    assert slow.run() == (TOKENS, TAIL, TAIL)
    assert slow.num_computed == 200 - TAIL + len(TOKENS) - 1
    assert slow.disk.num_read == [12, 8]


def test_the_tail_waits_for_the_head(slow: Slow):
    slow.begin(REQUEST)
    slow.core.tiers.wait(10)
    assert slow.num_computed < HEAD
    assert slow.run() == (TOKENS, TAIL, TAIL)
    assert slow.num_computed == 200 - TAIL + len(TOKENS) - 1


def test_others_find_what_was_computed_and_what_came(slow: Slow):
    slow.begin(REQUEST)
    slow.run()
    again = make_request("again", make_prompt(200), max_tokens=4)
    slow.core.add_request(again)
    assert slow.run() == (TOKENS, 199, 0)  # the last block's beginning among them


def test_a_tail_that_does_not_come_is_computed(slow: Slow):
    slow.disk.is_broken = True
    slow.begin(REQUEST)
    assert slow.run() == (TOKENS, 0, 0)
    assert slow.num_computed == 200 + len(TOKENS) - 1


@pytest.mark.parametrize("num_steps", [0, 5])
@pytest.mark.parametrize("has_come", [False, True])
def test_an_abort_leaves_nothing(slow: Slow, num_steps: int, has_come: bool):
    """While the head is computed, and after it; before the tail has come, and after it."""
    if not has_come:
        slow.disk.may_end.clear()
    slow.begin(REQUEST)
    if has_come:
        slow.core.tiers.wait(10)
    for _ in range(num_steps):
        slow.step()
    slow.core.abort("slow")
    slow.core.check_invariants()
    assert slow.core.stats.num_running == 0


def wait_for_restore(slow: Slow) -> None:
    """Until it has something for the engine; blocks that were stored meanwhile do not count."""
    finished = slow.core.tiers._finished
    while not any(isinstance(job, lower_tiers.Restore) for job in tuple(finished)):
        threading.Event().wait(0.001)


@pytest.mark.parametrize("has_come", [False, True])
def test_a_head_may_be_preempted(slow: Slow, has_come: bool):
    """Seven sequences of 62 tokens have left it 11 blocks, and all need one more two steps later,
    when it has computed 33 tokens."""
    running = [
        make_request(f"r{i}", make_prompt(5, 20 + i), max_tokens=70, ignore_eos=True)
        for i in range(7)
    ]
    for request in running:
        slow.core.add_request(request)
    for _ in range(58):
        slow.step()
    slow.disk.may_end.clear()
    slow.core.add_request(REQUEST)
    slow.step()
    wait_for_restore(slow)
    slow.step()
    assert slow.core.stats.num_running == 8
    if has_come:
        slow.disk.may_end.set()
        wait_for_restore(slow)
    slow.step()
    assert slow.core.counters.num_preemptions > 0
    assert slow.core.stats.num_running < 8
    slow.disk.may_end.set()
    outputs: dict[str, list[list[int]]] = {each.request_id: [[]] for each in (*running, REQUEST)}
    while slow.core.has_work:
        collect(outputs, slow.step())
    assert outputs["slow"] == [TOKENS]
    for request in running:
        (rest,) = outputs[request.request_id]
        assert rest == predicted_tokens(request)[-len(rest) :]


@pytest.mark.parametrize("num_blocks", [16, 24, 40])
def test_outputs_do_not_depend_on_a_slow_disk(tmp_path: Path, disk: SlowDisk, num_blocks: int):
    """Conversations over an arena of four blocks and a device that must preempt; some are aborted,
    and some reads fail."""
    rng = random.Random(num_blocks)
    node = Node(4, disk=tmp_path / "disk")
    slow = Slow(node, disk, num_blocks, max_num_batched_tokens=32, max_num_seqs=8)
    prompts = [make_prompt(rng.randrange(100, 150), seed) for seed in range(6)]
    for turn in range(30):
        requests = [
            make_request(
                f"{turn}-{i}",
                prompts[rng.randrange(6)] + make_prompt(rng.randrange(40), rng.randrange(3)),
                max_tokens=rng.randrange(1, 30),
                ignore_eos=True,
            )
            for i in range(rng.randrange(1, 4))
        ]
        for i in range(rng.randrange(5)):
            short = make_prompt(rng.randrange(10, 17), 50 + i)
            requests.insert(0, make_request(f"{turn}-short-{i}", short, max_tokens=60))
        disk.is_broken = rng.random() < 0.1
        slow.core.add_request(make_request("doomed", prompts[rng.randrange(6)], max_tokens=20))
        for request in requests:
            slow.core.add_request(request)
        outputs: dict[str, list[int]] = {request.request_id: [] for request in requests}
        num_steps = rng.randrange(20)
        while slow.core.has_work:
            if not num_steps:
                slow.core.abort("doomed")
            num_steps -= 1
            for delta in slow.step():
                outputs.setdefault(delta.request_id, []).extend(delta.token_ids)
        for request in requests:
            assert outputs[request.request_id] == predicted_tokens(request)
        node.settle()
    assert slow.core.stats.num_free_blocks == slow.core.stats.num_blocks
    assert slow.core.counters.num_preemptions > 0 or num_blocks == 40
    assert len(disk.num_read) > 5
    slow.core.shutdown()
    node.check()
    node.store.close()
