"""The worker's own copy of every running sequence: tokens, blocks and how it is sampled.

A sequence has a row from the step that brings it to the step that forgets it; rows are reused.
It does not know why sequences come and go.
"""

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from rtp_serve.engine.output import Int32Array, NewSequence, SchedulerOutput
from rtp_serve.worker.sampling_columns import SamplingColumns
from rtp_serve.worker.tracked_sequence import TrackedSequence

IntArray = NDArray[np.int64]


class SequenceTable:
    """Fixed arrays, one row a sequence."""

    def __init__(self, max_num_seqs: int, max_model_len: int, block_size: int) -> None:
        # The token sampled at the length limit is stored too.
        num_columns = max_model_len + 1
        # [max_num_seqs, max_model_len + 1], int32
        self.token_ids = np.zeros((max_num_seqs, num_columns), np.int32)
        # how many of the columns count, by row
        self._num_tokens = [0] * max_num_seqs
        # the last of them, by row, once one was appended
        self._last_token = [0] * max_num_seqs
        # [max_num_seqs, max_blocks], int32: block ids in order; 0 is the null block
        self.block_tables = np.zeros((max_num_seqs, -(-num_columns // block_size)), np.int32)
        # [max_num_seqs], int32: how many of the columns count
        self.num_blocks = np.zeros(max_num_seqs, np.int32)
        self.block_size = block_size
        self.sampling = SamplingColumns(max_num_seqs)
        self._rows: dict[int, int] = {}
        self._tracked: list[TrackedSequence | None] = [None] * max_num_seqs
        self._free_rows = list(range(max_num_seqs - 1, -1, -1))
        # The last step's sequences, and their rows.
        self._batch_ids: tuple[int, ...] = ()
        self._batch_rows: IntArray = np.empty(0, np.int64)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def seq_ids(self) -> Collection[int]:
        return self._rows.keys()

    def apply(self, scheduled: SchedulerOutput) -> IntArray:
        """Forget, admit and extend as the step says; return its rows [num_seqs], in batch order.

        The same array as for the last step says that it was of the same sequences.
        """
        for seq_id in scheduled.finished_seq_ids:
            self._forget(seq_id)
        for new in scheduled.new_seqs:
            self._admit(new)
        if scheduled.new_seqs or scheduled.seq_ids != self._batch_ids:
            self._batch_ids = scheduled.seq_ids
            self._batch_rows = np.array([self._rows[i] for i in scheduled.seq_ids], np.int64)
        if any(scheduled.new_block_ids):
            for row, block_ids in zip(self._batch_rows, scheduled.new_block_ids, strict=True):
                self._add_blocks(row, block_ids)
        return self._batch_rows

    def append(self, rows: IntArray, token_ids: Int32Array) -> None:
        """One more token for each row. A missing one (-1) becomes 0, which the model can read."""
        for row, token_id in zip(rows.tolist(), token_ids.tolist(), strict=True):
            self._last_token[row] = known = max(token_id, 0)
            self.token_ids[row, self._num_tokens[row]] = known
            self._num_tokens[row] += 1

    def appended(self, rows: IntArray) -> list[int]:
        """The token that each of the rows [n] got last. Of rows that got one."""
        return [self._last_token[row] for row in rows.tolist()]

    def lengths(self, rows: IntArray) -> IntArray:
        """How many tokens the rows [n] have so far: [n], int64."""
        return np.array([self._num_tokens[row] for row in rows], np.int64)

    def tracked(self, row: int) -> TrackedSequence:
        sequence = self._tracked[row]
        assert sequence is not None, f"row {row} holds no sequence"
        return sequence

    def tokens(self, row: int) -> Int32Array:
        """A view of the row's tokens so far."""
        return self.token_ids[row, : self._num_tokens[row]]

    def _forget(self, seq_id: int) -> None:
        # A sequence that never reached the worker is unknown here.
        row = self._rows.pop(seq_id, None)
        if row is not None:
            self._tracked[row] = None
            self._free_rows.append(row)

    def _admit(self, new: NewSequence) -> None:
        assert new.seq_id not in self._rows, f"sequence {new.seq_id} is already here"
        assert self._free_rows, f"more than {len(self._tracked)} sequences"
        row = self._free_rows.pop()
        self._rows[new.seq_id] = row
        sequence = TrackedSequence(
            new.seq_id, new.num_prompt_tokens, new.sampling, new.seed, new.barred_token_ids
        )
        self._tracked[row] = sequence
        self.sampling.admit(row, sequence)
        self.token_ids[row, : len(new.token_ids)] = new.token_ids
        self._num_tokens[row] = len(new.token_ids)
        # Columns past a sequence's blocks are null blocks, whoever had the row before.
        self.block_tables[row] = 0
        self.num_blocks[row] = 0
        self._add_blocks(row, new.block_ids)

    def _add_blocks(self, row: int, block_ids: Sequence[int]) -> None:
        if not block_ids:
            return
        start = self.num_blocks[row]
        self.block_tables[row, start : start + len(block_ids)] = block_ids
        self.num_blocks[row] = start + len(block_ids)

    def check_invariants(self) -> None:
        """Recompute the books from scratch."""
        used = sorted(self._rows.values())
        assert len(set(used)) == len(used), f"two sequences share a row: {used}"
        assert sorted(used + self._free_rows) == list(range(len(self._tracked))), "rows are lost"
        for seq_id, row in self._rows.items():
            assert self.tracked(row).seq_id == seq_id
            assert 0 < self._num_tokens[row] <= self.token_ids.shape[1]
            assert not self.block_tables[row, self.num_blocks[row] :].any()
