"""The read probe reads everything once, and the timing of kernels ends where it began."""

import time

import numpy as np
import pytest
import torch

import rtp_kernels
from rtp_kernels import _C
from rtp_serve import ops
from rtp_serve.ops import probe
from tests.kernels.levels import ISAS, using


def aligned_words(count: int) -> np.ndarray:
    words = probe.memory(count * 8 + 4096, has_huge_pages=False)[:count]
    words[:] = np.random.default_rng(3).integers(-(2**62), 2**62, count)
    return words


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("num_threads", [1, 2, 3])
@pytest.mark.parametrize("count", [0, 1, 63, 64, 1000, 70_001])
def test_every_word_is_read_once(isa: str, num_threads: int, count: int):
    words = aligned_words(count)
    threads_before = rtp_kernels.num_threads()
    with using(isa):
        rtp_kernels.set_num_threads(num_threads)
        totals = {_C.read_memory(words, 4096, hint) for hint in ("none", "t0", "t1", "nta")}
    rtp_kernels.set_num_threads(threads_before)
    assert totals == {int(words.sum(dtype=np.int64)) % 2**64}


def test_an_unknown_hint_and_unaligned_words_are_refused():
    words = aligned_words(16)
    with pytest.raises(ValueError, match="hint must be none, t0, t1 or nta, got 'l2'"):
        _C.read_memory(words, 0, "l2")
    with pytest.raises(ValueError, match="aligned to 64 bytes"):
        _C.read_memory(words[1:], 0, "none")


def test_only_calls_inside_the_block_are_timed():
    weight = ops.pack_weight(torch.ones(32, 8, dtype=torch.bfloat16))
    x = torch.ones(2, 8, dtype=torch.bfloat16)
    with probe.kernel_time(time.perf_counter_ns) as spent:
        ops.linear(x, weight)
        ops.silu_and_mul(x)
    assert spent.num_calls == 2
    assert spent.elapsed_ns > 0
    ops.linear(x, weight)
    assert spent.num_calls == 2
