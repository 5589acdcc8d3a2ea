"""Copies with the digest that the `xxhash` package has of the same bytes."""

import numpy as np
import pytest
import xxhash

from rtp_kernels import _C
from rtp_serve.native.digest_copy import digest_copy
from tests.kernels.levels import ISAS, using


def aligned(num_bytes: int) -> np.ndarray:
    room = np.zeros(num_bytes + 64, np.uint8)
    return room[-room.__array_interface__["data"][0] % 64 :][:num_bytes]


def random_bytes(num_bytes: int) -> np.ndarray:
    source = aligned(num_bytes)
    source[:] = np.random.default_rng(num_bytes).integers(0, 256, num_bytes, dtype=np.uint8)
    return source


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    "num_bytes", [*range(256, 2304 + 1, 64), 64 * 1023, 65536, 65536 + 64, 368640]
)
def test_the_digest_is_xxh3_of_the_copy(isa: str, num_bytes: int):
    source, target = random_bytes(num_bytes), aligned(num_bytes)
    with using(isa):
        digest = _C.digest_copy(target, source)
    assert digest == xxhash.xxh3_128_digest(source.data)
    assert np.array_equal(target, source)


@pytest.mark.parametrize("num_bytes", [0, 1, 64, 192, 250, 300, 5000])
@pytest.mark.parametrize("offset", [0, 3])
def test_any_bytes_are_copied_with_their_digest(num_bytes: int, offset: int):
    source, target = random_bytes(num_bytes + offset)[offset:], aligned(num_bytes)
    assert digest_copy(target, source) == xxhash.xxh3_128_digest(source.data)
    assert np.array_equal(target, source)


def test_what_is_beside_the_target_stays():
    room = aligned(256 + 128)
    digest_copy(room[64:-64], random_bytes(256))
    assert not room[:64].any()
    assert not room[-64:].any()


@pytest.mark.parametrize("num_bytes", [64, 192, 300])
def test_other_sizes_are_refused(num_bytes: int):
    with pytest.raises(ValueError, match="whole lines of 64, at least 256"):
        _C.digest_copy(aligned(num_bytes), aligned(num_bytes))


def test_other_lengths_places_and_memory_that_cannot_be_written_are_refused():
    with pytest.raises(ValueError, match="equally many bytes"):
        _C.digest_copy(aligned(320), aligned(256))
    with pytest.raises(ValueError, match="aligned to 64 bytes"):
        _C.digest_copy(aligned(320)[1:257], aligned(256))
    with pytest.raises((BufferError, ValueError)):
        _C.digest_copy(aligned(256).data.toreadonly(), aligned(256))
