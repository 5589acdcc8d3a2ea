from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from rtp_serve.kv_cache.block import BlockContent, BlockHash, chain_hash, root_hash
from rtp_serve.kv_cache.block_changes import BlockChanges, BlockNews
from rtp_serve.kv_cache.block_pool import BlockPool
from rtp_serve.routing.block_stream import BlockDelta, SnapshotPage, StreamOutcome
from rtp_serve.routing.block_teller import PAGE_BLOCKS, BlockTeller
from rtp_serve.routing.prefix_index import PrefixIndex
from rtp_serve.routing.slots import Slots
from tests.unit.routing.requests import keys

MAX_WAITING = 6
ROOT = root_hash(b"test", "")


def test_news_are_deltas_that_follow_each_other():
    teller = BlockTeller("w0", 7)
    assert teller.tell(BlockNews(keys("a"), keys("b"))) == BlockDelta(
        "w0", 7, 0, 1, keys("a"), keys("b")
    )
    assert teller.tell(BlockNews((), keys("a"))) == BlockDelta("w0", 7, 1, 2, (), keys("a"))


def test_a_snapshot_is_a_version_in_pages():
    teller = BlockTeller("w0", 7)
    everything = keys(*range(PAGE_BLOCKS + 1))
    pages = teller.tell(BlockNews(everything, is_all=True))
    assert pages == (
        SnapshotPage("w0", 7, 1, 0, 2, everything[:PAGE_BLOCKS]),
        SnapshotPage("w0", 7, 1, 1, 2, everything[PAGE_BLOCKS:]),
    )
    assert teller.tell(BlockNews((), is_all=True)) == (SnapshotPage("w0", 7, 2, 0, 1, ()),)


class ReportedPool(RuleBasedStateMachine):
    """An index that hears of a pool, some reports being lost on the way, has what the pool has."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(12)
        self.changes = BlockChanges(self.pool.hashes(), MAX_WAITING)
        self.pool.watch(self.changes.note)
        self.teller = BlockTeller("w0", 1)
        slots = Slots(4)
        slots.add("w0")
        self.index = PrefixIndex(slots)
        self.chains: list[list[int]] = []
        self.settled: frozenset[BlockHash] = frozenset()
        self.has_gap = False

    @rule(tokens=st.lists(st.integers(0, 1), min_size=1, max_size=4))
    def compute(self, tokens: list[int]) -> None:
        """A sequence begins: its cached blocks are held, others registered."""
        hashes, contents, parent = [], [], ROOT
        for index, token in enumerate(tokens):
            contents.append(BlockContent(parent, (token,), index == 0))
            parent = chain_hash(parent, [token])
            hashes.append(parent)
        cached = self.pool.lookup(hashes)
        num_missing = len(hashes) - len(cached)
        if num_missing > self.pool.num_free - self.pool.num_idle(cached):
            return
        self.pool.hold(cached)
        block_ids = cached + self.pool.allocate(num_missing)
        for index in range(len(cached), len(hashes)):
            self.pool.register(block_ids[index], hashes[index], contents[index])
        self.chains.append(block_ids)

    @precondition(lambda self: self.chains)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.chains) - 1))
        self.pool.release(self.chains.pop(index))

    @rule(count=st.integers(1, 8))
    def evict(self, count: int) -> None:
        self.pool.release(self.pool.allocate(min(count, self.pool.num_free)))

    @rule()
    def fail(self) -> None:
        self.pool.clear_cache()

    @rule()
    def end_step(self) -> None:
        self.pool.settle()
        self.changes.settle()
        self.settled = frozenset(self.pool.hashes())

    @rule()
    def send_all(self) -> None:
        self.changes.want_all()

    @rule(is_lost=st.sampled_from([False, False, True]))
    def report(self, is_lost: bool) -> None:
        news = self.changes.take()
        if news is None:
            return
        told = self.teller.tell(news)
        if is_lost:
            self.has_gap = True
        elif isinstance(told, BlockDelta):
            outcome = self.index.apply(told)
            expected = StreamOutcome.NEEDS_SNAPSHOT if self.has_gap else StreamOutcome.APPLIED
            assert outcome is expected
            if self.has_gap:
                self.changes.want_all()
        else:
            assert [self.index.apply_page(page) for page in told][-1] is StreamOutcome.APPLIED
            self.has_gap = False
        if not self.has_gap:
            assert self.index.blocks("w0") == self.settled

    @invariant()
    def few_wait(self) -> None:
        assert len(self.changes._waiting) <= MAX_WAITING
        self.pool.check_invariants()
        self.index.check_invariants()


TestReportedPool = ReportedPool.TestCase
TestReportedPool.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
