"""The step's arrays against a token-by-token construction."""

import random
from dataclasses import asdict

import numpy as np
import pytest

from rtp_serve.engine.output import NewSequence, SchedulerOutput
from rtp_serve.engine.sampling_params import SamplingParams
from rtp_serve.worker.input_batch import BatchBuilder, InputBatch
from rtp_serve.worker.sequence_table import SequenceTable

BLOCK_SIZE = 4


def make_new(seq_id: int, length: int, block_ids: tuple[int, ...]) -> NewSequence:
    tokens = np.arange(length, dtype=np.int32) + 100 * seq_id
    return NewSequence(seq_id, tokens, length, block_ids, SamplingParams(), seed=seq_id)


def make_step(new_seqs: list[NewSequence], spans: list[tuple[int, int]]) -> SchedulerOutput:
    """One row for each new sequence: (computed, scheduled)."""
    return SchedulerOutput(
        0,
        tuple(new.seq_id for new in new_seqs),
        tuple(computed for computed, _ in spans),
        tuple(scheduled for _, scheduled in spans),
        tuple(sum(span) == len(new.token_ids) for span, new in zip(spans, new_seqs, strict=True)),
        ((),) * len(new_seqs),
        tuple(new_seqs),
    )


def assert_types(batch: InputBatch) -> None:
    inputs, attention = batch.inputs, batch.inputs.attention
    wide = (inputs.token_ids, inputs.positions, attention.slots, batch.rows, batch.last_token)
    narrow = (attention.query_start_loc, attention.seq_lens, attention.block_tables)
    assert {array.dtype for array in wide} == {np.dtype(np.int64)}
    assert {array.dtype for array in narrow} == {np.dtype(np.int32)}


def test_exact_arrays_of_a_small_step():
    table = SequenceTable(max_num_seqs=4, max_model_len=16, block_size=BLOCK_SIZE)
    step = make_step([make_new(1, 6, (7, 3)), make_new(2, 9, (2, 9, 5))], [(5, 1), (3, 4)])
    batch = BatchBuilder(table).build(table.apply(step), step)
    inputs, attention = batch.inputs, batch.inputs.attention
    assert inputs.token_ids.tolist() == [105, 203, 204, 205, 206]
    assert inputs.positions.tolist() == [5, 3, 4, 5, 6]
    assert attention.slots.tolist() == [3 * 4 + 1, 2 * 4 + 3, 9 * 4, 9 * 4 + 1, 9 * 4 + 2]
    assert attention.query_start_loc.tolist() == [0, 1, 5]
    assert attention.seq_lens.tolist() == [6, 7]
    assert attention.block_tables.tolist() == [[7, 3], [2, 9]]
    assert batch.last_token.tolist() == [0]
    assert batch.sampling.rows.tolist() == batch.rows[:1].tolist()
    assert_types(batch)


@pytest.mark.parametrize("seed", range(10))
def test_arrays_equal_a_token_by_token_construction(seed: int):
    rng = random.Random(seed)
    table = SequenceTable(max_num_seqs=8, max_model_len=64, block_size=BLOCK_SIZE)
    new_seqs, spans = [], []
    blocks = list(range(1, 200))
    rng.shuffle(blocks)
    for seq_id in range(rng.randint(1, 8)):
        length = rng.randint(1, 64)
        held = tuple(blocks.pop() for _ in range(-(-length // BLOCK_SIZE)))
        new_seqs.append(make_new(seq_id, length, held))
        computed = rng.randint(0, length - 1)
        spans.append((computed, rng.randint(1, length - computed)))
    step = make_step(new_seqs, spans)
    batch = BatchBuilder(table).build(table.apply(step), step)
    tokens, positions, slots = [], [], []
    for new, (computed, scheduled) in zip(new_seqs, spans, strict=True):
        for position in range(computed, computed + scheduled):
            tokens.append(int(new.token_ids[position]))
            positions.append(position)
            block_id = new.block_ids[position // BLOCK_SIZE]
            slots.append(block_id * BLOCK_SIZE + position % BLOCK_SIZE)
    assert batch.inputs.token_ids.tolist() == tokens
    assert batch.inputs.positions.tolist() == positions
    assert batch.inputs.attention.slots.tolist() == slots


def decode_step(
    lengths: dict[int, int], new_blocks: tuple[tuple[int, ...], ...], finished: tuple[int, ...] = ()
) -> SchedulerOutput:
    """One token for each sequence of `lengths`: id → tokens so far."""
    count = len(lengths)
    computed = tuple(length - 1 for length in lengths.values())
    ones, yes = (1,) * count, (True,) * count
    return SchedulerOutput(0, tuple(lengths), computed, ones, yes, new_blocks, (), finished)


@pytest.mark.parametrize("seed", range(5))
def test_a_builder_that_has_built_before_gives_what_a_new_one_gives(seed: int):
    rng = random.Random(seed)
    table = SequenceTable(max_num_seqs=5, max_model_len=60, block_size=BLOCK_SIZE)
    builder = BatchBuilder(table)
    blocks = iter(range(1, 200))
    lengths = {seq_id: rng.randint(1, 20) for seq_id in range(5)}
    held = {i: tuple(next(blocks) for _ in range(-(-n // BLOCK_SIZE))) for i, n in lengths.items()}
    step = make_step(
        [make_new(i, n, held[i]) for i, n in lengths.items()], [(0, n) for n in lengths.values()]
    )
    for _ in range(35):
        rows = table.apply(step)
        batch, expected = builder.build(rows, step), BatchBuilder(table).build(rows, step)
        np.testing.assert_equal(asdict(batch), asdict(expected))
        assert_types(batch)
        table.append(batch.sampling.rows, np.array([rng.randrange(99) for _ in rows], np.int32))
        finished = (lengths.popitem()[0],) if rng.random() < 0.1 and len(lengths) > 1 else ()
        lengths = {seq_id: length + 1 for seq_id, length in lengths.items()}
        grown = tuple((next(blocks),) if n % BLOCK_SIZE == 1 else () for n in lengths.values())
        step = decode_step(lengths, grown, finished)


def test_blocks_given_early_come_into_the_table_when_they_are_reached():
    table = SequenceTable(max_num_seqs=1, max_model_len=16, block_size=BLOCK_SIZE)
    builder = BatchBuilder(table)
    first = make_step([make_new(1, 3, (5,))], [(0, 3)])
    builder.build(table.apply(first), first)
    tables = []
    for length, new_blocks in ((4, (8,)), (5, ())):
        step = decode_step({1: length}, (new_blocks,))
        batch = builder.build(table.apply(step), step)
        tables.append(batch.inputs.attention.block_tables.tolist())
    assert tables == [[[5]], [[5, 8]]]


def test_a_table_keeps_its_books_through_random_life():
    rng = random.Random(0)
    table = SequenceTable(max_num_seqs=4, max_model_len=30, block_size=BLOCK_SIZE)
    alive: dict[int, list[int]] = {}
    for step_number in range(300):
        finished = tuple(seq_id for seq_id in alive if rng.random() < 0.3)
        for seq_id in finished:
            del alive[seq_id]
        new_seqs = []
        if len(alive) < 4:
            new = make_new(step_number, rng.randint(1, 10), (1, 2, 3))
            new_seqs.append(new)
            alive[new.seq_id] = new.token_ids.tolist()
        zeros, no = (0,) * len(alive), (False,) * len(alive)
        grown = tuple((9,) if rng.random() < 0.1 else () for _ in alive)
        grown = grown if len(alive) < 4 else ((),) * 4
        rows = table.apply(
            SchedulerOutput(
                step_number, tuple(alive), zeros, zeros, no, grown, tuple(new_seqs), finished
            )
        )
        sampled = np.array([rng.randrange(100) for _ in alive], np.int32)
        if all(len(tokens) < 31 for tokens in alive.values()):
            table.append(rows, sampled)
            for tokens, token_id in zip(alive.values(), sampled.tolist(), strict=True):
                tokens.append(token_id)
        table.check_invariants()
        assert len(table) == len(alive)
        assert [table.tokens(row).tolist() for row in rows] == list(alive.values())


def test_a_new_owner_of_a_row_sees_nothing_of_the_last():
    table = SequenceTable(max_num_seqs=1, max_model_len=16, block_size=BLOCK_SIZE)
    first = make_step([make_new(1, 16, (4, 5, 6, 7))], [(0, 16)])
    table.apply(first)
    second = make_step([make_new(2, 3, (9,))], [(0, 3)])
    second = SchedulerOutput(
        1, second.seq_ids, second.num_computed_tokens, second.num_scheduled_tokens,
        second.is_sampled, second.new_block_ids, second.new_seqs, finished_seq_ids=(1,),
    )  # fmt: skip
    rows = table.apply(second)
    assert table.tokens(rows[0]).tolist() == [200, 201, 202]
    assert table.block_tables[rows[0]].tolist() == [9, 0, 0, 0, 0]


def test_a_missing_token_is_stored_as_one_the_model_can_read():
    table = SequenceTable(max_num_seqs=1, max_model_len=16, block_size=BLOCK_SIZE)
    rows = table.apply(make_step([make_new(1, 2, (1,))], [(0, 2)]))
    table.append(rows, np.array([-1], np.int32))
    assert table.tokens(rows[0]).tolist() == [100, 101, 0]
