"""Blocks as bytes."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from rtp_serve.disaggregation.protocol import Span
from rtp_serve.disaggregation.transport.checksummed import export_blocks, import_blocks
from rtp_serve.errors import WrongLayout
from tests.unit.disaggregation.memories import DOUBLED, HALVES, WHOLE, content, empty, filled, has

TAGS = range(1, 7)


@pytest.mark.parametrize("target_heads", [WHOLE, HALVES, DOUBLED], ids=len)
@pytest.mark.parametrize("source_heads", [WHOLE, HALVES, DOUBLED], ids=len)
def test_bytes_come_to_any_division_of_heads(
    source_heads: Sequence[Span], target_heads: Sequence[Span]
):
    source, target = filled(source_heads, TAGS), empty(target_heads)
    exported = export_blocks(source, (5, 0), (1, 3))
    assert exported.data[: content(6, (1, 3)).size].tobytes() == content(6, (1, 3)).tobytes()
    assert import_blocks(target, (2, 4), (1, 3), exported)
    assert has(target, 2, 6, (1, 3))
    assert has(target, 4, 1, (1, 3))
    assert not target.parts[0].data[:, 0].any()


def test_bytes_that_changed_on_the_way_are_not_used():
    exported = export_blocks(filled(WHOLE, TAGS), (5,), (0, 4))
    spoilt = exported.data.copy()
    spoilt[17] ^= 1
    target = empty()
    assert not import_blocks(target, (2,), (0, 4), replace(exported, data=spoilt))
    assert not target.parts[0].data.any()


def test_bytes_of_another_number_of_blocks_are_refused():
    exported = export_blocks(filled(WHOLE, TAGS), (5,), (0, 4))
    with pytest.raises(WrongLayout, match="bytes cannot be"):
        import_blocks(empty(), (2, 3), (0, 4), exported)
