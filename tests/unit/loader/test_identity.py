"""Which weights: equal bytes have equal identities, however they come; others never do."""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from rtp_serve.loader.identity import ContentDigest
from rtp_serve.loader.read_plan import ALIGNMENT, ReadSizes, TensorRows, plan_reads
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
