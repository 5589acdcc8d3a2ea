"""One step's arrays, built with numpy at once: no Python per token.

A step's tokens lie one sequence behind the other:

    seq 0                     seq 1      seq 2
    | t t t t t t t t t t t t | t        | t t t t t t |
    ^ query_start_loc[0]      ^ [1]      ^ [2]         ^ [3]

Most steps are decodes of the sequences that decoded in the step before: their batch is the last one
brought on by a token, in place. So a batch counts until the next one is built.
"""

from dataclasses import dataclass, replace
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
    # every sequence computes one token and gets one
    is_decode: bool


class BatchBuilder:
    """Makes batches of the sequences in a table."""

    def __init__(self, table: SequenceTable) -> None:
        self._table = table
        self._last: InputBatch | None = None
        # of its sequences
        self._num_computed_tokens: tuple[int, ...] = ()

    def build(self, rows: IntArray, scheduled: SchedulerOutput) -> InputBatch:
        """Gather the scheduled tokens of `rows`, which the table gave for this step."""
        last, is_decode = self._last, scheduled.is_decode
        if is_decode and last is not None and last.is_decode and last.rows is rows:
            is_next = scheduled.num_computed_tokens[0] == self._num_computed_tokens[0] + 1
            assert is_next, "a decode is not the one after the last"
            self._last = self._bring_on(last, scheduled.num_computed_tokens)
        else:
            self._last = self._gather(rows, scheduled, is_decode)
        self._num_computed_tokens = scheduled.num_computed_tokens
        return self._last

    def _bring_on(self, batch: InputBatch, num_computed_tokens: tuple[int, ...]) -> InputBatch:
        """By a token. Other arrays than those that change by one are made where a block begins."""
        inputs, attention = batch.inputs, batch.inputs.attention
        positions, slots, seq_lens = inputs.positions, attention.slots, attention.seq_lens
        positions += 1
        slots += 1
        seq_lens += 1
        for index, token_id in enumerate(self._table.appended(batch.rows)):
            inputs.token_ids[index] = token_id
        block_size = self._table.block_size
        if 0 not in [position % block_size for position in num_computed_tokens]:
            return batch
        slots[:] = self._slots(batch.rows, positions)
        block_tables = self._block_tables(batch.rows, max(num_computed_tokens) + 1)
        grown = replace(inputs, attention=replace(attention, block_tables=block_tables))
        return replace(batch, inputs=grown)

    def _gather(self, rows: IntArray, scheduled: SchedulerOutput, is_decode: bool) -> InputBatch:
        computed = np.array(scheduled.num_computed_tokens, np.int32)
        num_scheduled = np.array(scheduled.num_scheduled_tokens, np.int32)
        is_sampled = np.array(scheduled.is_sampled)
        query_start_loc = np.zeros(len(rows) + 1, np.int32)
        np.cumsum(num_scheduled, out=query_start_loc[1:])
        seq_lens = computed + num_scheduled

        row_of_token = np.repeat(rows, num_scheduled)
        token = np.arange(query_start_loc[-1], dtype=np.int64)
        positions = token + np.repeat(computed - query_start_loc[:-1], num_scheduled)
        token_ids = self._table.token_ids[row_of_token, positions].astype(np.int64)
        metadata: AttentionMetadata[NDArray[Any]] = AttentionMetadata(
            self._slots(row_of_token, positions),
            self._block_tables(rows, int(seq_lens.max())),
            query_start_loc,
            seq_lens,
        )
        inputs = ModelInputs(token_ids, positions, metadata)
        last_token = (query_start_loc[1:] - 1)[is_sampled].astype(np.int64)
        sampling = self._table.sampling.of(rows[is_sampled])
        return InputBatch(rows, inputs, last_token, sampling, is_decode)

    def _slots(self, row_of_token: IntArray, positions: IntArray) -> IntArray:
        """Where the tokens' KV goes: block_id * block_size + offset."""
        blocks, offsets = np.divmod(positions, self._table.block_size)
        block_ids = self._table.block_tables[row_of_token, blocks]
        slots: IntArray = block_ids * np.int64(self._table.block_size) + offsets
        return slots

    def _block_tables(self, rows: IntArray, longest: int) -> Int32Array:
        num_blocks = -(-longest // self._table.block_size)
        return self._table.block_tables[rows, :num_blocks]
