"""What crosses the planes: SchedulerOutput down, ModelOutput up. Numpy and plain Python only.

The worker keeps each sequence's tokens, block table and sampling state from the step that brings
it as a NewSequence until it is named in `finished_seq_ids`; later steps carry differences. A token
that the worker samples is appended to its own copy at once, so the scheduler may run ahead.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rtp_serve.engine.request import TokenLogprobs
from rtp_serve.engine.sampling_params import SamplingParams

Int32Array = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class NewSequence:
    """A sequence the worker has not seen, or has forgotten since its preemption."""

    seq_id: int
    token_ids: Int32Array
    """[num_tokens], int32: prompt, and output so far if it was preempted."""

    num_prompt_tokens: int
    block_ids: tuple[int, ...]
    """The blocks it holds before this step's `new_block_ids`."""

    sampling: SamplingParams
    seed: int
    """64-bit; the random number of a position depends on (seed, position) alone."""

    barred_token_ids: tuple[int, ...] = ()
    """Tokens that must not be sampled before `min_tokens` are out (the stop tokens)."""

    version: int = 0
    """Number of the model version that computes it."""


@dataclass(frozen=True, slots=True)
class SchedulerOutput:
    """One step. Entry i of every tuple of [num_seqs] is one sequence, in batch order."""

    step: int
    seq_ids: tuple[int, ...]
    num_computed_tokens: tuple[int, ...]
    """[num_seqs]: tokens whose KV is in the cache before this step."""

    num_scheduled_tokens: tuple[int, ...]
    """[num_seqs], ≥ 1: tokens to compute in this step."""

    is_sampled: tuple[bool, ...]
    """[num_seqs]: the last scheduled token is the sequence's last, so a new one is sampled."""

    new_block_ids: tuple[tuple[int, ...], ...]
    """[num_seqs]: blocks appended to the sequence's table before the step."""

    new_seqs: tuple[NewSequence, ...] = ()
    finished_seq_ids: tuple[int, ...] = ()
    """Forget these first: finished, aborted or preempted since the last step."""

    block_copies: tuple[tuple[int, int], ...] = ()
    """(source, target): blocks to be copied, in order, before anything of the step is computed."""

    layers_per_report: int = 0
    """After each so many layers somebody is told that their keys and values are written; 0: not."""

    @property
    def num_tokens(self) -> int:
        return sum(self.num_scheduled_tokens)

    @property
    def is_decode(self) -> bool:
        """Every sequence computes one token and gets one."""
        return self.num_tokens == len(self.seq_ids) and all(self.is_sampled)


@dataclass(frozen=True, slots=True)
class ExpertLoad:
    """How a sparse layer's tokens were spread over its experts during a stretch of steps."""

    layer: int
    mean: float
    """Tokens of an expert."""

    largest: int
    """Of the busiest one."""


@dataclass(frozen=True, slots=True)
class ModelOutput:
    """What the model made of a step. Rows are the sequences with `is_sampled`, in batch order."""

    token_ids: Int32Array
    """[num_sampled], int32."""

    logprobs: tuple[TokenLogprobs | None, ...] = ()
    """Empty, or one entry per sampled row."""

    prompt_logprobs: tuple[tuple[int, tuple[TokenLogprobs, ...]], ...] = ()
    """(seq_id, entries for the prompt tokens that this step's chunk predicted, in order)."""

    errors: tuple[tuple[int, str], ...] = ()
    """(seq_id, what went wrong) of sequences that must end; a sampled one's token id is -1."""

    expert_loads: tuple[ExpertLoad, ...] = ()
    """Of the sparse layers, with some steps only: since the step that last had them."""
