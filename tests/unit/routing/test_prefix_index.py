from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from rtp_serve.kv_cache.block import BlockHash
from rtp_serve.routing.assumed_blocks import AssumedBlocks
from rtp_serve.routing.block_stream import BlockDelta, SnapshotPage, StreamOutcome
from rtp_serve.routing.prefix_index import PrefixIndex
from rtp_serve.routing.slots import Slots
from tests.unit.routing.requests import keys

HOLDERS = [f"w{i}" for i in range(12)]
BLOCKS = [BlockHash(bytes([i])) for i in range(12)]


def make_index(num_holders: int = 3) -> tuple[PrefixIndex, Slots]:
    slots = Slots(64)
    for number in range(num_holders):
        slots.add(f"w{number}")
    return PrefixIndex(slots), slots


def delta(holder: str, base: int, added: str = "", removed: str = "", epoch: int = 1) -> BlockDelta:
    return BlockDelta(holder, epoch, base, base + 1, keys(*added), keys(*removed))


def test_a_worker_is_credited_with_what_it_has_from_the_beginning_only():
    index, _ = make_index()
    index.apply(delta("w0", 0, added="ab"))
    index.apply(delta("w1", 0, added="bcd"))  # the paper's Algorithm 2 would credit it with 4
    index.apply(delta("w2", 0, added="abd"))
    assert index.match(keys(*"abcd")).tolist() == [2, 0, 2]


def test_all_of_a_prompt_and_nothing_of_one():
    index, _ = make_index()
    index.apply(delta("w1", 0, added="ab"))
    assert index.match(keys(*"ab")).tolist() == [0, 2, 0]
    assert index.match(()).tolist() == [0, 0, 0]
    assert index.match(keys("x", "a")).tolist() == [0, 0, 0]


def test_a_gap_asks_for_a_snapshot_and_changes_nothing():
    index, _ = make_index()
    index.apply(delta("w0", 0, added="a"))
    assert index.apply(delta("w0", 2, added="b")) is StreamOutcome.NEEDS_SNAPSHOT
    assert index.blocks("w0") == set(keys("a"))


def test_a_delta_that_came_twice_counts_once():
    index, _ = make_index()
    index.apply(delta("w0", 0, added="a"))
    index.apply(delta("w0", 1, removed="a"))
    assert index.apply(delta("w0", 0, added="a")) is StreamOutcome.STALE
    assert not index.blocks("w0")


def test_a_new_life_has_nothing_of_the_old_one_whose_late_words_are_not_heard():
    index, _ = make_index()
    index.apply(delta("w0", 0, added="a"))
    assert index.apply(delta("w0", 0, added="b", epoch=2)) is StreamOutcome.APPLIED
    assert index.apply(delta("w0", 1, added="c", epoch=1)) is StreamOutcome.STALE
    assert index.blocks("w0") == set(keys("b"))


def test_a_life_that_is_first_heard_of_in_its_middle_needs_a_snapshot():
    index, _ = make_index()
    assert index.apply(delta("w0", 7, added="a")) is StreamOutcome.NEEDS_SNAPSHOT


def test_a_truncated_snapshot_is_never_taken_for_the_whole():
    index, _ = make_index()
    index.apply(delta("w0", 0, added="ab"))
    first = SnapshotPage("w0", 1, 5, 0, 2, keys("c"))
    assert index.apply_page(first) is StreamOutcome.PENDING
    assert index.blocks("w0") == set(keys(*"ab"))
    assert index.apply(delta("w0", 6, added="d")) is StreamOutcome.NEEDS_SNAPSHOT
    assert index.apply_page(SnapshotPage("w0", 1, 5, 1, 2, keys("e"))) is StreamOutcome.APPLIED
    assert index.blocks("w0") == set(keys(*"ce"))
    index.check_invariants()


def test_deltas_between_the_pages_of_a_snapshot_count_after_it():
    index, _ = make_index()
    index.apply_page(SnapshotPage("w0", 1, 5, 0, 2, keys("c")))
    assert index.apply(delta("w0", 5, added="d", removed="c")) is StreamOutcome.PENDING
    index.apply_page(SnapshotPage("w0", 1, 5, 1, 2, keys("e")))
    assert index.blocks("w0") == set(keys(*"de"))
    assert index.apply(delta("w0", 6, added="f")) is StreamOutcome.APPLIED


def test_a_newer_snapshot_takes_the_place_of_an_unfinished_one():
    index, _ = make_index()
    index.apply_page(SnapshotPage("w0", 1, 5, 0, 2, keys("c")))
    assert index.apply_page(SnapshotPage("w0", 1, 6, 0, 1, keys("d"))) is StreamOutcome.APPLIED
    assert index.apply_page(SnapshotPage("w0", 1, 5, 1, 2, keys("e"))) is StreamOutcome.STALE
    assert index.blocks("w0") == set(keys("d"))


def test_pages_of_two_snapshots_are_not_mixed():
    index, _ = make_index()
    index.apply_page(SnapshotPage("w0", 1, 5, 0, 2, keys("c")))
    other = SnapshotPage("w0", 1, 5, 1, 3, keys("d"))
    assert index.apply_page(other) is StreamOutcome.NEEDS_SNAPSHOT
    assert index.apply_page(SnapshotPage("w0", 1, 5, 1, 2, keys("e"))) is StreamOutcome.STALE
    assert not index.blocks("w0")


def test_a_snapshot_that_begins_again_forgets_its_first_attempt():
    index, _ = make_index()
    index.apply_page(SnapshotPage("w0", 1, 5, 0, 2, keys("c")))
    index.apply_page(SnapshotPage("w0", 1, 5, 0, 2, keys("d")))
    index.apply_page(SnapshotPage("w0", 1, 5, 1, 2, keys("e")))
    assert index.blocks("w0") == set(keys(*"de"))


def test_assumed_blocks_count_until_they_are_settled():
    index, _ = make_index()
    index.apply(delta("w0", 0, added="a"))
    assumed = AssumedBlocks()
    assumed.assume(0, keys(*"bc"))
    assumed.assume(0, keys("b"))
    assumed.check_invariants([(0, keys("b")), (0, keys(*"bc"))])
    assert index.match(keys(*"abc"), assumed.masks).tolist() == [3, 0, 0]
    assumed.settle(0, keys(*"bc"))
    assert index.match(keys(*"abc"), assumed.masks).tolist() == [2, 0, 0]
    assumed.settle(0, keys("b"))
    assumed.check_invariants([])


@given(
    held=st.lists(st.sets(st.sampled_from(BLOCKS)), min_size=1, max_size=40),
    assumed_at=st.lists(st.tuples(st.integers(0, 39), st.sampled_from(BLOCKS)), max_size=20),
    prompt=st.lists(st.sampled_from(BLOCKS), max_size=12),
)
@settings(deadline=None)
def test_matching_is_what_a_naive_search_finds(
    held: list[set[BlockHash]], assumed_at: list[tuple[int, BlockHash]], prompt: list[BlockHash]
):
    index, _ = make_index(len(held))
    assumed = AssumedBlocks()
    for number, blocks in enumerate(held):
        index.apply(BlockDelta(f"w{number}", 1, 0, 1, tuple(blocks)))
    for number, block in assumed_at:
        if number < len(held):
            assumed.assume(number, (block,))
            held[number] = held[number] | {block}
    expected = [
        next((i for i, key in enumerate(prompt) if key not in blocks), len(prompt))
        for blocks in held
    ]
    assert index.match(tuple(prompt), assumed.masks).tolist() == expected


class IndexMachine(RuleBasedStateMachine):
    """Holders that change, restart and leave, over a line that loses messages. Whoever is told to
    sends a snapshot. What the index believes is what a holder had at the version it names."""

    def __init__(self) -> None:
        super().__init__()
        self.index, self.slots = make_index(0)
        self.epochs = dict.fromkeys(HOLDERS, 1)
        self.histories: dict[str, list[frozenset[BlockHash]]] = {}
        for holder in HOLDERS:
            self.slots.add(holder)
            self.histories[holder] = [frozenset()]
        self.wanting: set[str] = set()

    @rule(
        holder=st.sampled_from(HOLDERS),
        added=st.sets(st.sampled_from(BLOCKS)),
        removed=st.sets(st.sampled_from(BLOCKS)),
        is_lost=st.booleans(),
    )
    def change(
        self, holder: str, added: set[BlockHash], removed: set[BlockHash], is_lost: bool
    ) -> None:
        history = self.histories[holder]
        removed = removed - added
        history.append(history[-1] - removed | added)
        version = len(history) - 1
        if is_lost:
            return
        outcome = self.index.apply(
            BlockDelta(
                holder, self.epochs[holder], version - 1, version, tuple(added), tuple(removed)
            )
        )
        if outcome is StreamOutcome.NEEDS_SNAPSHOT:
            self.wanting.add(holder)

    @rule(holder=st.sampled_from(HOLDERS), num_pages=st.integers(1, 3), num_sent=st.integers(1, 3))
    def answer(self, holder: str, num_pages: int, num_sent: int) -> None:
        if holder not in self.wanting:
            return
        version = len(self.histories[holder]) - 1
        blocks = sorted(self.histories[holder][-1])
        for page in range(min(num_pages, num_sent)):
            self.index.apply_page(
                SnapshotPage(
                    holder,
                    self.epochs[holder],
                    version,
                    page,
                    num_pages,
                    tuple(blocks[page::num_pages]),
                )
            )
        if num_sent >= num_pages:
            self.wanting.discard(holder)
            assert self.index.blocks(holder) == self.histories[holder][-1]

    @rule(holder=st.sampled_from(HOLDERS))
    def restart(self, holder: str) -> None:
        self.epochs[holder] += 1
        self.histories[holder] = [frozenset()]
        self.wanting.discard(holder)

    @rule(holder=st.sampled_from(HOLDERS))
    def leave(self, holder: str) -> None:
        self.index.forget(holder)
        assert not self.index.blocks(holder)
        self.wanting.discard(holder)

    @invariant()
    def believes_what_was_true_at_its_version(self) -> None:
        self.index.check_invariants()
        for holder, epoch, version in self.index.versions():
            if epoch == self.epochs[holder]:
                assert self.index.blocks(holder) == self.histories[holder][version]


TestIndexMachine = IndexMachine.TestCase
TestIndexMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
