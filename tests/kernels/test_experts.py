"""Routing and experts: against the reference, by bits whatever the batch, and what is not read."""

import mmap
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from rtp_kernels import _C
from rtp_serve import ops
from rtp_serve.ops import reference
from tests.kernels.levels import DTYPES, ISAS, assert_near, bits, random, using

HIDDEN, INNER, NUM_EXPERTS, TOP_K = 96, 64, 12, 3
# rows of the largest tiles, one more and one less, and a batch of several blocks
COUNTS = [1, 2, 15, 17, 70, 300]


def plain_weights(
    dtype: torch.dtype, hidden: int = HIDDEN, inner: int = INNER, num_experts: int = NUM_EXPERTS
) -> tuple[Tensor, Tensor]:
    gate_up = random(num_experts * 2 * inner, hidden, dtype=dtype, seed=1) * hidden**-0.5
    down = random(num_experts * hidden, inner, dtype=dtype, seed=2) * inner**-0.5
    return gate_up, down


def pack(gate_up: Tensor, down: Tensor, num_experts: int = NUM_EXPERTS) -> ops.ExpertWeights:
    return ops.ExpertWeights(ops.pack_weight(gate_up), ops.pack_weight(down), num_experts)


def routed(n: int, num_experts: int = NUM_EXPERTS, top_k: int = TOP_K) -> tuple[Tensor, Tensor]:
    return ops.route(random(n, num_experts, seed=3), ops.Routing(top_k, is_renormalized=True))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("is_renormalized", [True, False])
@pytest.mark.parametrize(("num_experts", "top_k"), [(4, 1), (8, 8), (60, 4), (128, 8), (300, 17)])
def test_routing_is_that_of_the_reference(
    num_experts: int, top_k: int, is_renormalized: bool, isa: str
):
    logits = random(50, num_experts) * 3
    with using(isa):
        ids, weights = ops.route(logits, ops.Routing(top_k, is_renormalized))
    expected_ids, expected = reference.route(logits, top_k, is_renormalized)
    assert torch.equal(ids, expected_ids)
    torch.testing.assert_close(weights, expected, rtol=1e-5, atol=1e-7)


def test_routing_again_stores_nothing_in_between():
    """A thread that is late does so while others read."""
    logits = random(2000, 128)
    ids = torch.empty((2000, 8), dtype=torch.int32)
    weights = torch.empty((2000, 8))
    _C.route(ids, weights, logits, True)
    expected_ids, expected = ids.clone(), weights.clone()
    again = threading.Thread(
        target=lambda: [_C.route(ids, weights, logits, True) for _ in range(300)]
    )
    again.start()
    num_wrong = 0
    while again.is_alive():
        num_wrong += not torch.equal(ids, expected_ids)
        num_wrong += not torch.equal(weights, expected)
    again.join()
    assert not num_wrong


def test_of_equal_logits_the_lower_expert_is_first():
    logits = torch.tensor([[1.0, 2.0, 2.0, 0.0, 2.0, 1.0]])
    ids, weights = ops.route(logits, ops.Routing(4, is_renormalized=True))
    assert ids.tolist() == [[1, 2, 4, 0]]
    assert weights[0, 0] == weights[0, 1] == weights[0, 2]


def test_a_row_of_no_numbers_has_experts_and_no_weights():
    logits = random(3, 8)
    logits[1, 5] = torch.nan
    logits[2] = torch.nan
    ids, weights = ops.route(logits, ops.Routing(3, is_renormalized=False))
    assert ids[2].tolist() == [0, 1, 2]
    assert ids.min() >= 0
    assert ids.max() < 8
    assert weights[0].isfinite().all()
    assert weights[2].isnan().all()


def test_sigmoid_at_its_ends():
    x = torch.tensor([-1e9, -100.0, -1.0, 0.0, 1.0, 100.0, 1e9, torch.nan])
    torch.testing.assert_close(
        ops.sigmoid(x), torch.sigmoid(x), rtol=1e-6, atol=2e-38, equal_nan=True
    )


@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", COUNTS)
def test_sums_are_near_the_reference(n: int, dtype: torch.dtype, isa: str, num_threads: int):
    gate_up, down = plain_weights(dtype)
    x = random(n, HIDDEN, dtype=dtype)
    ids, weights = routed(n)
    with using(isa, num_threads):
        actual = ops.experts(x, ids, weights, pack(gate_up, down))
    expected = reference.experts(x, ids, weights, gate_up, down)
    # the reference rounds gates and ups apart from each other as we do, but sums in another order
    scale = 8 if dtype == torch.bfloat16 else 1
    torch.testing.assert_close(actual, expected, rtol=1e-4 * scale, atol=2e-3 * scale)
    if dtype == torch.float32:
        assert_near(actual, expected)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_has_its_bits_in_every_batch_and_place(dtype: torch.dtype, isa: str):
    experts = pack(*plain_weights(dtype))
    x = random(300, HIDDEN, dtype=dtype)
    ids, weights = routed(300)
    with using(isa, 2):
        together = ops.experts(x, ids, weights, experts)
        for rows in (slice(7, 8), slice(0, 2), slice(100, 117), slice(30, 100), slice(1, 300)):
            alone = ops.experts(x[rows].contiguous(), ids[rows], weights[rows], experts)
            assert torch.equal(bits(alone), bits(together[rows])), rows
        # all rows to the same expert: the largest group there can be
        crowded = torch.full_like(ids, 5)
        crowded[:, 1:] = torch.tensor([2, 9])
        many = ops.experts(x, crowded, weights, experts)
        one = ops.experts(x[8:9], crowded[8:9], weights[8:9], experts)
        assert torch.equal(bits(one), bits(many[8:9]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_ranks_with_some_of_the_experts_or_columns_add_up(dtype: torch.dtype):
    gate_up, down = plain_weights(dtype)
    x = random(40, HIDDEN, dtype=dtype)
    ids, weights = routed(40)
    expected = ops.experts(x, ids, weights, pack(gate_up, down))
    half = NUM_EXPERTS // 2
    parts = []
    for first in (0, half):
        own = slice(first * 2 * INNER, (first + half) * 2 * INNER)
        downs = slice(first * HIDDEN, (first + half) * HIDDEN)
        local = replace(pack(gate_up[own], down[downs], half), first_expert=first)
        parts.append(ops.experts(x, ids, weights, local))
    torch.testing.assert_close(parts[0] + parts[1], expected, rtol=1e-5, atol=1e-5)
    halves = gate_up.view(NUM_EXPERTS, 2, INNER, HIDDEN)
    parts = []
    for columns in (slice(0, 32), slice(32, 64)):
        own_gate_up = halves[:, :, columns].reshape(-1, HIDDEN)
        parts.append(ops.experts(x, ids, weights, pack(own_gate_up, down[:, columns].contiguous())))
    torch.testing.assert_close(parts[0] + parts[1], expected, rtol=1e-4, atol=1e-4)


def test_a_row_without_local_experts_gets_zeros():
    local = replace(pack(*plain_weights(torch.float32)), first_expert=100)
    ids, weights = routed(5)
    out = ops.experts(random(5, HIDDEN), ids, weights, local)
    assert torch.equal(out, torch.zeros(5, HIDDEN))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("n", [1, 40])
def test_pages_of_experts_without_rows_are_not_touched(n: int, isa: str):
    """Weights in a mapping of zero pages that nothing has touched: a page read is a page there."""
    hidden, inner, num_experts = 256, 128, 16  # an expert: 128 KiB of gates and ups, 64 KiB of down
    active = [3, 4, 11]
    shapes = [(num_experts * 2 * inner, hidden), (num_experts * hidden, inner)]
    regions, weights = [], []
    for rows, columns in shapes:
        region = mmap.mmap(-1, rows * columns * 2, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        region.madvise(mmap.MADV_NOHUGEPAGE)
        data = torch.frombuffer(region, dtype=torch.bfloat16)
        data = data.view(ops.packed_shape(rows, columns, torch.bfloat16))
        regions.append(data)
        weights.append(ops.from_packed(data, None, rows, columns))
    local = ops.ExpertWeights(*weights, num_experts)
    ids = torch.tensor(active, dtype=torch.int32).repeat(n, 1)
    with using(isa, 2):
        ops.experts(random(n, hidden, dtype=torch.bfloat16), ids, torch.ones(n, 3), local)
    for data in regions:
        touched = present_pages(data).reshape(num_experts, -1)
        assert touched[active].all()
        inactive = [expert for expert in range(num_experts) if expert not in active]
        assert not touched[inactive].any()


def present_pages(data: Tensor) -> np.ndarray:
    """Whether each page of it is there, by /proc/self/pagemap."""
    first, count = data.data_ptr() // mmap.PAGESIZE, data.nbytes // mmap.PAGESIZE
    with open("/proc/self/pagemap", "rb") as file:
        file.seek(8 * first)
        entries = np.frombuffer(file.read(8 * count), np.uint64)
    return (entries >> np.uint64(63)) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_experts": 5}, "are not of 5 experts"),
        ({"num_experts": 2000}, "num_experts must be from 1 to 1024"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, int], message: str):
    local = replace(pack(*plain_weights(torch.float32)), **change)
    ids, weights = routed(2)
    with pytest.raises(ValueError, match=message):
        ops.experts(random(2, HIDDEN), ids, weights, local)


def test_experts_of_broken_strips_are_refused():
    gate_up, down = plain_weights(torch.float32, inner=48)
    with pytest.raises(ValueError, match="must be multiples of 32, got 96 and 48"):
        ops.experts(random(2, HIDDEN), *routed(2), pack(gate_up, down))


@pytest.mark.parametrize("top_k", [0, 9, 65])
def test_impossible_choices_are_refused(top_k: int):
    num_experts = 8 if top_k < 10 else 100
    ids, weights = torch.empty((2, top_k), dtype=torch.int32), torch.empty((2, top_k))
    with pytest.raises(ValueError, match=f"cannot choose {top_k} of {num_experts} experts"):
        _C.route(ids, weights, random(2, num_experts), True)
