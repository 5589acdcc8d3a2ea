"""Every wanted byte in exactly one piece, in the order of the files, in reads of a bounded size."""

from pathlib import Path
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from rtp_serve.loader.read_plan import (
    ALIGNMENT,
    DEFAULT_SIZES,
    Read,
    ReadSizes,
    TensorRows,
)
from rtp_serve.loader.read_plan import plan_reads as plan_rows
from rtp_serve.loader.safetensors_header import StoredTensor

SMALL = ReadSizes(read_bytes=2 * ALIGNMENT, gap_bytes=100)
MIB = 1 << 20


def tensors_in(file: str, *shapes: tuple[int, ...], start: int = 100) -> list[StoredTensor]:
    """Float32 tensors one behind the other."""
    found, offset = [], start
    for number, shape in enumerate(shapes):
        num_bytes = 4
        for size in shape:
            num_bytes *= size
        found.append(StoredTensor(f"{file}.{number}", Path(file), "F32", shape, offset, num_bytes))
        offset += num_bytes
    return found


def plan_reads(wanted: list[StoredTensor], sizes: ReadSizes = DEFAULT_SIZES) -> tuple[Read, ...]:
    """Of whole tensors."""
    return plan_rows(map(TensorRows.all_of, wanted), sizes)


def check(reads: tuple[Read, ...], wanted: list[StoredTensor], sizes: ReadSizes) -> None:
    rows_by_name: dict[str, list[int]] = {tensor.name: [] for tensor in wanted}
    for read in reads:
        assert read.offset % ALIGNMENT == read.num_bytes % ALIGNMENT == 0
        assert read.needed_bytes <= read.num_bytes < read.needed_bytes + ALIGNMENT
        assert read.pieces[0].start < ALIGNMENT
        is_one_row = len(read.pieces) == 1 and read.pieces[0].num_rows == 1
        assert read.num_bytes <= sizes.read_bytes or is_one_row
        end = 0
        for piece in read.pieces:
            tensor = piece.tensor
            row_bytes = tensor.num_bytes // (tensor.shape or (1,))[0]
            assert tensor.file == read.file
            assert end <= piece.start
            assert piece is read.pieces[0] or piece.start - end <= sizes.gap_bytes
            assert read.offset + piece.start == tensor.offset + piece.first_row * row_bytes
            assert piece.num_bytes == piece.num_rows * row_bytes > 0
            rows_by_name[tensor.name] += range(piece.first_row, piece.first_row + piece.num_rows)
            end = piece.start + piece.num_bytes
    for tensor in wanted:
        num_rows = (tensor.shape or (1,))[0] if tensor.num_bytes else 0
        assert rows_by_name[tensor.name] == list(range(num_rows)), tensor.name
    places = [(str(read.file), read.offset) for read in reads]
    assert places == sorted(places)


_shapes = st.lists(
    st.one_of(
        st.tuples(st.integers(0, 3000)),
        st.tuples(st.integers(0, 40), st.integers(0, 300)),
        st.tuples(st.integers(0, 3), st.integers(0, 3000)),
        st.just(()),
    ),
    max_size=12,
)


@given(_shapes, _shapes, st.integers(8, 5000), st.randoms(use_true_random=False))
def test_every_wanted_row_is_in_one_piece(
    first: list[tuple[int, ...]], second: list[tuple[int, ...]], start: int, random: Random
):
    stored = tensors_in("b", *first, start=start) + tensors_in("a", *second, start=start)
    wanted = [tensor for tensor in stored if random.random() < 0.7]
    random.shuffle(wanted)
    for sizes in (SMALL, DEFAULT_SIZES):
        check(plan_reads(wanted, sizes), wanted, sizes)


def test_small_tensors_share_a_read_and_large_ones_are_cut():
    stored = tensors_in("a", *[(256, 1024)] * 24, (32768, 1024))
    reads = plan_reads(stored)
    assert len(reads) == 39  # 152 MiB in reads of 4, which lose part of a row each
    assert all(3.9 * MIB < read.num_bytes <= 4 * MIB for read in reads[:-1])


def test_what_nobody_wants_is_read_along_only_if_it_is_small():
    stored = tensors_in("a", (10,), (25,), (10,), (26,), (10,))
    reads = plan_reads(stored[::2], SMALL)
    assert [[piece.tensor.name for piece in read.pieces] for read in reads] == [
        ["a.0", "a.2"],
        ["a.4"],
    ]


def test_a_row_larger_than_a_read_is_one_read():
    (read,) = plan_reads(tensors_in("a", (1, 5 * ALIGNMENT)), SMALL)
    assert read.wanted_bytes == 20 * ALIGNMENT


def test_nothing_wanted_is_no_read():
    assert plan_reads([]) == ()
    assert plan_reads(tensors_in("a", (0, 4), (4, 0))) == ()


def test_rows_that_nobody_wants_are_not_read():
    (tensor,) = tensors_in("a", (1000, 1024))
    (read,) = plan_rows([TensorRows(tensor, 500, 750)])
    (piece,) = read.pieces
    assert (piece.first_row, piece.num_rows, piece.num_bytes) == (500, 250, 250 * 4096)
    assert read.num_bytes <= piece.num_bytes + ALIGNMENT
    assert plan_rows([TensorRows(tensor, 7, 7)]) == ()
