"""What a request asks to be done to one row of logits before a token is chosen.

Everything works on one row, [vocab_size] fp32, in place, and on the tokens that are named or were
seen alone, so a row costs by its request and not by the vocabulary.
Order: bias, barred tokens, bad words, penalties; then what `rtp_serve.ops.draws` says.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rtp_serve.engine.output import Int32Array
from rtp_serve.engine.sampling_params import SamplingParams
from rtp_serve.worker.tracked_sequence import TrackedSequence

FloatRow = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Replaced:
    """Logits as they were before an adjustment."""

    # [n], in any order and perhaps more than once
    token_ids: NDArray[np.integer]
    # [n], fp32
    logits: FloatRow

    def restore(self, logits: FloatRow) -> None:
        logits[self.token_ids] = self.logits


def adjust(logits: FloatRow, sequence: TrackedSequence, token_ids: Int32Array) -> Replaced:
    """In place. `token_ids` is prompt and output so far. A logit that is no number stays none."""
    sampling, output_ids = sequence.sampling, token_ids[sequence.num_prompt_tokens :]
    is_waiting = len(output_ids) < sampling.min_tokens
    barred = list(sequence.barred_token_ids) if is_waiting else []
    barred += _ending_words(sampling.bad_words, token_ids)
    named = np.array([*sampling.logit_bias, *barred], np.int32)
    seen = token_ids if sampling.repetition_penalty != 1.0 else output_ids
    touched = np.concatenate((named, seen)) if sampling.has_penalties else named
    replaced = Replaced(touched, logits[touched])

    for token_id, bias in sampling.logit_bias.items():
        logits[token_id] += bias
    if barred:
        with np.errstate(invalid="ignore"):
            logits[barred] -= np.inf
    _penalise(logits, sampling, token_ids, output_ids)
    return replaced


def _ending_words(words: tuple[tuple[int, ...], ...], token_ids: Int32Array) -> list[int]:
    """The last tokens of the words whose other tokens have just come."""
    return [word[-1] for word in words if _ends_with(token_ids, word[:-1])]


def _ends_with(token_ids: Int32Array, suffix: tuple[int, ...]) -> bool:
    if len(suffix) > len(token_ids):
        return False
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
        generated, counts = np.unique(output_ids, return_counts=True)
        logits[generated] -= np.float32(sampling.frequency_penalty) * counts.astype(np.float32)
        logits[generated] -= np.float32(sampling.presence_penalty)
