import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtp_serve.kv_cache.block import BlockContent, root_hash
from rtp_serve.kv_cache.donor_index import Donor, DonorIndex

PARENTS = [root_hash(b"test", salt) for salt in ("a", "b")]
TOKENS = st.lists(st.integers(0, 2), max_size=5).map(tuple)
CONTENTS = st.builds(BlockContent, st.sampled_from(PARENTS), TOKENS, st.just(True))


def num_common(first: tuple[int, ...], second: tuple[int, ...]) -> int:
    return max(
        n for n in range(6) if first[:n] == second[:n] and n <= min(map(len, (first, second)))
    )


@given(st.lists(CONTENTS), st.sets(st.integers(0, 20)), st.sampled_from(PARENTS), TOKENS)
def test_the_donor_shares_as_much_as_any_block_after_the_parent(
    contents: list[BlockContent],
    removed: set[int],
    parent: bytes,
    token_ids: tuple[int, ...],
):
    index = DonorIndex()
    held = dict(enumerate(contents, start=1))
    for block_id, content in held.items():
        index.add(block_id, content)
    for block_id in removed & set(held):
        index.remove(block_id, held.pop(block_id))
    index.check_invariants(held)
    shared = {
        block_id: num_common(content.token_ids, token_ids)
        for block_id, content in held.items()
        if content.parent == parent
    }
    donor = index.find(parent, token_ids)
    if donor is None:
        assert not any(shared.values())
    else:
        assert donor.num_tokens == shared[donor.block_id] == max(shared.values()) > 0


def test_of_two_that_share_as_much_the_one_without_more_is_taken():
    """It can be written on without a copy."""
    index = DonorIndex()
    index.add(1, BlockContent(PARENTS[0], (5, 6, 9), is_first=True))
    index.add(2, BlockContent(PARENTS[0], (5, 6), is_first=True))
    assert index.find(PARENTS[0], (5, 6, 7)) == Donor(2, 2)


def test_forgetting_what_was_never_there_is_caught():
    index = DonorIndex()
    index.add(1, BlockContent(PARENTS[0], (5, 6), is_first=True))
    with pytest.raises(AssertionError, match="is not here"):
        index.remove(1, BlockContent(PARENTS[0], (5,), is_first=True))
