"""Copies between two divisions of heads."""

from collections.abc import Sequence

import pytest

from rtp_serve.disaggregation.protocol import Span
from rtp_serve.disaggregation.transport.parts import BlockCopier, part_of
from rtp_serve.errors import WrongLayout
from tests.unit.disaggregation.memories import (
    DOUBLED,
    HALVES,
    MEMORY,
    NUM_LAYERS,
    SPEC,
    THIRDS,
    WHOLE,
    content,
    empty,
    filled,
    has,
)

DIVISIONS = [WHOLE, HALVES, THIRDS, DOUBLED]
TAGS = range(1, 7)


@pytest.mark.parametrize("target_heads", DIVISIONS, ids=len)
@pytest.mark.parametrize("source_heads", DIVISIONS, ids=len)
def test_any_division_of_heads_fills_any_other(
    source_heads: Sequence[Span], target_heads: Sequence[Span]
):
    source, target = filled(source_heads, TAGS), empty(target_heads)
    copier = BlockCopier(source, target)
    sources, targets = (3, 4, 0, 5), (1, 2, 5, 0)  # a run of two, and two alone
    copier.copy(sources, targets, (1, 3))
    for there, here in zip(sources, targets, strict=True):
        assert has(target, here, TAGS[there], (1, 3))
    for part in target.parts:
        assert not part.data[:, 0].any(), "layer 0 was not asked for"
        assert not part.data[:, 3].any(), "layer 3 was not asked for"
        assert not part.data[[3, 4]].any(), "blocks 3 and 4 were not asked for"


def test_a_run_on_one_side_only_is_no_run():
    source, target = filled(WHOLE, TAGS), empty()
    BlockCopier(source, target).copy((0, 1, 2), (2, 1, 0), (0, NUM_LAYERS))
    assert all(has(target, 2 - block, TAGS[block]) for block in range(3))


@pytest.mark.parametrize("ids", [((6,), (0,)), ((-1,), (0,)), ((0,), (6,)), ((0, 1), (0, -1))])
def test_blocks_that_are_not_there_are_refused_before_anything_is_copied(
    ids: tuple[tuple[int, ...], tuple[int, ...]],
):
    target = empty()
    with pytest.raises(WrongLayout, match="where there are 6"):
        BlockCopier(filled(WHOLE, TAGS), target).copy(*ids, (0, NUM_LAYERS))
    assert not target.parts[0].data.any()


def test_memories_of_other_heads_or_layers_do_not_fit():
    with pytest.raises(WrongLayout, match="head 2"):
        BlockCopier(empty(((0, 2),)), empty())
    with pytest.raises(WrongLayout, match="layers"):
        BlockCopier(empty().layers((0, 2)), empty())


def test_a_part_of_plain_memory():
    memory = bytearray(SPEC.block_bytes * MEMORY.num_blocks)
    part = part_of(memory, MEMORY, (0, 4))
    part.data[2] = content(1)
    start = 2 * SPEC.block_bytes
    assert memory[start : start + SPEC.block_bytes] == content(1).tobytes()
    with pytest.raises(WrongLayout, match="bytes cannot be"):
        part_of(memory[1:], MEMORY, (0, 4))
