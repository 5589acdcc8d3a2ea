"""Logits → tokens.

A row's token is a function of that row and of its sequence alone: adjusting, filtering and drawing
work on one row at a time, and the random number comes from (seed, position). Rows pay only for
what they ask: plain greedy ones for nothing but the largest logit.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rtp_serve.engine.output import Int32Array
from rtp_serve.engine.request import TokenLogprobs
from rtp_serve.worker.logits import Candidates, FloatRow, adjust, candidates, has_adjustments
from rtp_serve.worker.logprobs import token_logprobs
from rtp_serve.worker.randomness import uniforms
from rtp_serve.worker.sequence_table import TrackedSequence

NO_TOKEN = -1
NOT_FINITE = "the model's logits are not finite numbers"
_SEED_MASK = (1 << 64) - 1
_SPAN = 256
"""Weights summed at a time; only the span that holds the drawn number is looked at closely."""


@dataclass(frozen=True, slots=True)
class SampledRow:
    """A sequence about to get its next token."""

    sequence: TrackedSequence
    # [num_tokens], int32: prompt and output so far
    token_ids: Int32Array


@dataclass(frozen=True, slots=True)
class Sampled:
    """One entry a row."""

    # [num_rows], int32; NO_TOKEN where there is an error
    token_ids: Int32Array
    logprobs: tuple[TokenLogprobs | None, ...]
    # (row, what went wrong)
    errors: tuple[tuple[int, str], ...]


def sample(logits: NDArray[np.float32], rows: Sequence[SampledRow]) -> Sampled:
    """Choose a token for each row of logits [num_rows, vocab_size], which are left as they are.

    A row without a finite largest logit has an error and no token.
    """
    token_ids = logits.argmax(axis=-1).astype(np.int32)
    is_finite = np.isfinite(logits[np.arange(len(rows)), token_ids])
    drawn = _draw_numbers(rows)
    logprobs: list[TokenLogprobs | None] = [None] * len(rows)
    errors: list[tuple[int, str]] = []
    for index, row in enumerate(rows):
        sampling = row.sequence.sampling
        if not is_finite[index]:
            token_ids[index] = NO_TOKEN
            errors.append((index, NOT_FINITE))
            continue
        if index in drawn or has_adjustments(row.sequence):
            token_ids[index] = _choose(logits[index], row, drawn.get(index, 0.0))
        if token_ids[index] == NO_TOKEN:
            errors.append((index, "no token is left to choose: all are barred"))
        elif sampling.logprobs is not None:
            logprobs[index] = token_logprobs(
                logits[index], int(token_ids[index]), sampling.logprobs
            )
    return Sampled(token_ids, tuple(logprobs), tuple(errors))


def _draw_numbers(rows: Sequence[SampledRow]) -> dict[int, float]:
    """Index of each row that is not greedy → its number in [0, 1)."""
    random = [index for index, row in enumerate(rows) if not row.sequence.sampling.is_greedy]
    if not random:
        return {}
    seeds = np.array([rows[index].sequence.seed & _SEED_MASK for index in random], np.uint64)
    positions = np.array([len(rows[index].token_ids) for index in random], np.int64)
    return dict(zip(random, uniforms(seeds, positions).tolist(), strict=True))


def _choose(logits: FloatRow, row: SampledRow, number: float) -> int:
    sequence = row.sequence
    if has_adjustments(sequence):
        logits = adjust(logits, sequence, row.token_ids)
        if not np.isfinite(logits.max()):
            return NO_TOKEN
    if sequence.sampling.is_greedy:
        return int(logits.argmax())
    return draw(candidates(logits, sequence.sampling), number)


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
