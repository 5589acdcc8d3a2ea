"""One step's arrays, built with numpy at once: no Python per token.

A step's tokens lie one sequence behind the other:

    seq 0                     seq 1      seq 2
    | t t t t t t t t t t t t | t        | t t t t t t |
    ^ query_start_loc[0]      ^ [1]      ^ [2]         ^ [3]

Most steps are decodes of the sequences that decoded in the step before, one token each: these keep
what cannot have changed.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtp_serve.engine.output import Int32Array, SchedulerOutput
from rtp_serve.models.model import ModelInputs
from rtp_serve.ops import AttentionMetadata
from rtp_serve.worker.sampling_columns import RowSampling
from rtp_serve.worker.sequence_table import IntArray, SequenceTable


@dataclass(frozen=True, slots=True)
class InputBatch:
    """What a step reads, on the host."""

    # [num_seqs], int64: each sequence's row in the SequenceTable
    rows: IntArray
    inputs: ModelInputs
    # [num_sampled], int64: index of the last token of each sequence that gets a new one
    last_token: IntArray
    # of those sequences
    sampling: RowSampling


@dataclass(slots=True)
class _Decodes:
    """What steps share in which the same sequences decode."""

    rows: IntArray
    query_start_loc: Int32Array
    last_token: IntArray
    sampling: RowSampling
    # of the last step
    block_tables: Int32Array


class BatchBuilder:
    """Makes batches of the sequences in a table."""

    def __init__(self, table: SequenceTable) -> None:
        self._table = table
        self._decodes: _Decodes | None = None

    def build(self, rows: IntArray, scheduled: SchedulerOutput) -> InputBatch:
        """Gather the scheduled tokens of `rows`, which the table gave for this step."""
        if scheduled.is_decode:
            return self._decode_batch(rows, scheduled)
        self._decodes = None
        return self._mixed_batch(rows, scheduled)

    def _decode_batch(self, rows: IntArray, scheduled: SchedulerOutput) -> InputBatch:
        table, decodes = self._table, self._decodes
        num_blocks = max(scheduled.num_computed_tokens) // table.block_size + 1
        if decodes is None or decodes.rows is not rows:
            decodes = self._decodes = _Decodes(
                rows,
                query_start_loc=np.arange(len(rows) + 1, dtype=np.int32),
                last_token=np.arange(len(rows)),
                sampling=table.sampling.of(rows),
                block_tables=table.block_tables[rows, :num_blocks],
            )
        elif any(scheduled.new_block_ids) or decodes.block_tables.shape[1] != num_blocks:
            decodes.block_tables = table.block_tables[rows, :num_blocks]
        positions = np.array(scheduled.num_computed_tokens, np.int64)
        inputs = self._inputs(
            rows,
            positions,
            decodes.block_tables,
            decodes.query_start_loc,
            seq_lens=(positions + 1).astype(np.int32),
        )
        return InputBatch(rows, inputs, decodes.last_token, decodes.sampling)

    def _mixed_batch(self, rows: IntArray, scheduled: SchedulerOutput) -> InputBatch:
        computed = np.array(scheduled.num_computed_tokens, np.int32)
        num_scheduled = np.array(scheduled.num_scheduled_tokens, np.int32)
        is_sampled = np.array(scheduled.is_sampled)
        query_start_loc = np.zeros(len(rows) + 1, np.int32)
        np.cumsum(num_scheduled, out=query_start_loc[1:])
        seq_lens = computed + num_scheduled
        num_blocks = -(-int(seq_lens.max()) // self._table.block_size)

        row_of_token = np.repeat(rows, num_scheduled)
        token = np.arange(query_start_loc[-1], dtype=np.int64)
        positions = token + np.repeat(computed - query_start_loc[:-1], num_scheduled)
        block_tables = self._table.block_tables[rows, :num_blocks]
        inputs = self._inputs(row_of_token, positions, block_tables, query_start_loc, seq_lens)
        last_token = (query_start_loc[1:] - 1)[is_sampled].astype(np.int64)
        return InputBatch(rows, inputs, last_token, self._table.sampling.of(rows[is_sampled]))

    def _inputs(
        self,
        row_of_token: IntArray,
        positions: IntArray,
        block_tables: Int32Array,
        query_start_loc: Int32Array,
        seq_lens: Int32Array,
    ) -> ModelInputs:
        table = self._table
        blocks, offsets = np.divmod(positions, table.block_size)
        block_ids = table.block_tables[row_of_token, blocks]
        metadata: AttentionMetadata[NDArray[Any]] = AttentionMetadata(
            # block_id * block_size + offset
            block_ids * np.int64(table.block_size) + offsets,
            block_tables,
            query_start_loc,
            seq_lens,
        )
        token_ids = table.token_ids[row_of_token, positions].astype(np.int64)
        return ModelInputs(token_ids, positions, metadata)
