"""Sizes in bytes, as people write them."""

import re
from typing import Annotated, Any

from pydantic import BeforeValidator

_UNITS = {
    "": 1, "B": 1,
    "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40,
}  # fmt: skip
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")


def parse_bytes(value: Any) -> int:
    """`"1.5GiB"` → 1610612736. Raises ValueError naming the units."""
    if isinstance(value, int) and not isinstance(value, bool):
        size = value
    else:
        match = _SIZE.fullmatch(value) if isinstance(value, str) else None
        if match is None or match[2].upper() not in _UNITS:
            raise ValueError(f"not a size: {value!r}; write bytes or a number with KB … TiB")
        size = int(float(match[1]) * _UNITS[match[2].upper()])
    if size < 0:
        raise ValueError(f"a size is not negative, got {value!r}")
    return size


ByteSize = Annotated[int, BeforeValidator(parse_bytes)]
