"""Against its definition: how many blocks each slot has before the first that it has not."""

from itertools import takewhile
from random import Random

import pytest

from rtp_serve.native.prefix_match import match_prefix


def by_definition(
    hashes: tuple[bytes, ...], held: dict[bytes, int], assumed: dict[bytes, int], num_slots: int
) -> list[int]:
    def length(slot: int) -> int:
        masks = (held.get(key, 0) | assumed.get(key, 0) for key in hashes)
        return sum(1 for _ in takewhile(lambda mask: mask >> slot & 1, masks))

    return [length(slot) for slot in range(num_slots)]


def some_masks(rng: Random, hashes: tuple[bytes, ...], num_slots: int) -> dict[bytes, int]:
    """Chains that most slots have most of, and single blocks without the one before."""
    masks: dict[bytes, int] = {}
    for slot in range(num_slots):
        length = rng.choice([0, len(hashes), rng.randrange(len(hashes) + 1)])
        for key in (*hashes[:length], rng.choice(hashes)):
            if rng.random() < 0.98:
                masks[key] = masks.get(key, 0) | 1 << slot
    return masks


@pytest.mark.parametrize("num_slots", [1, 3, 63, 64, 65, 200, 1024, 1100])
@pytest.mark.parametrize("seed", range(5))
def test_each_slot_has_the_blocks_before_the_first_that_it_lacks(num_slots: int, seed: int):
    rng = Random(seed)
    hashes = tuple(bytes([i]) * 32 for i in range(rng.randrange(1, 40)))
    held = some_masks(rng, hashes, rng.randint(1, num_slots))
    assumed = some_masks(rng, hashes, rng.randint(1, num_slots)) if seed else {}
    found = match_prefix(hashes, held, assumed, num_slots)
    assert found.tolist() == by_definition(hashes, held, assumed, num_slots)


def test_many_blocks_with_the_same_mask_are_matched_like_others():
    hashes = tuple(bytes([i]) for i in range(9))
    both, one = 0b11, 0b10  # the same objects at many blocks, as the index has them
    held = dict(zip(hashes, (both, both, one, one, both, one, one, both, both), strict=True))
    assert match_prefix(hashes, held, {}, 3).tolist() == [2, 9, 0]
    assert match_prefix(hashes, held, {hashes[2]: 0b01, hashes[3]: 0b01}, 3).tolist() == [5, 9, 0]


def test_nothing_is_matched_where_there_is_nothing():
    assert match_prefix((), {b"a": 1}, {}, 2).tolist() == [0, 0]
    assert match_prefix((b"a",), {}, {}, 0).tolist() == []


def test_a_holder_without_a_slot_is_refused():
    for bit in (2, 64):
        with pytest.raises((ValueError, OverflowError)):
            match_prefix((b"a",), {b"a": 1 << bit}, {}, 2)


def test_other_things_than_integers_are_refused():
    with pytest.raises(TypeError, match="must be integers"):
        match_prefix((b"a",), {b"a": "w0"}, {}, 2)  # type: ignore[dict-item]
