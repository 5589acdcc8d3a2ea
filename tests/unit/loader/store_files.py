"""Files of the weight store without torch: tensors are bytes drawn from a seed."""

import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rtp_serve.loader.store.directory import StoreDirectory
from rtp_serve.loader.store.format import Header, TensorEntry, lay_out
from rtp_serve.loader.store.key import StoreKey
from rtp_serve.loader.store.payload import FileIO, seal, write_payload

TENSORS = (
    TensorEntry("layers.0.qkv", "matrix", "bfloat16", (1, 5, 32, 2)),
    TensorEntry("layers.0.qkv", "bias", "float32", (7,)),
    TensorEntry("norm", "vector", "bfloat16", (9,)),
    TensorEntry("lm_head", "matrix", "float32", (1, 40, 32)),
)
"""Of which three end between two multiples of the alignment."""


def make_key(checkpoint: str = "c0", **fields: Any) -> StoreKey:
    values = {"architecture": "A", "specs": "s", "dtype": "bfloat16", "layout": 1, **fields}
    return StoreKey(checkpoint=checkpoint, **values)


def make_header(
    key: StoreKey | None = None, tensors: Sequence[TensorEntry] = TENSORS, source: str = "/models/m"
) -> Header:
    return lay_out(key or make_key(), source, 0x5A, tensors)


def make_buffers(header: Header, seed: int = 0) -> list[memoryview]:
    rng = random.Random(seed)
    return [memoryview(rng.randbytes(tensor.num_bytes)) for tensor in header.tensors]


def write_draft(store: StoreDirectory, header: Header, io: FileIO | None = None) -> Path:
    """A sealed draft; the caller holds the lock, or is alone."""
    store.root.mkdir(parents=True, exist_ok=True)
    descriptor = store.create_draft(header.key.name)
    try:
        write_payload(descriptor, header, make_buffers(header), io or FileIO())
        seal(descriptor, header, io or FileIO())
    finally:
        os.close(descriptor)
    return store.draft(header.key.name)


def write_file(store: StoreDirectory, key: StoreKey | None = None, used_s: float = 0.0) -> Path:
    """A finished file, last used at `used_s`."""
    header = make_header(key)
    with store.maker_lock(header.key.name):
        write_draft(store, header)
        store.publish(header.key.name)
    store.touch(header.key.name, used_s)
    return store.finished(header.key.name)


def flip(path: Path, position: int) -> None:
    """Change one byte where it lies."""
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 0x40]))
