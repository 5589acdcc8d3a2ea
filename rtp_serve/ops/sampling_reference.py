"""Sampling in plain numpy, row by row: what the kernels are tested against."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rtp_serve.ops.draws import MIN_TEMPERATURE, NO_TOKEN, Draws, Logits, Logprobs
from rtp_serve.ops.philox import uniforms

__all__ = ["greedy", "logprobs", "sample", "uniforms"]

FloatRow = NDArray[np.float32]

_SPAN = 256
"""Weights summed at a time; only the span that holds the drawn number is looked at closely."""


def greedy(logits: Logits) -> NDArray[np.int32]:
    token_ids = logits.argmax(axis=-1).astype(np.int32)
    largest = np.take_along_axis(logits, token_ids[:, None], axis=-1)[:, 0]
    token_ids[~np.isfinite(largest)] = NO_TOKEN
    return token_ids


def sample(logits: Logits, draws: Draws) -> NDArray[np.int32]:
    token_ids = greedy(logits)
    for row in np.flatnonzero((draws.temperature > 0) & (token_ids != NO_TOKEN)).tolist():
        token_ids[row] = draw(candidates(logits[row], draws, row), draws.number[row])
    return token_ids


@dataclass(frozen=True, slots=True)
class Candidates:
    """The tokens that may still be chosen, by ascending id."""

    # [num_candidates], int64
    token_ids: NDArray[np.int64]
    # [num_candidates], float32: probabilities up to a common factor; the largest is 1
    weights: FloatRow

    def at_least(self, weight: float) -> "Candidates":
        """Those of this weight or more."""
        chosen = np.flatnonzero(self.weights >= weight)
        return Candidates(self.token_ids[chosen], self.weights[chosen])


def candidates(logits: FloatRow, draws: Draws, row: int) -> Candidates:
    """What the filters of `draws[row]` leave of logits [vocab_size]."""
    top_k, top_p = int(draws.top_k[row]), float(draws.top_p[row])
    token_ids = np.arange(len(logits))
    if 0 < top_k < len(logits):
        place = len(logits) - top_k
        token_ids = np.flatnonzero(logits >= np.partition(logits, place)[place])
    divisor = max(draws.temperature[row], np.float32(MIN_TEMPERATURE))
    weights = np.exp((logits[token_ids] - logits.max()) / divisor)
    kept = Candidates(token_ids, weights).at_least(draws.min_p[row])
    return _within_top_p(kept, top_p) if top_p < 1.0 else kept


def _within_top_p(kept: Candidates, top_p: float) -> Candidates:
    """All candidates lighter than (1 - top_p) of the average hold less than 1 - top_p together, so
    the lightest that is kept is among the others, and only those are sorted.
    """
    total = float(kept.weights.sum(dtype=np.float64))
    heavy = kept.at_least((1.0 - top_p) * total / len(kept.weights))
    descending = np.sort(heavy.weights)[::-1]
    reached = np.cumsum(descending, dtype=np.float64)
    # Rounding may keep the sum just below its target: then all of them are needed.
    place = min(int(np.searchsorted(reached, top_p * total)), len(descending) - 1)
    return heavy.at_least(float(descending[place]))


def draw(kept: Candidates, number: float) -> int:
    """The token at `number` of the way, in [0, 1), through the candidates' weights."""
    starts = np.arange(0, len(kept.weights), _SPAN)
    upto = np.cumsum(np.add.reduceat(kept.weights, starts), dtype=np.float64)
    target = min(number * upto[-1], np.nextafter(upto[-1], 0.0))
    span = int(np.searchsorted(upto, target, side="right"))
    within = kept.weights[starts[span] : starts[span] + _SPAN]
    rest = target - (upto[span - 1] if span else 0.0)
    offset = int(np.searchsorted(np.cumsum(within, dtype=np.float64), rest, side="right"))
    # Both sums of a span are rounded, so the target may lie just past the second.
    offset = min(offset, int(np.flatnonzero(within)[-1]))
    return int(kept.token_ids[starts[span] + offset])


def logprobs(
    logits: Logits, rows: NDArray[np.int64], token_ids: NDArray[np.int32], num_top: int
) -> Logprobs:
    num_top = min(num_top, logits.shape[1])
    own, top = np.full(len(rows), np.nan), np.full((len(rows), num_top), np.nan)
    ranks, top_ids = np.zeros(len(rows), np.int32), np.zeros((len(rows), num_top), np.int32)
    for i, (row, token_id) in enumerate(zip(rows, token_ids, strict=True)):
        values = logits[row]
        largest = float(values.max())
        if not math.isfinite(largest):
            continue
        normaliser = largest + math.log(np.exp(values - values.max()).sum(dtype=np.float64))
        own[i] = float(values[token_id]) - normaliser
        is_above, is_equal = values > values[token_id], values == values[token_id]
        ranks[i] = 1 + is_above.sum() + is_equal[:token_id].sum()
        top_ids[i] = np.argsort(-values, kind="stable")[:num_top]
        top[i] = values[top_ids[i]].astype(np.float64) - normaliser
    return Logprobs(own, ranks, top_ids, top)
