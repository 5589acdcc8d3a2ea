"""One step's arrays, built with numpy at once: no Python per token.

A step's tokens lie one sequence behind the other:

    seq 0                     seq 1      seq 2
    | t t t t t t t t t t t t | t        | t t t t t t |
    ^ query_start_loc[0]      ^ [1]      ^ [2]         ^ [3]
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtp_serve.engine.output import Int32Array, SchedulerOutput
from rtp_serve.models.model import ModelInputs
from rtp_serve.ops import AttentionMetadata
from rtp_serve.worker.sequence_table import IntArray, SequenceTable


@dataclass(frozen=True, slots=True)
class InputBatch:
    """What one forward pass reads, on the host."""

    # [num_seqs], int64: each sequence's row in the SequenceTable
    rows: IntArray
    # [num_tokens], int64
    token_ids: IntArray
    # [num_tokens], int64: place in the sequence, from 0
    positions: IntArray
    # [num_tokens], int64: where the token's KV goes, block_id * block_size + offset
    slots: IntArray
    # [num_seqs + 1], int32
    query_start_loc: Int32Array
    # [num_seqs], int32: KV length including this step
    seq_lens: Int32Array
    # [num_seqs, max_blocks of the step], int32
    block_tables: Int32Array
    # [num_sampled], int64: index of the last token of each sequence that gets a new one
    last_token: IntArray
    # [num_sampled], int64: those sequences' rows
    sampled_rows: IntArray

    def model_inputs(self) -> ModelInputs:
        """What the model reads of it."""
        metadata: AttentionMetadata[NDArray[Any]] = AttentionMetadata(
            slots=self.slots,
            block_tables=self.block_tables,
            query_start_loc=self.query_start_loc,
            seq_lens=self.seq_lens,
        )
        return ModelInputs(self.token_ids, self.positions, metadata)


def build_input_batch(
    table: SequenceTable, rows: IntArray, scheduled: SchedulerOutput
) -> InputBatch:
    """Gather the scheduled tokens of `rows`."""
    num_scheduled = scheduled.num_scheduled_tokens
    query_start_loc = np.zeros(len(rows) + 1, np.int32)
    np.cumsum(num_scheduled, out=query_start_loc[1:])
    seq_lens = (scheduled.num_computed_tokens + num_scheduled).astype(np.int32)

    if query_start_loc[-1] == len(rows):
        # One token each, as in most steps.
        row_of_token, positions = rows, scheduled.num_computed_tokens.astype(np.int64)
    else:
        row_of_token = np.repeat(rows, num_scheduled)
        first_position = scheduled.num_computed_tokens - query_start_loc[:-1]
        token = np.arange(query_start_loc[-1], dtype=np.int64)
        positions = token + np.repeat(first_position, num_scheduled)
    num_blocks = -(-int(seq_lens.max(initial=0)) // table.block_size)
    blocks, offsets = np.divmod(positions, table.block_size)
    slots = table.block_tables[row_of_token, blocks] * np.int64(table.block_size) + offsets
    return InputBatch(
        rows=rows,
        token_ids=table.token_ids[row_of_token, positions].astype(np.int64),
        positions=positions,
        slots=slots,
        query_start_loc=query_start_loc,
        seq_lens=seq_lens,
        block_tables=table.block_tables[rows, :num_blocks],
        last_token=(query_start_loc[1:] - 1)[scheduled.is_sampled].astype(np.int64),
        sampled_rows=rows[scheduled.is_sampled],
    )
