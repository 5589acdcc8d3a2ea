"""Logits → tokens.

A row's token is a function of that row and of its sequence alone: adjusting, filtering and drawing
work on one row at a time, and the random number comes from (seed, position). Rows pay only for
what they ask: plain greedy ones for nothing but the largest logit.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rtp_serve.engine.output import Int32Array
from rtp_serve.engine.request import TokenLogprobs
from rtp_serve.ops import sampling
from rtp_serve.ops.draws import NO_TOKEN
from rtp_serve.worker.logits import Replaced, adjust
from rtp_serve.worker.logprobs import token_logprobs
from rtp_serve.worker.sampling_columns import RowSampling
from rtp_serve.worker.sequence_table import SequenceTable

NOT_FINITE = "the model's logits are not finite numbers"
ALL_BARRED = "no token is left to choose: all are barred"


@dataclass(frozen=True, slots=True)
class Sampled:
    """One entry a row."""

    # [num_rows], int32; NO_TOKEN where there is an error
    token_ids: Int32Array
    # empty if no row wants them
    logprobs: tuple[TokenLogprobs | None, ...]
    # (row, what went wrong)
    errors: tuple[tuple[int, str], ...]


def sample(logits: NDArray[np.float32], table: SequenceTable, chosen: RowSampling) -> Sampled:
    """Choose the next token of the sequences in `chosen.rows` [num_rows] of the table.

    logits [num_rows, vocab_size] must be writable; they are what they were on return. A row that
    holds NaN or whose largest logit is not finite has an error and no token.
    """
    replaced = _adjust(logits, table, chosen) if chosen.adjusted else {}
    if chosen.is_greedy:
        token_ids = sampling.greedy(logits)
    else:
        token_ids = sampling.sample(logits, chosen.draws(table.lengths(chosen.rows)))
    for index, before in replaced.items():
        before.restore(logits[index])
    return Sampled(
        token_ids,
        _logprobs(logits, table, chosen, token_ids) if chosen.asking else (),
        _errors(logits, token_ids) if NO_TOKEN in token_ids.tolist() else (),
    )


def sampled_greedily(token_ids: Int32Array) -> Sampled:
    """Of rows whose largest logits [num_rows] have these ids, and that ask for nothing else."""
    chosen = token_ids.tolist()
    if NO_TOKEN not in chosen:
        return Sampled(token_ids, (), ())
    missing = [index for index, token_id in enumerate(chosen) if token_id == NO_TOKEN]
    return Sampled(token_ids, (), tuple([(index, NOT_FINITE) for index in missing]))


def _adjust(
    logits: NDArray[np.float32], table: SequenceTable, chosen: RowSampling
) -> dict[int, Replaced]:
    """In place; index of each adjusted row → what was there."""
    rows = chosen.rows
    return {
        index: adjust(logits[index], table.tracked(rows[index]), table.tokens(rows[index]))
        for index in chosen.adjusted
    }


def _logprobs(
    logits: NDArray[np.float32], table: SequenceTable, chosen: RowSampling, token_ids: Int32Array
) -> tuple[TokenLogprobs | None, ...]:
    asking = np.array([index for index in chosen.asking if token_ids[index] != NO_TOKEN], np.int64)
    num_top = [table.tracked(row).sampling.logprobs or 0 for row in chosen.rows[asking]]
    entries = token_logprobs(logits, asking, token_ids[asking], num_top)
    by_index = dict(zip(asking.tolist(), entries, strict=True))
    return tuple(map(by_index.get, range(len(token_ids))))


def _errors(logits: NDArray[np.float32], token_ids: Int32Array) -> tuple[tuple[int, str], ...]:
    """A row whose logits are numbers lost them to what its request bars."""
    return tuple(
        (index, ALL_BARRED if np.isfinite(logits[index].max()) else NOT_FINITE)
        for index in np.flatnonzero(token_ids == NO_TOKEN).tolist()
    )
