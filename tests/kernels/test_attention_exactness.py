"""A row of attention has the same bits however it comes about: the law the engine stands on."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.kernels.batches import Heads, Tokens, make_batch, make_tokens, with_strided_query
from tests.kernels.levels import DTYPES, ISAS, bits, using

pytestmark = [pytest.mark.parametrize("isa", ISAS), pytest.mark.parametrize("dtype", DTYPES)]

SHAPES = [Heads(9, 3, 64), Heads(4, 4, 32), Heads(16, 2, 128), Heads(5, 1, 20), Heads(8, 1, 80)]
LENGTH = 590
# Around the bounds of tiles (64), partitions (256) and pairs of keys.
POSITIONS = [0, 1, 2, 5, 62, 63, 64, 65, 127, 128, 254, 255, 256, 257, 319, 320, 511, 512, 513, 589]


def whole_prompt(heads: Heads, tokens: Tokens, window: int = 0) -> Tensor:
    return make_batch(heads, [(tokens, len(tokens))], window).attend()


@pytest.mark.parametrize("window", [0, 77])
@pytest.mark.parametrize("heads", SHAPES, ids=str)
def test_decode_rows_equal_prefill_rows(isa: str, dtype: torch.dtype, heads: Heads, window: int):
    tokens = make_tokens(heads, LENGTH, dtype)
    with using(isa):
        prompt = whole_prompt(heads, tokens, window)
    decode = [(tokens.until(position + 1), 1) for position in POSITIONS]
    with using(isa):
        alone = torch.cat([make_batch(heads, [row], window).attend() for row in decode])
    with using(isa, num_threads=2):
        together = make_batch(heads, decode, window, seed=1).attend()
    assert torch.equal(bits(alone), bits(prompt[POSITIONS]))
    assert torch.equal(bits(together), bits(prompt[POSITIONS]))


@pytest.mark.parametrize("chunk", [19, 64, 333])
def test_chunks_equal_the_whole_prompt(isa: str, dtype: torch.dtype, chunk: int):
    heads = Heads(9, 3, 64)
    tokens = make_tokens(heads, LENGTH, dtype)
    ends = [*range(chunk, LENGTH, chunk), LENGTH]
    starts = [0, *ends[:-1]]
    with using(isa):
        prompt = whole_prompt(heads, tokens)
        chunks = [
            with_strided_query(make_batch(heads, [(tokens.until(end), end - start)])).attend()
            for start, end in zip(starts, ends, strict=True)
        ]
    assert torch.equal(bits(torch.cat(chunks)), bits(prompt))


@pytest.mark.parametrize("window", [0, 77])
def test_thread_counts_cut_the_work_but_not_the_sums(isa: str, dtype: torch.dtype, window: int):
    """More threads than cores: the partitions of one decode row go to several."""
    heads = Heads(9, 3, 64)
    tokens = make_tokens(heads, 1100, dtype)
    batch = make_batch(heads, [(tokens, 1), (tokens.until(700), 40)], window)
    results = []
    for num_threads in (1, 2, 5):
        with using(isa, num_threads):
            results.append(bits(batch.attend()))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_the_order_of_a_batch_does_not_matter(isa: str, dtype: torch.dtype):
    heads = Heads(9, 3, 64)
    rows = [(make_tokens(heads, 40 * i + 3, dtype, seed=i), 1 + 13 * (i % 3)) for i in range(8)]
    with using(isa):
        forward = make_batch(heads, rows).attend().split([count for _, count in rows])
        backward = make_batch(heads, rows[::-1], seed=1).attend()
        backward = backward.split([count for _, count in rows[::-1]])
    for one, other in zip(forward, backward[::-1], strict=True):
        assert torch.equal(bits(one), bits(other))


@pytest.mark.parametrize("spoilt", [100, 101, 300])
def test_later_keys_never_enter_a_row(isa: str, dtype: torch.dtype, spoilt: int):
    """Not even times zero: infinities would show."""
    heads = Heads(9, 3, 64)
    tokens = make_tokens(heads, 320, dtype)
    key, value = tokens.key.clone(), tokens.value.clone()
    key[spoilt], value[spoilt] = float("nan"), float("inf")
    with using(isa):
        clean = whole_prompt(heads, tokens)
        dirty = whole_prompt(heads, Tokens(tokens.query, key, value))
    assert torch.equal(bits(dirty[:spoilt]), bits(clean[:spoilt]))
    assert dirty[spoilt:].isnan().all()


@pytest.mark.parametrize("spoilt", [40, 41])
def test_keys_before_the_window_never_enter_a_row(isa: str, dtype: torch.dtype, spoilt: int):
    heads = Heads(9, 3, 64)
    tokens = make_tokens(heads, 320, dtype)
    key, value = tokens.key.clone(), tokens.value.clone()
    key[: spoilt + 1], value[: spoilt + 1] = float("nan"), float("inf")
    window = 30
    with using(isa):
        clean = whole_prompt(heads, tokens, window)
        dirty = whole_prompt(heads, Tokens(tokens.query, key, value), window)
    first = spoilt + window
    assert torch.equal(bits(dirty[first:]), bits(clean[first:]))
    assert dirty[first - 1].isnan().all()


def test_a_chain_of_ancestors_equals_the_causal_rows(isa: str, dtype: torch.dtype):
    heads = Heads(9, 3, 64)
    tokens = make_tokens(heads, 300, dtype)
    batch = make_batch(heads, [(tokens, 10)])
    chain = torch.tensor([(2 << token) - 1 for token in range(10)])
    with using(isa):
        causal = batch.attend()
        tree = replace(batch, ancestor_mask=chain).attend()
    assert torch.equal(bits(tree), bits(causal))


@pytest.mark.parametrize("context", [0, 60, 255, 500])
@pytest.mark.parametrize("window", [0, 33])
def test_a_branch_of_a_tree_equals_decoding_it(
    isa: str, dtype: torch.dtype, context: int, window: int
):
    """What speculation needs: a verified token has the bits it would have had by itself."""
    heads = Heads(9, 3, 64)
    tokens = make_tokens(heads, context + 7, dtype)
    # 0 → (1 → 3 → 6), (2 → 4, 5)
    branches = [[0], [0, 1], [0, 2], [0, 1, 3], [0, 2, 4], [0, 2, 5], [0, 1, 3, 6]]
    mask = torch.tensor([sum(1 << token for token in branch) for branch in branches])
    with using(isa):
        batch = make_batch(heads, [(tokens, 7)], window)
        tree = replace(batch, ancestor_mask=mask).attend()
        for token, branch in enumerate(branches):
            path = tokens.only([*range(context), *(context + step for step in branch)])
            decoded = make_batch(heads, [(path, 1)], window).attend()
            assert torch.equal(bits(decoded[0]), bits(tree[token])), token


@pytest.mark.parametrize("num_threads", [1, 3])
def test_steps_of_like_geometry_share_a_plan(isa: str, dtype: torch.dtype, num_threads: int):
    """Layers of a step, with a step of other lengths between them."""
    heads = Heads(9, 3, 64)
    rows = [(make_tokens(heads, 900, dtype, seed), 1) for seed in range(3)]
    other = make_batch(heads, [(make_tokens(heads, 300, dtype), 77)])
    with using(isa):
        layers = [make_batch(heads, [row, (row[0].until(70), 9)], seed=3) for row in rows]
        expected = [bits(layer.attend()) for layer in layers]
    with using(isa, num_threads):
        for _ in range(4):
            for layer, one in zip(layers, expected, strict=True):
                assert torch.equal(bits(layer.attend()), one)
            other.attend()
