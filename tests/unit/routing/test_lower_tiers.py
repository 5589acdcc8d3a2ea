"""What the Master knows of a store that several workers tell of."""

import random
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest

from rtp_serve.config.routing import TierConfig
from rtp_serve.kv_cache.block import BlockHash
from rtp_serve.kv_store import tier_counts
from rtp_serve.kv_store.client import TierNews, TierPosition
from rtp_serve.kv_store.node_store import NodeStore
from rtp_serve.routing.block_stream import BlockDelta, StreamOutcome, Tier
from rtp_serve.routing.block_teller import tell_store
from rtp_serve.routing.lower_tiers import LowerTiers
from rtp_serve.routing.slots import Slots
from tests.unit.kv_store.arenas import make_arena
from tests.unit.kv_store.test_node_store import open_store, store_chain
from tests.unit.routing.requests import keys

STORE = "store"


def make_tiers() -> LowerTiers:
    stores = Slots(4)
    stores.add(STORE)
    return LowerTiers(stores, TierConfig())


def known_to(tiers: LowerTiers) -> dict[tier_counts.Tier, TierPosition]:
    """As it comes to a worker."""
    positions = tiers.positions(STORE)
    return {tier_counts.Tier(tier.value): each for tier, each in positions.items()}


def tell(tiers: LowerTiers, news: tuple[TierNews, ...]) -> set[StreamOutcome]:
    deltas, pages = tell_store(STORE, news)
    outcomes = {*map(tiers.apply, deltas), *map(tiers.apply_page, pages)}
    tiers.check_invariants()
    return outcomes


def blocks_of(tiers: LowerTiers) -> dict[str, frozenset[BlockHash]]:
    return {tier.value: index.blocks(STORE) for tier, index in tiers._indexes.items()}


def found_in(store: NodeStore) -> dict[str, frozenset[BlockHash]]:
    """All that there is."""
    return {each.tier.value: frozenset(each.blocks.added) for each in store.news({})}


class Follower:
    """A worker, whose news may be told much later than they were asked for."""

    def __init__(self) -> None:
        self.news: tuple[TierNews, ...] = ()

    def ask(self, store: NodeStore, known: Mapping[tier_counts.Tier, TierPosition]) -> None:
        self.news = store.news(known)


@pytest.mark.parametrize("seed", range(4))
def test_workers_that_tell_late_and_twice_tell_the_truth(seed: int, tmp_path: Path):
    rng, arena, tiers = random.Random(seed), make_arena(8), make_tiers()
    followers = [Follower() for _ in range(3)]
    for epoch in (1, 2):  # the store's process is another one then
        with open_store(arena, tmp_path / "disk", epoch) as store:
            for step in range(120):
                match rng.randrange(6):
                    case 0:
                        store_chain(store, arena, [f"{rng.randrange(6)}{name}" for name in "abc"])
                    case 1:
                        store.trim(rng.randrange(1, 4) * arena.geometry.slab_bytes)
                    case 2 | 3:
                        rng.choice(followers).ask(store, known_to(tiers))
                    case 4:
                        tell(tiers, rng.choice(followers).news)
                    case 5 if step % 40 == 39:
                        tiers = make_tiers()  # the Master has restarted
            for follower in followers:
                tell(tiers, follower.news)
            store_chain(store, arena, [f"last {epoch}"])
            while store.stats().num_to_spill:
                threading.Event().wait(0.002)
            while news := store.news(known_to(tiers)):
                tell(tiers, news)
            assert blocks_of(tiers) == found_in(store)
            assert all(blocks_of(tiers).values())


def test_what_is_known_is_not_told_again(tmp_path: Path):
    arena, tiers = make_arena(8), make_tiers()
    with open_store(arena, None) as store:
        store_chain(store, arena)
        assert tell(tiers, store.news({})) == {StreamOutcome.APPLIED}
        assert store.news(known_to(tiers)) == ()
        store_chain(store, arena, ["e"])
        late = store.news(known_to(tiers))
        assert [len(each.blocks.added) for each in late] == [1]
        store_chain(store, arena, ["f"])
        assert tell(tiers, late) == {StreamOutcome.APPLIED}
        assert tell(tiers, late) == {StreamOutcome.STALE}


def test_a_store_that_no_worker_shares_is_unknown():
    tiers = make_tiers()
    delta = BlockDelta("other", 1, 0, 1, keys("a"), tier=Tier.HOST)
    assert tiers.apply(delta) is StreamOutcome.NEEDS_SNAPSHOT
    assert tiers.positions("other") == {}
