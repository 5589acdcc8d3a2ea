"""Against the array operations that it replaces, bit for bit."""

import numpy as np
import pytest

from rtp_serve.native.worker_numbers import Floats, Ints, WorkerColumns, WorkerNumbers

_CAPACITY = 96


def columns(rng: np.random.Generator) -> WorkerColumns:
    """Of workers some of which are idle, full, or have reported nothing."""

    def ints(high: int) -> Ints:
        return rng.integers(0, high, _CAPACITY) * rng.integers(0, 2, _CAPACITY)

    def floats(high: float) -> Floats:
        return rng.uniform(0.0, high, _CAPACITY) * rng.integers(0, 2, _CAPACITY)

    head_s = floats(0.5)
    return WorkerColumns(
        *(ints(5000), ints(5000), ints(3000), ints(9), ints(40)),
        *(head_s + floats(2.0), head_s, floats(10.0)),
        *(floats(0.02), floats(1e-3), floats(1e-8)),
    )


@pytest.mark.parametrize("seed", range(20))
def test_numbers_are_those_of_array_operations(seed: int):
    rng = np.random.default_rng(seed)
    of = columns(rng)
    slots = np.sort(rng.choice(_CAPACITY, int(rng.integers(1, _CAPACITY + 1)), replace=False))
    size, num_tokens, now = 16, int(rng.integers(1, 3000)), float(rng.uniform(9.0, 12.0))
    cached_blocks = rng.integers(0, num_tokens // size + 1, _CAPACITY)
    demand = int(rng.integers(0, 3000))
    numbers = WorkerNumbers(of)

    left, num_fitting = numbers.free_blocks(slots, demand)
    wanted_left = np.minimum(of.num_blocks - of.reserved_blocks, of.num_free_blocks)[slots]
    assert (left == wanted_left).all()
    assert num_fitting == np.count_nonzero(wanted_left >= demand)

    found = numbers.of(slots, left, cached_blocks, num_tokens, size, now)
    cached = np.minimum(cached_blocks * size, num_tokens - 1)
    new = (num_tokens - cached).astype(np.float64)
    prefill_s = ((new * 0.5 + cached) * of.attention_s + of.token_s) * new + of.base_s
    wait_s = np.maximum(of.pending_s - np.minimum(now - of.head_start_s, of.head_s), 0.0)
    assert found.prefill_s.tobytes() == prefill_s[slots].tobytes()
    assert found.wait_s.tobytes() == wait_s[slots].tobytes()
    assert (found.free_fraction == left / np.maximum(of.num_blocks[slots], 1)).all()
    assert (found.num_cached_tokens == cached[slots]).all()
    assert (found.num_in_flight == of.num_in_flight[slots]).all()
    assert (found.num_decoding == of.num_decoding[slots]).all()
    assert found.most_cached_tokens == cached[slots].max()


def test_columns_are_read_as_they_are_at_each_call():
    of = columns(np.random.default_rng(0))
    numbers, slots = WorkerNumbers(of), np.array([3])
    of.num_blocks[3], of.num_free_blocks[3], of.reserved_blocks[3] = 100, 90, 30
    assert numbers.free_blocks(slots, 1)[0].tolist() == [70]
    of.reserved_blocks[3] += 5
    assert numbers.free_blocks(slots, 66) == (pytest.approx([65]), 0)


def test_slots_that_are_not_there_are_refused():
    numbers = WorkerNumbers(columns(np.random.default_rng(0)))
    for slot in (-1, _CAPACITY):
        with pytest.raises(ValueError, match="no such workers"):
            numbers.free_blocks(np.array([slot]), 0)
    with pytest.raises(ValueError, match="no such workers"):  # the prompt was matched with fewer
        numbers.of(np.array([5]), np.array([0]), np.zeros(5, np.int64), 10, 16, 0.0)


def test_columns_of_other_elements_lengths_and_layouts_are_refused():
    of = columns(np.random.default_rng(0))
    with pytest.raises(TypeError, match="pending_s: wrong elements"):
        WorkerNumbers(of._replace(pending_s=of.pending_s.astype(np.float32)))
    with pytest.raises(ValueError, match="equally long"):
        WorkerNumbers(of._replace(pending_s=of.pending_s[:5].copy()))
    with pytest.raises(ValueError, match="contiguous"):
        WorkerNumbers(of._replace(pending_s=of.pending_s[::2]))
