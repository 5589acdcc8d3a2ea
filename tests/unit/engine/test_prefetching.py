"""Chains that are brought to a device before anybody asks for them."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from rtp_serve.engine.core import EngineCore
from rtp_serve.kv_cache.block import BlockHash
from rtp_serve.observability.metrics import PrometheusSink
from tests.factories import MemoryWorker, make_core, make_prompt, make_request, predicted_tokens
from tests.unit.engine.test_tiering import Node, far_core, held_up, run, tiered_core

PROMPT = make_prompt(100)
REQUEST = make_request(prompt=PROMPT, max_tokens=4)


@pytest.fixture
def node(tmp_path: Path):
    """That had PROMPT."""
    node = Node(disk=tmp_path / "disk")
    core = tiered_core(node)
    run(core, REQUEST)
    core.shutdown()
    yield node
    node.store.check_invariants()
    node.store.close()


def chain_of(core: EngineCore, prompt: Sequence[int] = PROMPT) -> tuple[BlockHash, ...]:
    return core.model.block_hashes(prompt, "")


def prefetch(core: EngineCore, chain: Sequence[BlockHash]) -> None:
    """Until it is over."""
    core.prefetch(chain)
    while core.has_work:
        assert core.step() == []
        core.check_invariants()
    assert core.stats.num_free_blocks == core.stats.num_blocks


def figures(sink: PrometheusSink) -> tuple[float, float, float]:
    """Chains asked for, chains made, and blocks."""
    values = {
        sample.name.removeprefix("rtp_serve:kv_prefetche"): sample.value
        for family in text_string_to_metric_families(sink.render())
        for sample in family.samples
    }
    return values["s_asked_total"], values["s_made_total"], values["d_blocks_total"]


def test_what_the_node_has_is_on_the_device_before_the_request_comes(node: Node):
    sink = PrometheusSink()
    core = make_core(num_blocks=40, worker=MemoryWorker(40), access=node.access, sink=sink)
    prefetch(core, chain_of(core))
    assert core.num_cached_blocks(REQUEST) == 6
    assert run(core, REQUEST) == (predicted_tokens(REQUEST), (96, 0, 0))
    prefetch(core, chain_of(core))
    assert figures(sink) == (2, 1, 6)
    core.shutdown()


def test_what_another_node_has_comes_too(node: Node):
    here = Node()
    core = far_core(here, node)
    chain = chain_of(core)
    prefetch(core, chain[:4])
    assert run(core, REQUEST) == (predicted_tokens(REQUEST), (96, 0, 0))
    core.shutdown()
    here.store.close()


def test_what_nobody_has_stays_away(node: Node):
    sink = PrometheusSink()
    core = make_core(num_blocks=40, worker=MemoryWorker(40), access=node.access, sink=sink)
    prefetch(core, chain_of(core, make_prompt(100, 1)))
    assert (core.stats.num_cached_blocks, figures(sink)) == (0, (1, 0, 0))
    core.shutdown()


def test_without_tiers_nothing_happens():
    core = make_core()
    prefetch(core, chain_of(core))
    assert core.stats.num_cached_blocks == 0


def test_bytes_that_are_wrong_are_left_out(node: Node):
    geometry = node.arena.geometry
    for slab in range(geometry.num_slabs):
        node.memory[geometry.payload_start(slab)] ^= 1
    core = make_core(num_blocks=40, worker=MemoryWorker(40), access=node.access)
    prefetch(core, chain_of(core))
    assert core.stats.num_cached_blocks == 0
    assert run(core, REQUEST)[0] == predicted_tokens(REQUEST)
    core.shutdown()


def test_it_takes_a_quarter_of_the_free_blocks_at_most(node: Node):
    core = make_core(num_blocks=17, worker=MemoryWorker(17), access=node.access)
    prefetch(core, chain_of(core))
    assert core.stats.num_cached_blocks == 4
    assert run(core, REQUEST) == (predicted_tokens(REQUEST), (96, 32, 0))
    core.shutdown()


def test_streams_go_on_meanwhile_and_who_wants_the_same_waits_for_it(node: Node):
    core, store = held_up(
        lambda access: make_core(num_blocks=60, worker=MemoryWorker(60), access=access), node
    )
    store.may_find.set()
    running = make_request("running", make_prompt(5), max_tokens=40, ignore_eos=True)
    core.add_request(running)
    core.step()
    store.may_find.clear()
    core.prefetch(chain_of(core))
    core.add_request(REQUEST)
    tokens = [delta.token_ids for _ in range(10) for delta in core.step()]
    assert len(tokens) == 10
    assert (core.stats.num_running, core.stats.num_waiting) == (1, 1)
    store.may_find.set()
    core.abort("running")
    deltas = [delta for _ in iter(lambda: core.has_work, False) for delta in core.step()]
    assert [delta.token_ids[0] for delta in deltas] == predicted_tokens(REQUEST)
    assert (deltas[0].num_cached_tokens, deltas[0].num_host_tokens) == (96, 0)
    core.shutdown()


def test_it_does_not_begin_beside_a_restore(node: Node):
    core, store = held_up(
        lambda access: make_core(num_blocks=60, worker=MemoryWorker(60), access=access), node
    )
    core.add_request(REQUEST)
    core.step()
    num_free = core.stats.num_free_blocks
    core.prefetch(chain_of(core, make_prompt(100, 1)))
    assert core.stats.num_free_blocks == num_free
    store.may_find.set()
    while core.has_work:
        core.step()
    core.shutdown()


def test_a_prompt_that_leaves_a_prefetched_chain_within_a_block_is_right(node: Node):
    core = make_core(num_blocks=60, worker=MemoryWorker(60), access=node.access)
    prefetch(core, chain_of(core))
    for length in (1, 40, 88):
        request = make_request(f"r{length}", PROMPT[:length] + make_prompt(30, 1), max_tokens=20)
        expected = length // 16 * 16
        tokens, (num_cached, _, _) = run(core, request)
        assert tokens == predicted_tokens(request)
        assert num_cached == expected
    core.shutdown()
