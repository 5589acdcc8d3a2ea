"""Copies bytes and hashes them on the way, without the interpreter lock."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import xxhash

from rtp_kernels import _C

Bytes = npt.NDArray[np.uint8]


def digest_copies(targets: Sequence[Bytes], sources: Sequence[Bytes]) -> list[bytes]:
    """XXH3 with 128 bits of what was copied to each target from its source: of each byte as it was
    when it was read, once.

    A target and its source are contiguous and equally long. All are copied in one call, which in
    whole cache lines takes as long as plain copies.
    """
    digests = _C.digest_copies(targets, sources)
    return [
        _copy(target, source) if digest is None else digest
        for target, source, digest in zip(targets, sources, digests, strict=True)
    ]


def _copy(target: Bytes, source: Bytes) -> bytes:
    data = source.tobytes()
    target[:] = np.frombuffer(data, np.uint8)
    return xxhash.xxh3_128_digest(data)
