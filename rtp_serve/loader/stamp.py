"""Whether a checkpoint's files are those that they were, told without reading their weights.

What they hold is another question, see `loader.identity`: a copy has a stamp of its own.
"""

import hashlib
import json
import os
import struct
from pathlib import Path

_LENGTH = struct.Struct("<Q")
_MAX_HEADER_BYTES = 100 << 20
"""As the safetensors format has it."""


def checkpoint_stamp(directory: Path) -> str | None:
    """A digest that changes with every change of the checkpoint's weight files.

    It reads no weights, only each file's name, size, inode, times of the last change of content
    and of anything (which no program can set back), and header. None where there is no such file
    or one cannot be read: the loader says what is wrong.
    """
    names = ("*.safetensors", "*.safetensors.index.json")
    paths = sorted(path for pattern in names for path in directory.glob(pattern))
    try:
        files = [_file_stamp(path) for path in paths]
    except OSError:
        return None
    if not files:
        return None
    return hashlib.blake2b(json.dumps(files).encode(), digest_size=32).hexdigest()


def _file_stamp(path: Path) -> tuple[str | int, ...]:
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        times = status.st_mtime_ns, status.st_ctime_ns
        num_bytes = status.st_size
        if path.suffix == ".safetensors":
            prefix = file.read(_LENGTH.size)
            claimed = _LENGTH.unpack(prefix)[0] if len(prefix) == _LENGTH.size else 0
            num_bytes = min(claimed, num_bytes, _MAX_HEADER_BYTES)
        head = hashlib.blake2b(file.read(num_bytes), digest_size=32).hexdigest()
    return path.name, status.st_size, *times, status.st_ino, head
