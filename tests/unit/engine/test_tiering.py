"""Tiers below a worker whose output depends on every token of its KV memory.

The arena, its index, the disk and the threads are the real ones. What they bring too late or wrong
would change outputs; blocks that they lose would be held for ever.
"""

import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from rtp_serve.clock import WallClock
from rtp_serve.engine.core import EngineCore
from rtp_serve.engine.request import Request
from rtp_serve.kv_cache.block import BlockHash
from rtp_serve.kv_store.arena import Arena
from rtp_serve.kv_store.arena_geometry import ArenaGeometry
from rtp_serve.kv_store.client import FetchedBlock, Found
from rtp_serve.kv_store.disk.settings import DiskSettings
from rtp_serve.kv_store.disk.tier import DiskTier
from rtp_serve.kv_store.eviction.lru import LRU
from rtp_serve.kv_store.index_stats import SlabState
from rtp_serve.kv_store.lower_tiers import StoreAccess
from rtp_serve.kv_store.node_store import NodeStore
from rtp_serve.kv_store.pace import Pace
from tests.factories import (
    MemoryWorker,
    make_core,
    make_prompt,
    make_request,
    predicted_tokens,
    run_to_end,
)

BLOCK_BYTES = 16 * 8


class Node:
    """An arena in private memory and its store, for engines of one test."""

    def __init__(self, num_slabs: int = 256, disk: Path | None = None) -> None:
        geometry = ArenaGeometry(BLOCK_BYTES, num_slabs, bytes(32))
        self.memory = bytearray(geometry.total_bytes)
        self.arena = Arena(self.memory, geometry)
        tier = DiskTier(disk, DiskSettings(8 << 20), WallClock()) if disk else None
        self.store = NodeStore(self.arena, 1, LRU(num_slabs), WallClock(), tier)
        self._disk = disk

    @property
    def access(self) -> StoreAccess:
        store = _Shared(self.store)
        return StoreAccess(self.arena, store, "store", self._disk, has_remote=True)

    def settle(self) -> None:
        """Until all is on the disk."""
        while self.store.stats().num_to_spill:
            threading.Event().wait(0.002)

    def check(self) -> None:
        """Nothing is held, nothing half done, once all is on the disk."""
        self.settle()
        self.store.check_invariants()
        slabs = self.store.stats().host.slabs_by_state
        for state in SlabState:
            assert state in (SlabState.FREE, SlabState.READY) or not slabs[state], slabs


class _Shared:
    """A store that its engines do not close, and whose answers tests may hold up."""

    def __init__(self, store: NodeStore) -> None:
        self._store = store
        self.other: NodeStore | None = None
        self.may_find = threading.Event()
        self.may_find.set()

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    def fetch(self, chain: Sequence[BlockHash]) -> Sequence[FetchedBlock]:
        return self.other.read(chain, "another node") if self.other is not None else ()

    def find(self, chain: Sequence[BlockHash], owner: str) -> Found:
        assert self.may_find.wait(10)
        return self._store.find(chain, owner)

    def close(self) -> None:
        pass


@pytest.fixture
def node(tmp_path: Path):
    node = Node(disk=tmp_path / "disk")
    yield node
    node.store.close()


def tiered_core(
    node: Node, num_blocks: int = 20, max_model_len: int = 256, **scheduler: Any
) -> EngineCore:
    return make_core(
        num_blocks=num_blocks,
        worker=MemoryWorker(num_blocks),
        access=node.access,
        max_model_len=max_model_len,
        **scheduler,
    )


def run(core: EngineCore, request: Request) -> tuple[list[int], tuple[int, int, int]]:
    """Its tokens, and how many of the prompt's were cached: all, by the host, by the disk."""
    core.add_request(request)
    tokens: list[int] = []
    cached = (0, 0, 0)
    while core.has_work:
        for delta in core.step():
            tokens += delta.token_ids
            cached = (delta.num_cached_tokens, delta.num_host_tokens, delta.num_disk_tokens)
        core.check_invariants()
    return tokens, cached


def test_what_the_device_dropped_comes_back_from_the_host(node: Node):
    core = tiered_core(node)
    requests = [make_request(f"r{i}", make_prompt(170, i), max_tokens=4) for i in range(3)]
    for request in requests:
        assert run(core, request) == (predicted_tokens(request), (0, 0, 0))
    for request in requests:
        tokens, (num_cached, num_host, _) = run(core, request)
        assert tokens == predicted_tokens(request)
        assert num_cached == 160
        assert num_host > 0
    assert core.stats.num_free_blocks == core.stats.num_blocks
    core.shutdown()
    node.check()


def test_another_engine_of_the_node_finds_it(node: Node):
    request = make_request(prompt=make_prompt(100), max_tokens=4)
    first, second = tiered_core(node), tiered_core(node)
    run(first, request)
    assert run(second, request) == (predicted_tokens(request), (96, 96, 0))
    for core in (first, second):
        core.shutdown()


def test_only_what_the_device_lacks_is_restored(node: Node):
    core = tiered_core(node, num_blocks=40)
    long = make_request("long", make_prompt(200), max_tokens=2)
    run(core, long)
    other = tiered_core(node, num_blocks=40)
    run(other, make_request("short", make_prompt(200)[:70], max_tokens=2))
    assert run(other, long) == (predicted_tokens(long), (192, 128, 0))
    for each in (core, other):
        each.shutdown()


def test_what_was_restored_gives_its_beginning_too(node: Node):
    """The last two blocks come from the arena, and half of the last one is wanted next."""
    core, other = tiered_core(node), tiered_core(node)
    prompt = make_prompt(100)
    run(core, make_request(prompt=prompt, max_tokens=1))
    run(other, make_request("whole", prompt, max_tokens=1))
    half = make_request("half", prompt[:88] + make_prompt(30, 1), max_tokens=20)
    assert run(other, half) == (predicted_tokens(half), (88, 0, 0))
    for each in (core, other):
        each.shutdown()


def test_as_much_is_restored_as_there_is_room_for(node: Node):
    long = make_request("long", make_prompt(200), max_tokens=2)
    other = tiered_core(node, num_blocks=40)
    run(other, long)
    core = tiered_core(node, num_blocks=20)
    core.add_request(make_request("running", make_prompt(60, 1), max_tokens=90, ignore_eos=True))
    while core.stats.num_free_blocks > 10:
        core.step()
    core.add_request(long)
    cached = 0
    while core.has_work:
        cached = max(
            [cached, *(d.num_cached_tokens for d in core.step() if d.request_id == "long")]
        )
        core.check_invariants()
    assert 96 <= cached < 192
    for each in (core, other):
        each.shutdown()


def test_a_restart_finds_it_on_the_disk(tmp_path: Path):
    request = make_request(prompt=make_prompt(100), max_tokens=20)
    for expected in ((0, 0, 0), (96, 0, 96), (96, 0, 96)):
        node = Node(disk=tmp_path / "disk")
        core = tiered_core(node)
        assert run(core, request) == (predicted_tokens(request), expected)
        core.shutdown()
        node.check()
        node.store.close()


def test_what_came_from_the_disk_is_in_the_arena_again(tmp_path: Path):
    request = make_request(prompt=make_prompt(100), max_tokens=2)
    for expected in ((0, 0, 0), (96, 0, 96)):
        node = Node(disk=tmp_path / "disk")
        core = tiered_core(node)
        assert run(core, request)[1] == expected
        other = tiered_core(node)
        assert run(other, request)[1] == (96, 96, 0)
        core.shutdown()
        other.shutdown()
        node.store.close()


def restarted(directory: Path, request: Request) -> Node:
    """With a node before it that had the request."""
    before = Node(disk=directory)
    core = tiered_core(before)
    run(core, request)
    core.shutdown()
    before.settle()
    before.store.close()
    return Node(disk=directory)


def test_what_came_from_the_disk_is_stored_after_the_step_that_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    request = make_request(prompt=make_prompt(100), max_tokens=1)
    node = restarted(tmp_path / "disk", request)
    core = tiered_core(node)
    events: list[str] = []
    assert core.tiers is not None
    for name in ("store", "set_pace"):
        note = partial(events.append, name)
        monkeypatch.setattr(core.tiers, name, _after(note, getattr(core.tiers, name)))
    assert run(core, request)[1] == (96, 0, 96)
    # The step that begins the restore has no tokens, and nobody runs when it ends.
    assert events[:4] == [*["set_pace"] * 3, "store"]
    core.shutdown()
    node.check()
    node.store.close()


def _after(first: Callable[[], None], then: Callable[..., Any]) -> Callable[..., Any]:
    def both(*args: Any, **kwargs: Any) -> Any:
        first()
        return then(*args, **kwargs)

    return both


def test_what_came_from_the_disk_for_nobody_is_stored_without_a_step(tmp_path: Path):
    request = make_request(prompt=make_prompt(100), max_tokens=1)
    node = restarted(tmp_path / "disk", request)
    core, store = held_up(
        lambda access: make_core(num_blocks=40, worker=MemoryWorker(40), access=access), node
    )
    core.add_request(request)
    core.step()
    core.abort(request.request_id)
    store.may_find.set()
    while core.has_work:
        assert core.step() == []
        core.check_invariants()
    assert node.store.stats().host.counts.stored == 6
    core.shutdown()
    node.check()
    node.store.close()


def far_core(node: Node, other: Node) -> EngineCore:
    """An engine of `node` that may ask the other one."""
    access = node.access
    assert isinstance(access.client, _Shared)
    access.client.other = other.store
    return make_core(num_blocks=20, worker=MemoryWorker(20), access=access)


def test_what_another_node_has_comes_from_there_and_is_kept_here(node: Node):
    here = Node()
    request = make_request(prompt=make_prompt(100), max_tokens=2)
    core, far = tiered_core(node), far_core(here, node)
    run(core, request)
    assert run(far, request) == (predicted_tokens(request), (96, 0, 0))
    near = tiered_core(here)
    assert run(near, request) == (predicted_tokens(request), (96, 96, 0))
    for each in (core, far, near):
        each.shutdown()
    here.check()
    here.store.close()


def test_bytes_of_another_node_that_are_wrong_are_a_miss(node: Node):
    here = Node()
    request = make_request(prompt=make_prompt(100), max_tokens=2)
    core, far = tiered_core(node), far_core(here, node)
    run(core, request)
    core.shutdown()
    for slab in range(node.arena.geometry.num_slabs):
        node.memory[node.arena.geometry.payload_start(slab) + 7] ^= 1
    assert run(far, request) == (predicted_tokens(request), (0, 0, 0))
    far.shutdown()
    here.store.close()


@pytest.mark.parametrize("place", [0, 50, BLOCK_BYTES - 1])
def test_a_flipped_byte_is_a_miss(node: Node, place: int):
    request = make_request(prompt=make_prompt(100), max_tokens=4)
    core = tiered_core(node)
    run(core, request)
    core.shutdown()
    geometry = node.arena.geometry
    for slab in range(geometry.num_slabs):
        node.memory[geometry.payload_start(slab) + place] ^= 1
    other = tiered_core(node)
    assert run(other, request)[0] == predicted_tokens(request)
    other.shutdown()
    node.store.check_invariants()


def test_salts_and_prompts_that_differ_share_nothing(node: Node):
    core, other = tiered_core(node), tiered_core(node)
    run(core, make_request(prompt=make_prompt(100), salt="a"))
    for request in (
        make_request(prompt=make_prompt(100), salt="b"),
        make_request(prompt=make_prompt(100, seed=1), salt="a"),
    ):
        assert run(other, request) == (predicted_tokens(request), (0, 0, 0))
    core.shutdown()
    other.shutdown()


@pytest.mark.parametrize("num_slabs", [4, 30, 1000])
@pytest.mark.parametrize("budget", [8, 64])
def test_outputs_do_not_depend_on_tiers(num_slabs: int, budget: int, tmp_path: Path):
    """Conversations in random order over a device that holds two of them, with aborts."""
    rng = random.Random(num_slabs + budget)
    node = Node(num_slabs, disk=tmp_path / "disk")
    core = tiered_core(
        node, num_blocks=24, max_model_len=200, max_num_batched_tokens=budget, max_num_seqs=8
    )
    prompts = [make_prompt(rng.randrange(20, 120), seed) for seed in range(8)]
    for turn in range(12):
        requests = [
            make_request(
                f"{turn}-{i}",
                prompts[rng.randrange(8)] + make_prompt(rng.randrange(40), rng.randrange(3)),
                max_tokens=rng.randrange(1, 30),
                n=rng.choice([1, 1, 2]),
                ignore_eos=True,
            )
            for i in range(rng.randrange(1, 5))
        ]
        doomed = make_request("doomed", prompts[rng.randrange(8)], max_tokens=20)
        core.add_request(doomed)
        for _ in range(rng.randrange(3)):
            core.step()
        core.abort("doomed")
        core.prefetch(core.model.block_hashes(prompts[rng.randrange(8)], ""))
        core.check_invariants()
        outputs = run_to_end(core, requests)
        for request in requests:
            expected = [predicted_tokens(request, i) for i in range(request.sampling.n)]
            assert outputs[request.request_id] == expected
    assert core.stats.num_free_blocks == core.stats.num_blocks
    if num_slabs >= 30:
        assert node.store.stats().host.counts.hits > 10, "little was restored"
    core.shutdown()
    node.check()
    node.store.close()


def test_what_only_the_device_has_left_is_stored_anew(node: Node):
    """Or else nothing after it could be."""
    core = tiered_core(node, num_blocks=40)
    prompt = make_prompt(100)
    run(core, make_request(prompt=prompt, max_tokens=1))
    node.settle()
    assert node.store.trim(1 << 20) > 0
    longer = make_request(prompt=prompt + make_prompt(60, 1), max_tokens=1)
    run(core, longer)
    other = tiered_core(node)
    assert run(other, longer)[1][0] == 144
    core.shutdown()
    other.shutdown()


def held_up(core_of: Callable[[StoreAccess], EngineCore], node: Node) -> tuple[EngineCore, _Shared]:
    """An engine whose questions to the store are not answered before the test says so."""
    access = node.access
    assert isinstance(access.client, _Shared)
    access.client.may_find.clear()
    return core_of(access), access.client


def _tokens(core: EngineCore) -> list[int]:
    return [token for delta in core.step() for token in delta.token_ids]


def test_storing_takes_its_time_beside_steps_until_there_is_no_room_for_what_they_fill(
    node: Node, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Pace, "pause_s", lambda _: 3600.0)
    core = make_core(num_blocks=40, worker=MemoryWorker(40), access=node.access)
    core.add_request(make_request(prompt=make_prompt(400), max_tokens=100, ignore_eos=True))
    while not node.store.stats().host.counts.stored:
        core.step()
        threading.Event().wait(0.002)
    assert core.stats.num_running > 0, "nothing was stored before all had ended"
    core.shutdown()


def test_the_disk_is_told_of_sequences_that_decode_and_not_of_those_that_begin(
    node: Node, monkeypatch: pytest.MonkeyPatch
):
    notes: list[bool] = []
    monkeypatch.setattr(
        node.store, "note_decoding", lambda _, is_decoding: notes.append(is_decoding)
    )
    core = make_core(num_blocks=40, worker=MemoryWorker(40), access=node.access)
    core.add_request(make_request(prompt=make_prompt(100), max_tokens=3, ignore_eos=True))
    told = [list(notes) for _ in iter(lambda: core.has_work, False) if core.step()]
    assert told == [[], [True], [True, False]]
    core.shutdown()


def test_others_run_while_a_sequence_is_restored(node: Node):
    core, store = held_up(
        lambda access: make_core(num_blocks=40, worker=MemoryWorker(40), access=access), node
    )
    store.may_find.set()
    running = make_request("running", make_prompt(5), max_tokens=40, ignore_eos=True)
    core.add_request(running)
    core.step()
    store.may_find.clear()
    waiting = make_request("waiting", make_prompt(100, 1), max_tokens=4)
    core.add_request(waiting)
    tokens = [delta.token_ids for _ in range(10) for delta in core.step()]
    assert len(tokens) == 10
    assert core.stats.num_waiting == 1
    store.may_find.set()
    core.abort("running")
    rest = [token for _ in iter(lambda: core.has_work, False) for token in _tokens(core)]
    assert rest == predicted_tokens(waiting)
    core.shutdown()


def test_a_sequence_that_is_aborted_while_restored_leaves_nothing(node: Node):
    core, store = held_up(
        lambda access: make_core(num_blocks=40, worker=MemoryWorker(40), access=access), node
    )
    core.add_request(make_request("doomed", make_prompt(100), max_tokens=4))
    core.step()
    assert core.stats.num_free_blocks < core.stats.num_blocks
    core.abort("doomed")
    core.check_invariants()
    assert core.has_work, "the transfer still owns its blocks"
    store.may_find.set()
    while core.has_work:
        assert core.step() == []
        core.check_invariants()
    assert core.stats.num_free_blocks == core.stats.num_blocks
    core.shutdown()
    node.check()


class _Broken(_Shared):
    def find(self, chain: Sequence[BlockHash], owner: str) -> Found:
        raise RuntimeError("a mistake nobody thought of")

    def reserve(self, requests: object, owner: str) -> tuple[()]:
        raise RuntimeError("another one")


def test_a_transfer_that_fails_costs_computing_alone(node: Node):
    access = replace(node.access, client=_Broken(node.store))
    core = make_core(num_blocks=40, worker=MemoryWorker(40), access=access)
    for name in ("first", "second"):
        request = make_request(name, make_prompt(100, len(name)), max_tokens=20)
        assert run(core, request)[0] == predicted_tokens(request)
    assert core.stats.num_free_blocks == core.stats.num_blocks
    core.shutdown()


def test_an_engine_without_a_disk_passes_over_what_the_store_has_on_one(tmp_path: Path):
    request = make_request(prompt=make_prompt(100), max_tokens=2)
    for disk in (tmp_path / "disk", None):
        node = Node(disk=tmp_path / "disk")
        core = make_core(
            num_blocks=20, worker=MemoryWorker(20), access=replace(node.access, disk=disk)
        )
        assert run(core, request) == (predicted_tokens(request), (0, 0, 0))
        core.shutdown()
        node.check()
        node.store.close()


def test_an_engine_is_shut_down_while_it_restores(node: Node):
    core, store = held_up(
        lambda access: make_core(num_blocks=40, worker=MemoryWorker(40), access=access), node
    )
    core.add_request(make_request("waiting", make_prompt(100), max_tokens=4))
    core.step()
    threading.Timer(0.05, store.may_find.set).start()
    core.shutdown()


def test_prompts_whose_own_logprobs_are_wanted_are_computed_whole(node: Node):
    core = tiered_core(node)
    request = make_request(prompt=make_prompt(100), max_tokens=2)
    run(core, request)
    core2 = tiered_core(node)
    wanted = make_request(prompt=make_prompt(100), max_tokens=2, prompt_logprobs=0)
    assert run(core2, wanted)[1] == (0, 0, 0)
    core.shutdown()
    core2.shutdown()
