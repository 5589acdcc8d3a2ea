"""A step of sequences that run on several versions of the model: taken apart and put together."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np

from rtp_serve.engine.output import ModelOutput, SchedulerOutput
from rtp_serve.engine.request import TokenLogprobs


@dataclass(frozen=True, slots=True)
class Share:
    """What one version computes of a step."""

    # of its sequences in the whole step, ascending
    indices: tuple[int, ...]
    scheduled: SchedulerOutput


def share_of(version: int, seq_ids: Collection[int], scheduled: SchedulerOutput) -> Share:
    """The part of a version that had the sequences `seq_ids` before this step."""
    new = tuple([each for each in scheduled.new_seqs if each.version == version])
    finished = tuple([each for each in scheduled.finished_seq_ids if each in seq_ids])
    # Preempted and admitted again: finished and new in one step.
    own = set(seq_ids) | {each.seq_id for each in new}
    indices = tuple([i for i, seq_id in enumerate(scheduled.seq_ids) if seq_id in own])
    part = replace(
        scheduled,
        seq_ids=tuple([scheduled.seq_ids[i] for i in indices]),
        num_computed_tokens=tuple([scheduled.num_computed_tokens[i] for i in indices]),
        num_scheduled_tokens=tuple([scheduled.num_scheduled_tokens[i] for i in indices]),
        is_sampled=tuple([scheduled.is_sampled[i] for i in indices]),
        new_block_ids=tuple([scheduled.new_block_ids[i] for i in indices]),
        new_seqs=new,
        finished_seq_ids=finished,
    )
    return Share(indices, part)


def join(
    scheduled: SchedulerOutput, shares: Sequence[Share], outputs: Sequence[ModelOutput]
) -> ModelOutput:
    """The outputs of all shares as if one version had computed the step."""
    rows = np.cumsum(scheduled.is_sampled) - 1
    token_ids = np.empty(sum(scheduled.is_sampled), np.int32)
    has_logprobs = any(each.logprobs for each in outputs)
    logprobs: list[TokenLogprobs | None] = [None] * len(token_ids) if has_logprobs else []
    for share, output in zip(shares, outputs, strict=True):
        own = [rows[i] for i in share.indices if scheduled.is_sampled[i]]
        token_ids[own] = output.token_ids
        for row, entry in zip(own, output.logprobs, strict=False):
            logprobs[row] = entry
    return ModelOutput(
        token_ids,
        tuple(logprobs),
        tuple(chain.from_iterable(each.prompt_logprobs for each in outputs)),
        tuple(chain.from_iterable(each.errors for each in outputs)),
        tuple(chain.from_iterable(each.expert_loads for each in outputs)),
    )
