"""Prefixes that the configuration names: computed, pinned and kept, as far as there is room."""

import asyncio
from collections.abc import Iterator, Sequence

import pytest

from rtp_serve.engine.async_engine import AsyncEngine
from rtp_serve.engine.cache_answers import KeptPrefix
from rtp_serve.engine.cache_control import CacheControl
from rtp_serve.engine.core import EngineCore
from rtp_serve.engine.prefix_keeper import PrefixKeeper, PrefixToKeep
from rtp_serve.errors import EngineDead
from rtp_serve.kv_cache.block import chain_hashes, root_hash
from tests.factories import make_core, make_prompt, make_request
from tests.unit.engine.test_tiering import Node, run, tiered_core

PROMPT = tuple(make_prompt(100))
NUM_TOKENS = 96
MANY = 100


class Engine:
    """A core, and a keeper of one prefix that has it compute."""

    def __init__(self, core: EngineCore, prompt: tuple[int, ...] = PROMPT) -> None:
        self.core = core
        self.num_computed = 0
        prefix = PrefixToKeep("bot", prompt, "alice")
        self.keeper = PrefixKeeper([prefix], CacheControl(core), self._compute)

    def _compute(self, token_ids: Sequence[int], salt: str) -> None:
        self.num_computed += 1
        run(self.core, make_request(f"p{self.num_computed}", token_ids, salt=salt, max_tokens=1))
        self.core.store_cached(token_ids, salt)
        self.core.step()

    def look_until_done(self) -> int:
        """Tokens that are kept then."""
        for _ in range(MANY):
            if not self.keeper.look():
                break
        else:
            raise AssertionError("it would look for ever")
        (kept,) = self.keeper.kept
        return kept.num_pinned


@pytest.fixture
def node() -> Iterator[Node]:
    node = Node(num_slabs=32)
    yield node
    node.store.close()


@pytest.fixture
def engine(node: Node) -> Iterator[Engine]:
    core = tiered_core(node)
    yield Engine(core)
    core.shutdown()


def test_a_prefix_is_computed_once_and_pinned(engine: Engine, node: Node):
    assert engine.keeper.kept == (KeptPrefix("bot", NUM_TOKENS, 0),)
    assert engine.look_until_done() == NUM_TOKENS
    node.store.trim(1 << 30)
    assert engine.look_until_done() == NUM_TOKENS
    assert engine.num_computed == 1
    assert node.store.stats().host.num_pins == 6


def test_what_is_there_is_not_computed(engine: Engine):
    run(engine.core, make_request("r", PROMPT, salt="alice", max_tokens=1))
    assert engine.look_until_done() == NUM_TOKENS
    assert engine.num_computed == 0


def test_engines_of_a_node_pin_it_once(engine: Engine, node: Node):
    engine.look_until_done()
    core = tiered_core(node)
    other = Engine(core)
    assert other.look_until_done() == NUM_TOKENS
    assert other.num_computed == 0
    assert node.store.stats().host.num_pins == 6
    core.shutdown()


def test_a_new_version_has_it_anew(engine: Engine):
    engine.look_until_done()
    engine.core.switch(engine.core.load())
    assert engine.look_until_done() == NUM_TOKENS
    assert engine.num_computed == 2


def test_a_block_that_was_lost_is_computed_again(engine: Engine, node: Node):
    engine.look_until_done()
    namespace = engine.core.version.namespace
    chain = chain_hashes(root_hash(namespace, "alice"), PROMPT, 16)
    found = node.store.find(chain, "test")
    node.store.release(found.lease.lease_id)
    node.store.mismatch(found.lease.locations[3])
    assert node.store.stats().host.num_pins == 3
    assert engine.look_until_done() == NUM_TOKENS
    assert engine.num_computed == 2


def test_what_has_no_room_is_one_warning_and_told(caplog: pytest.LogCaptureFixture):
    node = Node(num_slabs=8)  # half of them may be pinned
    core = tiered_core(node)
    engine = Engine(core)
    assert engine.look_until_done() == 64
    assert engine.num_computed == 1
    for _ in range(3):
        engine.keeper.look()
    assert engine.keeper.kept == (KeptPrefix("bot", NUM_TOKENS, 64),)
    (record,) = caplog.records
    assert "'bot' 64 tokens of 96 are kept" in record.message
    core.shutdown()
    node.store.close()


def test_without_tiers_it_is_one_warning(caplog: pytest.LogCaptureFixture):
    engine = Engine(make_core(num_blocks=20))
    assert not engine.keeper.look()
    assert not engine.keeper.look()
    assert len(caplog.records) == 1
    assert engine.num_computed == 0


def test_a_prompt_that_does_not_fit_is_one_warning(node: Node, caplog: pytest.LogCaptureFixture):
    core = tiered_core(node)
    engine = AsyncEngine(core, max_queued=4)
    prefix = PrefixToKeep("long", tuple(make_prompt(300)))
    keeper = PrefixKeeper([prefix], CacheControl(core), engine._compute)
    assert not keeper.look()
    assert not keeper.look()
    (record,) = caplog.records
    assert "the prompt has 300 tokens" in record.message
    engine.shutdown()
    with pytest.raises(EngineDead):
        engine._compute(PROMPT, "")


def test_an_engine_keeps_prefixes_beside_its_requests(node: Node):
    async def scenario() -> None:
        engine = AsyncEngine(tiered_core(node), max_queued=4)
        engine.keep([PrefixToKeep("bot", PROMPT, "alice")])
        wanted = (KeptPrefix("bot", NUM_TOKENS, NUM_TOKENS),)
        while True:
            (stats,) = await engine.cache_stats()
            assert stats.tiers is not None
            if stats.tiers.pinned == wanted:
                break
        request = make_request("r", PROMPT, salt="alice", max_tokens=2)
        deltas = [each async for each in engine.generate(request)]
        assert deltas[0].num_cached_tokens == len(PROMPT) - 1
        engine.shutdown()

    asyncio.run(asyncio.wait_for(scenario(), 60))
