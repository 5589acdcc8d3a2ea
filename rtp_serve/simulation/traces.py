"""Readers of published traces."""

import csv
import json
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from rtp_serve.errors import ConfigError
from rtp_serve.kv_cache.block import BlockHash
from rtp_serve.simulation.requests import Trace, TracedRequest


def read_mooncake(path: Path) -> Trace:
    """Mooncake's: `timestamp` in ms, `hash_ids` of blocks of 512 tokens, the last one partial."""

    def request(line: str) -> TracedRequest:
        row = json.loads(line)
        num_tokens = _count(row, "input_length")
        return TracedRequest(
            row["timestamp"] / 1000,
            num_tokens,
            _count(row, "output_length"),
            _hashes(row["hash_ids"][: num_tokens // 512]),
        )

    return _trace(path, 512, request)


def read_rtp_llm(path: Path) -> Trace:
    """RTP-LLM's: `ts` in ms, `bh` of full blocks of 1,024 tokens."""

    def request(line: str) -> TracedRequest:
        row = json.loads(line)
        num_tokens = _count(row, "il")
        return TracedRequest(
            row["ts"] / 1000,
            num_tokens,
            _count(row, "ol"),
            _hashes(row["bh"][: num_tokens // 1024]),
            int(row["priority"]),
        )

    return _trace(path, 1024, request)


def read_azure(path: Path) -> Trace:
    """Azure's of 2023: times and lengths, and nothing of what prompts share."""
    with _opened(path) as file:
        columns = next(csv.reader([file.readline()]))

    def request(line: str) -> TracedRequest:
        row = dict(zip(columns, next(csv.reader([line])), strict=True))
        num_tokens, num_new = _count(row, "ContextTokens"), _count(row, "GeneratedTokens")
        return TracedRequest(_seconds(row["TIMESTAMP"]), num_tokens, num_new, ())

    return _trace(path, 512, request, num_heads=1)


READERS: dict[str, Callable[[Path], Trace]] = {
    "hash_ids": read_mooncake,
    "bh": read_rtp_llm,
    "ContextTokens": read_azure,
}
"""A word of the first line that tells a format → its reader."""


def read_trace(path: Path) -> Trace:
    """By what is in it. Raises ConfigError if that is not a trace."""
    with _opened(path) as file:
        first = file.readline()
    for word, reader in READERS.items():
        if word in first:
            return reader(path)
    raise ConfigError(f"trace {path}: of no known format; its first line has none of {[*READERS]}")


def _opened(path: Path) -> Any:
    try:
        return path.open(encoding="utf-8", newline="")
    except OSError as error:
        raise ConfigError(f"trace {path}: {error.strerror}") from None


def _trace(
    path: Path, block_size: int, request: Callable[[str], TracedRequest], num_heads: int = 0
) -> Trace:
    """By arrival, from 0. Raises ConfigError with the number of a line that is wrong."""
    requests = []
    with _opened(path) as file:
        for number, line in enumerate(file, start=1):
            if number <= num_heads or not line.strip():
                continue
            try:
                requests.append(request(line))
            except KeyError as error:
                raise ConfigError(f"trace {path}, line {number}: no {error}") from None
            except (TypeError, ValueError) as error:
                raise ConfigError(f"trace {path}, line {number}: {error}") from None
    if not requests:
        raise ConfigError(f"trace {path}: no requests")
    requests.sort(key=lambda each: each.arrival_s)
    return Trace(path.stem, block_size, tuple(requests)).paced(1.0)


def _count(row: Mapping[str, Any], name: str) -> int:
    """Tokens; one at least, since nothing is computed for less."""
    count = int(row[name])
    if count < 0:
        raise ValueError(f"{name}: must not be negative (got {count})")
    return max(1, count)


def _hashes(ids: Iterable[object]) -> tuple[BlockHash, ...]:
    """Ids are chained already: the same id is the same block after the same blocks."""
    return tuple(BlockHash(str(each).encode()) for each in ids)


def _seconds(text: str) -> float:
    """Their fractions have seven digits, one more than datetime reads."""
    whole, _, fraction = text.partition(".")
    return datetime.fromisoformat(whole).timestamp() + float(f"0.{fraction or 0}")
