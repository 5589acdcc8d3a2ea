"""Sampling and log-probabilities: compiled against reference at every level, edges, exactness."""

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from rtp_serve.ops import compiled, sampling_reference
from rtp_serve.ops.draws import NO_TOKEN, Draws
from tests.kernels.levels import ISAS, using

# One span, a span and a bit, two spans, several with a rest, one model's.
VOCAB_SIZES = [1, 7, 256, 257, 512, 3000, 49152]
FILTERS: dict[str, dict[str, Any]] = {
    "none": {},
    "hot": {"temperature": 50.0},
    "cold": {"temperature": 0.05},
    "top_k 1": {"top_k": 1},
    "top_k 40": {"top_k": 40},
    "top_k beyond the lanes": {"top_k": 500},
    "top_k nearly all": {"top_k": 2999},
    "top_k more than all": {"top_k": 1 << 30},
    "top_p 0.01": {"top_p": 0.01},
    "top_p 0.6": {"top_p": 0.6},
    "top_p 0.9 hot": {"top_p": 0.9, "temperature": 3.0},
    "top_p 0.999": {"top_p": 0.999},
    "min_p 0.1": {"min_p": 0.1},
    "min_p 0.9": {"min_p": 0.9},
    "min_p 1": {"min_p": 1.0},
    "all": {"top_k": 40, "top_p": 0.7, "min_p": 0.02, "temperature": 1.5},
    "min_p before top_k": {"top_k": 400, "min_p": 0.3},
}


def make_draws(number: np.ndarray | list[float], **filters: Any) -> Draws:
    """The same filters for a row of each number."""
    number = np.asarray(number, np.float64)
    values = {"temperature": 1.0, "min_p": 0.0, "top_k": 0, "top_p": 1.0, **filters}
    columns = {
        name: np.full(len(number), value, np.int32 if name == "top_k" else np.float32)
        for name, value in values.items()
    }
    return Draws(number=number, **columns)


def make_logits(num_rows: int, vocab_size: int, seed: int = 0, scale: float = 2.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (scale * rng.standard_normal((num_rows, vocab_size))).astype(np.float32)


def draw_at(logits: np.ndarray, numbers: np.ndarray | list[float], **filters: Any) -> list[int]:
    """The compiled kernel's token of one row of logits at each number."""
    rows = np.broadcast_to(logits, (len(numbers), len(logits)))
    rows.flags.writeable = True
    return compiled.sample(rows, make_draws(numbers, **filters)).tolist()


def reference_candidates(logits: np.ndarray, **filters: Any) -> sampling_reference.Candidates:
    return sampling_reference.candidates(logits, make_draws([0.0], **filters), 0)


def assert_draws_by_weight(logits: np.ndarray, **filters: Any) -> None:
    """The middle of a reference candidate's share of [0, 1) leads to it: the compiled kernel has
    the same candidates at the same weights, within rounding.
    """
    kept = reference_candidates(logits, **filters)
    weights = kept.weights.astype(np.float64) / kept.weights.sum(dtype=np.float64)
    upto = np.cumsum(weights)
    clear = weights > 3e-6
    middles = (upto - weights / 2)[clear]
    assert draw_at(logits, middles, **filters) == kept.token_ids[clear].tolist()
    first, last = draw_at(logits, [0.0, np.nextafter(1.0, 0.0)], **filters)
    assert first == kept.token_ids[kept.weights > 2e-38][0]
    assert last >= kept.token_ids[weights > 1e-6][-1]
    assert last in kept.token_ids


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
def test_greedy_is_the_references(isa: str, vocab_size: int):
    logits = make_logits(20, vocab_size)
    with using(isa, num_threads=2):
        assert np.array_equal(compiled.greedy(logits), sampling_reference.greedy(logits))


@pytest.mark.parametrize("isa", ISAS)
def test_greedy_takes_the_lowest_id_among_equals(isa: str):
    places = [(0, 299), (255, 256), (17, 33), (298, 299), (0, 1), (16, 272)]
    logits = np.full((len(places) + 2, 300), -3.0, np.float32)
    for row, pair in enumerate(places):
        logits[row, list(pair)] = 5.0
    logits[-1] = 0.0
    logits[-1, 7:] = -0.0
    with using(isa):
        assert compiled.greedy(logits).tolist() == [*(low for low, _ in places), 0, 0]
        number = np.full(len(logits), 0.9)
        drawn = compiled.sample(logits, make_draws(number, temperature=0.0))
        assert drawn.tolist() == compiled.greedy(logits).tolist()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("filters", FILTERS.values(), ids=FILTERS)
@pytest.mark.parametrize("vocab_size", [7, 256, 3000])
def test_tokens_are_drawn_by_the_references_weights(
    isa: str, vocab_size: int, filters: dict[str, Any]
):
    with using(isa):
        assert_draws_by_weight(make_logits(1, vocab_size)[0], **filters)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("filters", [FILTERS["none"], FILTERS["top_p 0.6"], FILTERS["all"]])
def test_a_peaked_row_is_drawn_by_the_references_weights(isa: str, filters: dict[str, Any]):
    logits = make_logits(1, 49152)[0]
    logits[[5, 300, 301, 40000, 49151]] = [14, 15, 14.5, 13.5, 15.2]
    with using(isa):
        assert_draws_by_weight(logits, **filters)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("spread", [1e-3, 0.3, 10.0])
@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.95])
def test_top_p_keeps_as_many_as_the_reference(isa: str, spread: float, top_p: float):
    """Ids ascend by weight here, so the first that can be drawn is the lightest that is kept."""
    logits = np.sort(make_logits(1, 20000, scale=spread)[0])
    kept = reference_candidates(logits, top_p=top_p)
    with using(isa):
        lowest, highest = draw_at(logits, [0.0, np.nextafter(1.0, 0.0)], top_p=top_p)
    assert abs(lowest - kept.token_ids[0]) <= 1
    assert highest == 19999


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("filters", "kept"),
    [
        ({"top_k": 2}, {1, 3}),
        ({"top_k": 3}, {1, 2, 3, 4, 290}),
        ({"top_p": 0.3}, {1, 3}),
        ({"top_p": 0.85}, {1, 2, 3, 4, 290}),
        ({"min_p": 0.9}, {1, 3}),
    ],
    ids=str,
)
def test_equal_logits_stay_or_go_together(isa: str, filters: dict[str, Any], kept: set[int]):
    logits = np.full(300, -20.0, np.float32)
    logits[[1, 3]], logits[[2, 4, 290]], logits[[0, 5]] = 3.0, 1.0, -1.0
    with using(isa):
        drawn = set(draw_at(logits, np.linspace(0, 0.9999, 500), **filters))
    assert drawn == kept == set(reference_candidates(logits, **filters).token_ids.tolist())


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("filters", FILTERS.values(), ids=FILTERS)
def test_all_equal_logits_are_drawn_evenly(isa: str, filters: dict[str, Any]):
    logits = np.full(1000, 2.5, np.float32)
    with using(isa):
        numbers = (np.arange(1000) + 0.5) / 1000
        assert draw_at(logits, numbers, **filters) == list(range(1000))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("filters", FILTERS.values(), ids=FILTERS)
@pytest.mark.parametrize("vocab_size", [1, 3000])
def test_rows_without_a_finite_largest_logit_have_no_token(
    isa: str, vocab_size: int, filters: dict[str, Any]
):
    logits = make_logits(7, vocab_size)
    last = vocab_size - 1
    logits[0, last // 2] = np.nan
    logits[1, last] = -np.nan
    logits[2, 0] = np.inf
    logits[3] = -np.inf
    logits[4, :] = np.nan
    logits[5, :last] = -np.inf
    expected = [True] * 5 + [False] * 2
    with using(isa):
        assert (compiled.greedy(logits) == NO_TOKEN).tolist() == expected
        drawn = compiled.sample(logits, make_draws([0.5] * 7, **filters))
        assert (drawn == NO_TOKEN).tolist() == expected
        assert drawn[5] == last
    assert (sampling_reference.greedy(logits) == NO_TOKEN).tolist() == expected


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("filters", FILTERS.values(), ids=FILTERS)
def test_minus_infinity_is_never_drawn(isa: str, filters: dict[str, Any]):
    logits = make_logits(1, 3000)[0]
    logits[:700] = logits[900:] = -np.inf
    numbers = [0.0, 5e-324, 1e-17, 0.5, np.nextafter(1.0, 0.0)]
    with using(isa):
        assert all(700 <= token_id < 900 for token_id in draw_at(logits, numbers, **filters))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("temperature", [1e-6, 1e-30, 1e-44])
def test_the_coldest_row_is_greedy(isa: str, temperature: float):
    logits = make_logits(1, 3000, scale=1e30)[0]
    with using(isa):
        drawn = draw_at(logits, [0.0, 0.5, 0.999999], temperature=temperature)
    assert drawn == [logits.argmax()] * 3


@pytest.mark.parametrize("isa", ISAS)
def test_a_row_is_the_same_in_any_batch_and_on_any_number_of_threads(isa: str):
    rows = len(FILTERS) + 1
    logits = make_logits(rows, 3000, seed=3)
    parts = [make_draws([0.37], **filters) for filters in FILTERS.values()]
    parts.append(make_draws([0.37], temperature=0.0))
    draws = Draws(
        *(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Draws))
    )
    ids = np.full(rows, 5, np.int32)
    order = np.random.default_rng(0).permutation(rows)
    shuffled = Draws(*(getattr(draws, field.name)[order] for field in fields(Draws)))
    with using(isa, num_threads=1):
        together = compiled.sample(logits, draws)
        probabilities = compiled.logprobs(logits, np.arange(rows), ids, 3)
        alone = [compiled.sample(logits[row : row + 1], parts[row])[0] for row in range(rows)]
    with using(isa, num_threads=2):
        assert np.array_equal(compiled.sample(logits, draws), together)
        assert np.array_equal(compiled.sample(logits[order], shuffled), together[order])
        again = compiled.logprobs(logits, order, ids, 3)
    assert alone == together.tolist()
    assert np.array_equal(again.own, probabilities.own[order])
    assert np.array_equal(again.top, probabilities.top[order])


@pytest.mark.skipif("avx512" not in ISAS, reason="needs both levels")
@pytest.mark.parametrize("filters", FILTERS.values(), ids=FILTERS)
def test_avx2_and_avx512_draw_alike(filters: dict[str, Any]):
    logits = make_logits(1, 3001, scale=3.0)[0]
    numbers = np.random.default_rng(0).random(300)
    with using("avx2"):
        narrow = draw_at(logits, numbers, **filters)
        sums = compiled.logprobs(logits[None], np.zeros(1, np.int64), np.ones(1, np.int32), 2)
    with using("avx512"):
        assert draw_at(logits, numbers, **filters) == narrow
        wide = compiled.logprobs(logits[None], np.zeros(1, np.int64), np.ones(1, np.int32), 2)
    assert wide.own[0] == sums.own[0]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
@pytest.mark.parametrize("num_top", [0, 1, 5, 20])
def test_logprobs_are_the_references(isa: str, vocab_size: int, num_top: int):
    logits = make_logits(6, vocab_size, scale=4.0)
    rows = np.array([5, 0, 3, 3, 1])
    ids = np.array([0, vocab_size - 1, vocab_size // 2, 0, logits[1].argmax()], np.int32)
    expected = sampling_reference.logprobs(logits, rows, ids, num_top)
    with using(isa, num_threads=2):
        actual = compiled.logprobs(logits, rows, ids, num_top)
    assert np.array_equal(actual.ranks, expected.ranks)
    assert np.array_equal(actual.top_ids, expected.top_ids)
    np.testing.assert_allclose(actual.own, expected.own, rtol=0, atol=4e-6)
    np.testing.assert_allclose(actual.top, expected.top, rtol=0, atol=4e-6)


@pytest.mark.parametrize("isa", ISAS)
def test_equal_logits_rank_by_id(isa: str):
    logits = np.zeros((2, 600), np.float32)
    logits[0, 1::2] = 1.0
    logits[1, 10:] = -0.0
    logits[1, 500] = -1.0
    rows = np.array([0, 0, 0, 1, 1, 1])
    ids = np.array([1, 599, 2, 0, 20, 500], np.int32)
    with using(isa):
        result = compiled.logprobs(logits, rows, ids, 4)
    assert result.ranks.tolist() == [1, 300, 302, 1, 21, 600]
    assert result.top_ids[0].tolist() == [1, 3, 5, 7]
    assert result.top_ids[3].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("isa", ISAS)
def test_logprobs_of_a_row_without_numbers_are_none(isa: str):
    logits = make_logits(3, 300)
    logits[1, 299] = np.nan
    logits[2, 4] = -np.inf
    with using(isa):
        ids = np.array([4, 4, 4], np.int32)
        result = compiled.logprobs(logits, np.arange(3), ids, 2)
    assert np.isnan(result.own).tolist() == [False, True, False]
    assert np.isnan(result.top[1]).all()
    assert (result.own[2], result.ranks[2]) == (-np.inf, 300)


def test_rows_may_lie_apart():
    wide = make_logits(4, 1000)
    logits = wide[:, :300]
    draws = make_draws([0.1, 0.4, 0.7, 0.9], top_p=0.9)
    packed = np.ascontiguousarray(logits)
    assert np.array_equal(compiled.sample(logits, draws), compiled.sample(packed, draws))


def test_no_rows_give_nothing():
    logits = np.empty((0, 300), np.float32)
    assert compiled.greedy(logits).shape == (0,)
    assert compiled.sample(logits, make_draws([])).shape == (0,)


def wrong(**changes: Any) -> Draws:
    return replace(make_draws([0.5, 0.5]), **changes)


REFUSED = {
    "logits must be float32, got float64": lambda: compiled.greedy(np.zeros((2, 5))),
    "logits must be contiguous from dimension 1": lambda: compiled.greedy(make_logits(5, 2).T),
    "logits must have from 1 to": lambda: compiled.greedy(make_logits(2, 0)),
    r"top_k must have shape \[2\], got \[3\]": lambda: compiled.sample(
        make_logits(2, 5), wrong(top_k=np.zeros(3, np.int32))
    ),
    "number must be float64, got float32": lambda: compiled.sample(
        make_logits(2, 5), wrong(number=np.zeros(2, np.float32))
    ),
    r"rows\[1\] must be from 0 to 1, got 2": lambda: compiled.logprobs(
        make_logits(2, 5), np.array([0, 2]), np.zeros(2, np.int32), 1
    ),
    r"token_ids\[0\] must be from 0 to 4, got -1": lambda: compiled.logprobs(
        make_logits(2, 5), np.array([0]), np.array([-1], np.int32), 1
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_wrong_operands_are_refused(message: str):
    with pytest.raises((TypeError, ValueError), match=message):
        REFUSED[message]()
