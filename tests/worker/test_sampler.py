"""Choosing tokens: distributions, parameters, reproducibility, failures."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from rtp_serve.engine.output import NewSequence
from rtp_serve.ops.dispatch import compiled_ops
from rtp_serve.ops.draws import NO_TOKEN
from tests.worker.sampling_rows import make_row, sample_rows

VOCAB_SIZE = 3000


@pytest.fixture(autouse=True, params=["compiled", "reference"])
def _implementation(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    monkeypatch.setenv("RTP_SERVE_OPS", request.param)
    compiled_ops.cache_clear()
    yield
    compiled_ops.cache_clear()


def make_logits(num_rows: int = 1, seed: int = 0, scale: float = 2.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (scale * rng.standard_normal((num_rows, VOCAB_SIZE))).astype(np.float32)


def choose(logits: np.ndarray, row: NewSequence) -> int:
    return int(sample_rows(logits[None], [row]).token_ids[0])


def exact_probabilities(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    weights = np.exp((logits.astype(np.float64) - logits.max()) / temperature)
    return weights / weights.sum()


def observed(logits: np.ndarray, num_draws: int, **sampling: Any) -> np.ndarray:
    """Counts per token over as many seeds."""
    rows = [make_row(seed=seed, **sampling) for seed in range(num_draws)]
    token_ids = sample_rows(np.tile(logits, (num_draws, 1)), rows).token_ids
    return np.bincount(token_ids, minlength=len(logits))


def chi_square_exceeds(counts: np.ndarray, probabilities: np.ndarray) -> bool:
    """Whether the counts are unlikely (p < 0.001) under the probabilities."""
    expected = probabilities * counts.sum()
    rare = expected < 5
    observed = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    kept = expected > 0
    assert not observed[~kept].any(), "an impossible token was drawn"
    statistic = ((observed - expected)[kept] ** 2 / expected[kept]).sum()
    freedom = kept.sum() - 1
    # Wilson and Hilferty's approximation of the 99.9 % point
    limit = freedom * (1 - 2 / (9 * freedom) + 3.09 * np.sqrt(2 / (9 * freedom))) ** 3
    return bool(statistic > limit)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_tokens_come_as_often_as_the_distribution_says(temperature: float):
    logits = make_logits()[0, :700]
    counts = observed(logits, 8000, temperature=temperature)
    assert not chi_square_exceeds(counts, exact_probabilities(logits, temperature))
    assert chi_square_exceeds(counts, exact_probabilities(logits, temperature * 1.3))


@pytest.mark.parametrize(
    "sampling",
    [{"top_k": 20}, {"top_p": 0.7}, {"min_p": 0.1}, {"top_k": 40, "top_p": 0.6, "min_p": 0.02}],
    ids=str,
)
def test_filters_keep_what_they_define_and_renormalise(sampling: dict[str, Any]):
    logits = make_logits()[0, :700]
    probabilities = exact_probabilities(logits)
    probabilities[probabilities < sampling.get("min_p", 0) * probabilities.max()] = 0
    order = np.argsort(-probabilities)
    probabilities[order[sampling.get("top_k", 700) :]] = 0
    probabilities /= probabilities.sum()
    before = np.cumsum(probabilities[order]) - probabilities[order]
    probabilities[order[before >= sampling.get("top_p", 1.1)]] = 0
    probabilities /= probabilities.sum()
    assert not chi_square_exceeds(observed(logits, 4000, **sampling), probabilities)


def test_greedy_takes_the_lowest_id_among_equals():
    logits = np.array([0, 5, 1, 5], np.float32)
    assert choose(logits, make_row(temperature=0)) == 1
    assert choose(logits, make_row(temperature=0, logit_bias={2: 4.0})) == 1


@pytest.mark.parametrize("temperature", [1e-5, 1e-30, 1e-60])
def test_a_tiny_temperature_is_greedy(temperature: float):
    logits = make_logits()[0]
    assert choose(logits, make_row(temperature=temperature)) == logits.argmax()


MIXED = [
    {"temperature": 0},
    {"temperature": 0, "repetition_penalty": 1.3},
    {"temperature": 1.0},
    {"temperature": 0.7, "top_p": 0.9},
    {"temperature": 1.5, "top_k": 50, "presence_penalty": 0.5},
    {"temperature": 1.0, "min_p": 0.05, "logprobs": 3},
    {"temperature": 0, "logprobs": 2},
    {"temperature": 1.2, "frequency_penalty": 0.3, "logit_bias": {7: 3.0}},
]


def test_a_row_is_the_same_in_any_batch():
    logits = make_logits(len(MIXED))
    rows = [make_row(seed=seed, **sampling) for seed, sampling in enumerate(MIXED)]
    together = sample_rows(logits, rows)
    order = np.random.default_rng(1).permutation(len(MIXED))
    shuffled = sample_rows(logits[order], [rows[index] for index in order])
    for place, index in enumerate(order):
        alone = sample_rows(logits[index : index + 1], [rows[index]])
        assert alone.token_ids[0] == together.token_ids[index] == shuffled.token_ids[place]
        assert (alone.logprobs or (None,))[0] == together.logprobs[index]
        assert shuffled.logprobs[place] == together.logprobs[index]


def test_logits_are_left_as_they_are():
    logits = make_logits(len(MIXED))
    before = logits.copy()
    sample_rows(logits, [make_row(seed=1, **sampling) for sampling in MIXED])
    assert np.array_equal(logits, before)


def test_a_seed_and_position_decide_the_draw():
    logits = make_logits()[0]
    draws = {seed: choose(logits, make_row(seed=seed)) for seed in range(20)}
    assert draws == {seed: choose(logits, make_row(seed=seed)) for seed in range(20)}
    assert len(set(draws.values())) > 10
    assert len({choose(logits, make_row((1,) * length)) for length in range(1, 21)}) > 10
    # Only the number of tokens matters, not which; a negative seed is as good as any.
    assert choose(logits, make_row((9, 9, 9))) == draws[0]
    assert choose(logits, make_row(seed=-1)) == choose(logits, make_row(seed=(1 << 64) - 1))


def test_logprobs_are_of_the_model_not_of_the_request():
    logits = make_logits()[0]
    row = make_row(temperature=3.0, top_k=5, repetition_penalty=2.0, seed=3, logprobs=4)
    entry = sample_rows(logits[None], [row]).logprobs[0]
    assert entry is not None
    expected = np.log(exact_probabilities(logits))
    assert entry.logprob == pytest.approx(expected[entry.token_id], abs=1e-5)
    assert entry.rank == 1 + (logits > logits[entry.token_id]).sum()
    best = np.argsort(-expected, kind="stable")[:4]
    assert [token_id for token_id, _ in entry.top] == best.tolist()
    assert [value for _, value in entry.top] == pytest.approx(expected[best].tolist(), abs=1e-5)


def test_top_logprobs_order_equals_by_id():
    logits = np.array([1, 2, 1, 2, 1], np.float32)
    entry = sample_rows(logits[None], [make_row(temperature=0, logprobs=3)]).logprobs[0]
    assert entry is not None
    assert (entry.token_id, entry.rank) == (1, 1)
    assert [token_id for token_id, _ in entry.top] == [1, 3, 0]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("sampling", MIXED, ids=str)
def test_a_row_without_numbers_fails_alone(bad: float, sampling: dict[str, Any]):
    logits = make_logits(3)
    row = make_row(**sampling)
    expected = sample_rows(logits, [row] * 3)
    logits[1, 17] = bad
    sampled = sample_rows(logits, [row] * 3)
    assert sampled.token_ids[1] == NO_TOKEN
    assert [index for index, _ in sampled.errors] == [1]
    assert sampled.token_ids[[0, 2]].tolist() == expected.token_ids[[0, 2]].tolist()


def test_a_row_with_everything_barred_fails_alone():
    logits = np.zeros((2, 2), np.float32)
    barred = make_row(temperature=0, bad_words=((0,), (1,)))
    sampled = sample_rows(logits, [barred, make_row(temperature=0)])
    assert sampled.token_ids.tolist() == [NO_TOKEN, 0]
    assert "barred" in sampled.errors[0][1]


def test_nobody_asking_for_logprobs_gives_none():
    assert sample_rows(make_logits(2), [make_row(), make_row(temperature=0)]).logprobs == ()


def test_a_failed_row_has_no_logprobs():
    logits = make_logits(2)
    logits[0, 5] = np.nan
    sampled = sample_rows(logits, [make_row(logprobs=1), make_row(logprobs=1)])
    assert sampled.logprobs[0] is None
    assert sampled.logprobs[1] is not None


def test_each_row_gets_as_many_alternatives_as_it_asked_for():
    logits = make_logits(3)
    entries = sample_rows(logits, [make_row(logprobs=count) for count in (0, 20, 3)]).logprobs
    assert [len(entry.top) for entry in entries if entry] == [0, 20, 3]


def test_a_barred_token_without_a_number_is_an_error_still():
    logits = make_logits()
    logits[0, 7] = np.nan
    sampled = sample_rows(logits, [make_row(bad_words=((7,),))])
    assert sampled.token_ids.tolist() == [NO_TOKEN]
    assert "not finite" in sampled.errors[0][1]


def test_barred_tokens_are_never_drawn():
    logits = make_logits(400)
    rows = [make_row(seed=seed, min_tokens=1, barred=tuple(range(2990))) for seed in range(400)]
    drawn = set(sample_rows(logits, rows).token_ids.tolist())
    assert drawn == set(range(2990, 3000))
