"""Counter-based random numbers."""

import numpy as np
import pytest

from rtp_serve.ops import compiled
from rtp_serve.ops import philox as reference

MAX = 0xFFFFFFFF


# The known answers that the authors publish with Random123.
@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((MAX,) * 4, (MAX,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_answers(
    counter: tuple[int, ...], key: tuple[int, ...], expected: tuple[int, ...]
):
    words = [np.array([word], np.uint64) for word in (*counter, *key)]
    result = reference.philox(tuple(words[:4]), tuple(words[4:]))
    assert tuple(int(word[0]) for word in result) == expected


def test_the_kernel_gives_the_references_numbers():
    rng = np.random.default_rng(0)
    seeds = np.append(rng.integers(0, 1 << 64, 500, np.uint64), np.uint64((1 << 64) - 1))
    positions = np.append(rng.integers(0, 1 << 40, 500), 0)
    expected = reference.uniforms(seeds, positions).tolist()
    assert compiled.uniforms(seeds, positions).tolist() == expected


def test_numbers_do_not_depend_on_their_company():
    seeds = np.array([0, 1, 2, (1 << 64) - 1], np.uint64)
    positions = np.array([0, 7, 7, 1 << 40], np.int64)
    together = compiled.uniforms(seeds, positions)
    alone = [compiled.uniforms(seeds[i : i + 1], positions[i : i + 1])[0] for i in range(4)]
    assert together.tolist() == alone
    assert len(set(alone)) == 4


@pytest.mark.parametrize("varied", ["seed", "position"])
def test_numbers_are_uniform_and_uncorrelated(varied: str):
    count = np.arange(20_000)
    fixed = np.full(20_000, 5)
    seeds, positions = (count, fixed) if varied == "seed" else (fixed, count)
    numbers = compiled.uniforms(seeds.astype(np.uint64), positions)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    histogram = np.histogram(numbers, 100, (0, 1))[0]
    # chi-square with 99 degrees of freedom: 148 is its 99.9 % point
    assert ((histogram - 200) ** 2 / 200).sum() < 148
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.03
