"""Files that are almost safetensors: a deterministic list of mutations of a good one."""

import json
import struct
from collections.abc import Iterator
from typing import Any

GOOD = {
    "__metadata__": {"format": "pt"},
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
}
DATA = bytes(range(32))

_WRONG_VALUES: list[Any] = [
    *(None, True, False, -1, 0, 7, 1.5, "", "F32x", {}, {"a": 1}),
    *([None], [True, True], ["2", "3"], [2.0, 3.0], [[2], [3]], [-2, -3], [2, -3], [{}, {}]),
    *(10**30, -(10**30), [10**30], [10**400, 2], [0, 10**400], [1] * 5000),
]
_BROKEN_JSON = [
    *("{", '{"a"', '{"a":', '{"a":}', '{"a":1,}', "{,}", '{"a" 1}', "{'a': 1}", "{a: 1}"),
    *('{"a": tru}', '{"a": "', '{"a": [}', '{"a": [1, 2}', "{}{}", "{} x", "{} []", '{"a": 01}'),
    *('{"a": +1}', '{"a": .5}', '{"a": 1e}', '{"a": 0x10}', '{"a": "\\x"}', '{"a": "\\ud8"}'),
    *('{"a": NaN}', '{"a": Infinity}', '{"a": -Infinity}', '{"a": undefined}', "// {}", "{/**/}"),
    *('{"a": 1;}', '{"a\n": 1}', '{"a": "\t"}'),
]
_DTYPES = "f32 F31 F33 bf16 BF17 float32 F8 I4 I128 U0 C128 FP16 torch.float32 F32\0 BOOLEAN PICKLE"


def file_of(header: bytes, data: bytes = DATA) -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def good_file() -> bytes:
    return file_of(json.dumps(GOOD).encode())


def malformed_files() -> Iterator[tuple[str, bytes]]:
    """(what is wrong, the file); every one differs from the good one."""
    for family in (_lengths, _truncations, _texts, _fields, _tensors, _layouts, _metadata, _deep):
        yield from family()


def _with(name: str, **fields: Any) -> bytes:
    """The good file but for fields of one tensor."""
    entry = {**GOOD[name], **fields}
    return file_of(json.dumps({**GOOD, name: entry}).encode())


def _lengths() -> Iterator[tuple[str, bytes]]:
    good = good_file()
    right = len(good) - len(DATA) - 8
    for length in (0, 1, 2, 7, right - 1, right + 1, right + 31, right + 33, 10**8, 10**8 + 1):
        yield f"length {length}", struct.pack("<Q", length) + good[8:]
    for power in (24, 31, 32, 48, 62, 63):
        yield f"length 2^{power}", struct.pack("<Q", 1 << power) + good[8:]
    yield "length 2^64-1", b"\xff" * 8 + good[8:]
    yield "length big-endian", struct.pack(">Q", right) + good[8:]


def _truncations() -> Iterator[tuple[str, bytes]]:
    good = good_file()
    for end in (*range(9), *range(10, len(good), 5), len(good) - 1):
        yield f"cut at {end}", good[:end]
    for extra in (1, 8, 4096):
        yield f"{extra} bytes more", good + bytes(extra)
    for start in (1, 7, 8):
        yield f"without the first {start}", good[start:]


def _texts() -> Iterator[tuple[str, bytes]]:
    for text in _BROKEN_JSON:
        yield f"JSON {text}", file_of(text.encode())
    for text in ("[]", "null", "1", '"a"', " {}", "\t{}", "\ufeff{}", "", "not json"):
        yield f"no object {text!r}", file_of(text.encode())
    good = json.dumps(GOOD).encode()
    for place in (1, 3, 20, 40, len(good) - 2):
        for byte in (0x00, 0x80, 0xC0, 0xFF):
            yield (
                f"byte {byte:#x} at {place}",
                file_of(good[:place] + bytes([byte]) + good[place + 1 :]),
            )
    for encoding in ("utf-16", "utf-16-le", "utf-32"):
        yield encoding, file_of(json.dumps(GOOD).encode(encoding))
    yield "a name of half a surrogate pair in raw bytes", file_of(b'{"\xed\xa0\x80": {}}')


def _fields() -> Iterator[tuple[str, bytes]]:
    for field in ("dtype", "shape", "data_offsets"):
        for number, value in enumerate(_WRONG_VALUES):
            yield f"{field} wrong {number}", _with("a", **{field: value})
    for dtype in _DTYPES.split(" "):
        yield f"dtype {dtype!r}", _with("a", dtype=dtype)
    for absent in ("dtype", "shape", "data_offsets"):
        entry = {name: value for name, value in GOOD["a"].items() if name != absent}
        yield f"no {absent}", file_of(json.dumps({**GOOD, "a": entry}).encode())


def _tensors() -> Iterator[tuple[str, bytes]]:
    for value in (None, 1, "a", [], True, {}, [1, 2]):
        yield f"tensor is {value!r}", file_of(json.dumps({**GOOD, "a": value}).encode())
    good = json.dumps(GOOD)
    for key in ("a", "b", "dtype", "shape", "data_offsets", "__metadata__", "format"):
        start = good.index(f'"{key}"')
        value = json.dumps(GOOD.get(key, 1))
        yield f"{key} twice", file_of(f'{good[:start]}"{key}": {value}, {good[start:]}'.encode())


def _layouts() -> Iterator[tuple[str, bytes]]:
    for shape in ([], [0], [0, 3], [5], [7], [2, 2], [3, 3], [2, 3, 2], [6, 0], [1 << 62, 4]):
        yield f"shape {shape}", _with("a", shape=shape)
    for shape in ([1 << 63, 2], [1 << 32, 1 << 32], [(1 << 64) + 6], [3, 1 << 63, 1 << 1]):
        yield f"shape that overflows {shape}", _with("a", shape=shape)
    for dtype in ("F64", "F16", "BOOL", "F4", "F6_E2M3", "C64", "I8"):
        yield f"bytes of another type {dtype}", _with("a", dtype=dtype)
    pairs = [(-24, 0), (0, 23), (0, 25), (1, 25), (24, 0), (24, 48), (8, 32), (32, 56), (0, 0)]
    pairs += [(24, 24), (1 << 63, (1 << 63) + 24), (-1, 23), (0, 1 << 62), (1 << 64, 1 << 65)]
    for begin, end in pairs:
        yield f"a at {begin}..{end}", _with("a", data_offsets=[begin, end])
    for begin, end in ((0, 8), (16, 24), (23, 31), (25, 33), (28, 36), (1 << 40, (1 << 40) + 8)):
        yield f"b at {begin}..{end}", _with("b", data_offsets=[begin, end])
    for offsets in ([], [0], [0, 24, 24], [[0, 24]], {"begin": 0}, "0,24"):
        yield f"offsets {offsets}", _with("a", data_offsets=offsets)
    alone = {"a": GOOD["a"]}
    yield "data of nobody", file_of(json.dumps(alone).encode())
    yield "no tensor but data", file_of(b"{}")
    yield "tensor but no data", file_of(json.dumps(alone).encode(), b"")


def _metadata() -> Iterator[tuple[str, bytes]]:
    values = (0, 1, "pt", [], [["a", "b"]], True, {"a": 1}, {"a": None}, {"a": {}}, {"a": ["b"]})
    for value in values:
        yield f"metadata {value!r}", file_of(json.dumps({**GOOD, "__metadata__": value}).encode())


def _deep() -> Iterator[tuple[str, bytes]]:
    for depth in (1000, 100_000):
        yield f"lists {depth} deep", file_of(b'{"a": ' + b"[" * depth + b"]" * depth + b"}")
        nested = b'{"a": ' * depth + b"1" + b"}" * depth
        yield f"objects {depth} deep", file_of(nested)
        yield f"open lists {depth} deep", file_of(b'{"a": ' + b"[" * depth)
    yield "a number of 5000 digits", file_of(b'{"a": ' + b"9" * 5000 + b"}")
    yield "an endless shape", _with("a", shape=[1 << 30] * 20_000)
    yield "a name of a megabyte", file_of(json.dumps({**GOOD, "n" * (1 << 20): 1}).encode())
