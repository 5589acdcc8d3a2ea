"""Which weights a checkpoint has: a digest of every tensor that the model is made of.

It is made of the bytes as they are read for the load, by the threads that read them. Two copies of
a checkpoint have one identity, on whatever node; one that differs in a byte of a tensor, in a name,
a shape or a type has another. Tensors that the model has no use for have no say, nor have names,
times and places of files.

Pieces are digested as the reads cut them, so a checkpoint that was cut into files in another way
is another one, and what that costs is a cache that nobody finds. XXH3 of 128 bits tells apart what
differs by accident, not what somebody made so that it would not.
"""

import hashlib
import json
import threading

import xxhash

from rtp_serve.loader.read_plan import Read
from rtp_serve.loader.safetensors_header import StoredTensor


class ContentDigest:
    """Of one load. For any number of threads, and for reads in any order."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pieces: list[tuple[str, int, str]] = []
        self._tensors: dict[str, StoredTensor] = {}

    def add(self, read: Read, data: memoryview) -> None:
        """A read's bytes, which are not kept."""
        pieces = [
            (
                piece.tensor.name,
                piece.first_row,
                xxhash.xxh3_128_hexdigest(data[piece.start : piece.start + piece.num_bytes]),
            )
            for piece in read.pieces
        ]
        with self._lock:
            self._pieces += pieces
            self._tensors |= {piece.tensor.name: piece.tensor for piece in read.pieces}

    def identity(self) -> str:
        """Of all that was added, once that is all."""
        tensors = [
            (name, tensor.dtype, tensor.shape) for name, tensor in sorted(self._tensors.items())
        ]
        manifest = json.dumps([tensors, sorted(self._pieces)])
        return hashlib.blake2b(manifest.encode(), digest_size=32).hexdigest()
