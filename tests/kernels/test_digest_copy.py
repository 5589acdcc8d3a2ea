"""Copies with the digest that the `xxhash` package has of the same bytes."""

import numpy as np
import pytest
import xxhash

from rtp_kernels import _C
from rtp_serve.native.digest_copy import digest_copies
from tests.kernels.levels import ISAS, using


def aligned(num_bytes: int) -> np.ndarray:
    room = np.zeros(num_bytes + 64, np.uint8)
    return room[-room.__array_interface__["data"][0] % 64 :][:num_bytes]


def random_bytes(num_bytes: int) -> np.ndarray:
    source = aligned(num_bytes)
    source[:] = np.random.default_rng(num_bytes).integers(0, 256, num_bytes, dtype=np.uint8)
    return source


SIZES = [*range(256, 2304 + 1, 64), 64 * 1023, 65536, 65536 + 64, 368640]


@pytest.mark.parametrize("isa", ISAS)
def test_digests_are_xxh3_of_the_copies(isa: str):
    sources, targets = list(map(random_bytes, SIZES)), list(map(aligned, SIZES))
    with using(isa):
        digests = _C.digest_copies(targets, sources)
    assert digests == [xxhash.xxh3_128_digest(source.data) for source in sources]
    for source, target in zip(sources, targets, strict=True):
        assert np.array_equal(target, source)


@pytest.mark.parametrize("num_bytes", [0, 1, 64, 192, 250, 300, 5000])
@pytest.mark.parametrize("offset", [0, 3])
def test_any_bytes_are_copied_with_their_digest(num_bytes: int, offset: int):
    whole = random_bytes(512)
    source, target = random_bytes(num_bytes + offset)[offset:], aligned(num_bytes)
    digests = digest_copies([aligned(512), target, aligned(512)], [whole, source, whole])
    assert digests == [xxhash.xxh3_128_digest(each.data) for each in (whole, source, whole)]
    assert np.array_equal(target, source)


def test_what_is_beside_a_target_stays():
    room = aligned(256 + 128)
    digest_copies([room[64:-64]], [random_bytes(256)])
    assert not room[:64].any()
    assert not room[-64:].any()


def test_nothing_is_copied_for_nothing():
    assert digest_copies([], []) == []


@pytest.mark.parametrize("num_bytes", [0, 64, 192, 300])
def test_other_sizes_are_left_to_the_caller(num_bytes: int):
    target = aligned(num_bytes)
    assert _C.digest_copies([target], [random_bytes(num_bytes)]) == [None]
    assert not target.any()


def test_other_places_are_left_to_the_caller():
    room = aligned(320)
    assert _C.digest_copies([room[1:257]], [random_bytes(256)]) == [None]
    assert _C.digest_copies([aligned(256)], [random_bytes(320)[1:257]]) == [None]
    assert not room.any()


def test_other_lengths_numbers_and_memory_that_cannot_be_written_are_refused():
    with pytest.raises(ValueError, match="equally many bytes"):
        _C.digest_copies([aligned(320)], [aligned(256)])
    with pytest.raises(ValueError, match="equally many"):
        _C.digest_copies([aligned(256)], [])
    with pytest.raises((BufferError, ValueError)):
        _C.digest_copies([aligned(256).data.toreadonly()], [aligned(256)])
