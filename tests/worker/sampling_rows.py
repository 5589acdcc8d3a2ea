"""Sequences about to get their next token, and the sampler over a table of them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from rtp_serve.engine.output import NewSequence, SchedulerOutput
from rtp_serve.engine.sampling_params import SamplingParams
from rtp_serve.worker.sampler import Sampled, sample
from rtp_serve.worker.sequence_table import SequenceTable


def make_row(
    token_ids: tuple[int, ...] = (1, 2, 3),
    *,
    num_prompt_tokens: int | None = None,
    seed: int = 0,
    barred: tuple[int, ...] = (),
    **sampling: Any,
) -> NewSequence:
    tokens = np.array(token_ids, np.int32)
    num_prompt_tokens = num_prompt_tokens or len(token_ids)
    params = SamplingParams(**sampling)
    return NewSequence(0, tokens, num_prompt_tokens, (), params, seed, barred)


def sample_rows(logits: np.ndarray, rows: Sequence[NewSequence]) -> Sampled:
    """One step of a table that has just got these sequences."""
    num_rows, longest = len(rows), max(len(row.token_ids) for row in rows)
    table = SequenceTable(num_rows, longest, block_size=16)
    step = SchedulerOutput(
        step=1,
        seq_ids=tuple(range(num_rows)),
        num_computed_tokens=(0,) * num_rows,
        num_scheduled_tokens=tuple(len(row.token_ids) for row in rows),
        is_sampled=(True,) * num_rows,
        new_block_ids=((),) * num_rows,
        new_seqs=tuple(replace(row, seq_id=seq_id) for seq_id, row in enumerate(rows)),
    )
    return sample(logits, table, table.sampling.of(table.apply(step)))
