"""What a request asks to be done to one row of logits before a token is chosen.

Everything works on one row, [vocab_size] fp32, so a token can only depend on its own sequence.
Order: bias, barred tokens, bad words, penalties; then temperature, min_p, top_k, top_p.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rtp_serve.engine.output import Int32Array
from rtp_serve.engine.sampling_params import SamplingParams
from rtp_serve.worker.sequence_table import TrackedSequence

FloatRow = NDArray[np.float32]

_MIN_TEMPERATURE = 1e-6
"""Below it, differences between fp32 logits overflow; the most likely token is already certain."""


def has_adjustments(sequence: TrackedSequence) -> bool:
    """Whether `adjust` may ever change this sequence's logits."""
    sampling = sequence.sampling
    return bool(
        sampling.has_penalties
        or sampling.logit_bias
        or sampling.bad_words
        or (sampling.min_tokens and sequence.barred_token_ids)
    )


def adjust(logits: FloatRow, sequence: TrackedSequence, token_ids: Int32Array) -> FloatRow:
    """A copy with the request's wishes in it. `token_ids` is prompt and output so far."""
    sampling, output_ids = sequence.sampling, token_ids[sequence.num_prompt_tokens :]
    adjusted = logits.copy()
    for token_id, bias in sampling.logit_bias.items():
        adjusted[token_id] += bias
    if len(output_ids) < sampling.min_tokens:
        adjusted[list(sequence.barred_token_ids)] = -np.inf
    for word in sampling.bad_words:
        prefix = word[:-1]
        if len(prefix) <= len(token_ids) and _ends_with(token_ids, prefix):
            adjusted[word[-1]] = -np.inf
    _penalise(adjusted, sampling, token_ids, output_ids)
    return adjusted


def _ends_with(token_ids: Int32Array, suffix: tuple[int, ...]) -> bool:
    return tuple(token_ids[len(token_ids) - len(suffix) :]) == suffix


def _penalise(
    logits: FloatRow, sampling: SamplingParams, token_ids: Int32Array, output_ids: Int32Array
) -> None:
    """In place. Repetition counts prompt and output, presence and frequency the output alone."""
    if sampling.repetition_penalty != 1.0:
        seen = logits[token_ids]
        penalty = np.float32(sampling.repetition_penalty)
        logits[token_ids] = np.where(seen > 0, seen / penalty, seen * penalty)
    if sampling.presence_penalty or sampling.frequency_penalty:
        counts = np.bincount(output_ids, minlength=len(logits)).astype(np.float32)
        logits -= np.float32(sampling.frequency_penalty) * counts
        logits -= np.float32(sampling.presence_penalty) * (counts > 0)


@dataclass(frozen=True, slots=True)
class Candidates:
    """The tokens that may still be chosen, by ascending id."""

    # [num_candidates], int64
    token_ids: NDArray[np.int64]
    # [num_candidates], fp32: probabilities up to a common factor; the largest is 1
    weights: FloatRow

    def at_least(self, weight: float) -> "Candidates":
        """Those of this weight or more."""
        chosen = np.flatnonzero(self.weights >= weight)
        return Candidates(self.token_ids[chosen], self.weights[chosen])


def candidates(logits: FloatRow, sampling: SamplingParams) -> Candidates:
    """Apply temperature, min_p, top_k and top_p. Equal logits stay or go together."""
    scaled = (logits - logits.max()) / np.float32(max(sampling.temperature, _MIN_TEMPERATURE))
    weights = np.exp(scaled)
    kept = Candidates(np.arange(len(weights)), weights)
    least = _least_weight(weights, sampling)
    if least > 0.0:
        kept = kept.at_least(least)
    return _within_top_p(kept, sampling.top_p) if sampling.top_p < 1.0 else kept


def _least_weight(weights: FloatRow, sampling: SamplingParams) -> float:
    """What min_p and top_k demand; 0 where they demand nothing."""
    least = float(np.float32(sampling.min_p))
    if 0 < sampling.top_k < len(weights):
        place = len(weights) - sampling.top_k
        least = max(least, float(np.partition(weights, place)[place]))
    return least


def _within_top_p(kept: Candidates, top_p: float) -> Candidates:
    """The smallest set of the most likely candidates that holds `top_p` of the weight.

    All candidates lighter than (1 - top_p) of the average weight hold less than 1 - top_p together,
    so the set's lightest one is among the others, and only those are sorted.
    """
    total = float(kept.weights.sum())
    heavy = kept.at_least((1.0 - top_p) * total / len(kept.weights))
    descending = np.sort(heavy.weights)[::-1]
    reached = np.cumsum(descending, dtype=np.float64)
    # Rounding may keep the sum just below its target: then all of them are needed.
    place = min(int(np.searchsorted(reached, top_p * total)), len(descending) - 1)
    return heavy.at_least(float(descending[place]))
