"""Which weights: equal bytes have equal identities, however they come; others never do."""

import random
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from rtp_serve.loader.identity import ContentDigest, RowsElsewhere, Span, total
from rtp_serve.loader.read_plan import (
    ALIGNMENT,
    DEFAULT_SIZES,
    ReadSizes,
    TensorRows,
    plan_reads,
    rows_per_unit,
)
from rtp_serve.loader.safetensors_header import StoredTensor

SIZES = ReadSizes(read_bytes=ALIGNMENT, gap_bytes=64)
TENSORS = (
    StoredTensor("a", Path("/here/x"), "F32", (600, 4), 100, 9600),
    StoredTensor("b", Path("/here/x"), "F32", (5,), 9700, 20),
    StoredTensor("c", Path("/here/y"), "BF16", (4, 4), 60, 32),
)
FILES = {name: random.Random(name).randbytes(3 * ALIGNMENT) for name in ("x", "y")}
"""The second tensor ends in the third page; pages end with what is no tensor's."""


def identity(
    tensors: tuple[StoredTensor, ...] = TENSORS,
    files: dict[str, bytes] = FILES,
    seed: int | None = None,
) -> str:
    """With the reads in an order drawn from the seed."""
    reads = list(plan_reads(map(TensorRows.all_of, tensors), SIZES))
    assert len(reads) > 3
    if seed is not None:
        random.Random(seed).shuffle(reads)
    digest = ContentDigest()
    for read in reads:
        data = files[read.file.name][read.offset :][: read.num_bytes]
        digest.add(read, memoryview(bytearray(data)))
    return digest.identity()


def test_reads_may_come_in_any_order():
    assert {identity(seed=seed) for seed in range(20)} == {identity()}


def test_the_place_of_the_files_has_no_say():
    moved = tuple(replace(each, file=Path("/there") / each.file.name) for each in TENSORS)
    assert identity(moved) == identity()


@pytest.mark.parametrize("position", [100, 4096, 9699, 9700, 9719])
def test_every_byte_of_a_tensor_counts(position: int):
    content = bytearray(FILES["x"])
    content[position] ^= 1
    assert identity(files=FILES | {"x": bytes(content)}) != identity()


@pytest.mark.parametrize("position", [0, 99, 9720, 12287])
def test_what_is_around_the_tensors_does_not(position: int):
    content = bytearray(FILES["x"])
    content[position] ^= 1
    assert identity(files=FILES | {"x": bytes(content)}) == identity()


@pytest.mark.parametrize(
    "change",
    [
        lambda each: replace(each, name="d") if each.name == "c" else each,
        lambda each: replace(each, shape=(2, 8)) if each.name == "c" else each,
        lambda each: replace(each, dtype="F16") if each.name == "c" else each,
        lambda each: replace(each, name={"a": "a", "b": "c", "c": "b"}[each.name]),
    ],
    ids=["name", "shape", "type", "exchanged"],
)
def test_names_shapes_and_types_count(change: Callable[[StoredTensor], StoredTensor]):
    assert identity(tuple(map(change, TENSORS))) != identity()


LARGE = StoredTensor("e", Path("/here/z"), "BF16", (3000, 512), 100, 3000 * 1024)
SMALL = StoredTensor("f", Path("/here/z"), "BF16", (70,), LARGE.offset + LARGE.num_bytes, 140)
CONTENT = random.Random("z").randbytes(SMALL.offset + SMALL.num_bytes + ALIGNMENT)


def share(
    rows: dict[str, Span], elsewhere: RowsElsewhere | None = None, content: bytes = CONTENT
) -> int:
    digest = ContentDigest(elsewhere)
    tensors = {each.name: each for each in (LARGE, SMALL)}
    wanted = (TensorRows(tensors[name], *span).in_units() for name, span in rows.items())
    for read in plan_reads(wanted, DEFAULT_SIZES):
        digest.add(read, memoryview(content[read.offset :][: read.num_bytes]))
    return digest.share()


@pytest.mark.parametrize("seed", range(20))
def test_shares_of_ranks_add_up_to_the_digest_of_one_that_reads_all(seed: int):
    """However they are cut, whole or overlapping, in the middle of units or between them."""
    rng = random.Random(seed)
    assert rows_per_unit(LARGE) == 64
    cuts = [0, *sorted(rng.sample(range(1, 3000), rng.randint(1, 4))), 3000]
    spans = [(begin - rng.choice((0, min(begin, 9))), end) for begin, end in pairwise(cuts)]
    shares, elsewhere = [], {}
    for span in spans:
        rows = {"e": span, "f": (0, 70)}  # which every rank has, as it has norms
        shares.append(share(rows, elsewhere))
        for name in rows:
            elsewhere = {**elsewhere, name: (*elsewhere.get(name, ()), rows[name])}
    assert total(shares) == share({"e": (0, 3000), "f": (0, 70)})


def test_what_ranks_share_is_the_first_one_s_to_count():
    """The byte is in a unit that both read."""
    parts = [{"e": (0, 1000), "f": (0, 70)}, {"e": (1000, 3000)}]
    other = bytearray(CONTENT)
    other[LARGE.offset + 1000 * 1024] ^= 1
    elsewhere = {"e": [(0, 1000)]}
    shares = [share(parts[0]), share(parts[1], elsewhere)]
    others = [share(parts[0], content=bytes(other)), share(parts[1], elsewhere, bytes(other))]
    assert [mine == theirs for mine, theirs in zip(shares, others, strict=True)] == [False, True]
