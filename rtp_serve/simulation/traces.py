"""Readers of published traces."""

import csv
import json
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

from rtp_serve.errors import ConfigError
from rtp_serve.kv_cache.block import BlockHash
from rtp_serve.simulation.requests import Trace, TracedRequest


def read_mooncake(path: Path) -> Trace:
    """Mooncake's: `timestamp` in ms, `hash_ids` of blocks of 512 tokens, the last one partial."""

    def request(line: dict[str, Any]) -> TracedRequest:
        num_tokens = int(line["input_length"])
        return TracedRequest(
            line["timestamp"] / 1000,
            num_tokens,
            int(line["output_length"]),
            _hashes(line["hash_ids"][: num_tokens // 512]),
        )

    return Trace(path.stem, 512, tuple(map(request, _lines(path))))


def read_rtp_llm(path: Path) -> Trace:
    """RTP-LLM's: `ts` in ms, `bh` of full blocks of 1,024 tokens."""

    def request(line: dict[str, Any]) -> TracedRequest:
        return TracedRequest(
            line["ts"] / 1000,
            max(1, int(line["il"])),
            max(1, int(line["ol"])),
            _hashes(line["bh"][: int(line["il"]) // 1024]),
            int(line["priority"]),
        )

    return Trace(path.stem, 1024, tuple(map(request, _lines(path))))


def read_azure(path: Path) -> Trace:
    """Azure's of 2023: times and lengths, and nothing of what prompts share."""
    with _opened(path) as file:
        rows = [
            (_seconds(row["TIMESTAMP"]), int(row["ContextTokens"]), int(row["GeneratedTokens"]))
            for row in csv.DictReader(file)
        ]
    start = min((row[0] for row in rows), default=0.0)
    requests = (TracedRequest(at - start, max(1, new), max(1, out), ()) for at, new, out in rows)
    return Trace(path.stem, 512, tuple(sorted(requests, key=lambda each: each.arrival_s)))


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
            try:
                trace = reader(path)
            except (KeyError, TypeError, ValueError) as error:
                raise ConfigError(f"trace {path}: {type(error).__name__}: {error}") from None
            if not trace.requests:
                raise ConfigError(f"trace {path}: no requests")
            return trace
    raise ConfigError(f"trace {path}: of no known format; its first line has none of {[*READERS]}")


def _opened(path: Path) -> Any:
    try:
        return path.open(encoding="utf-8", newline="")
    except OSError as error:
        raise ConfigError(f"trace {path}: {error.strerror}") from None


def _lines(path: Path) -> Iterable[dict[str, Any]]:
    with _opened(path) as file:
        for line in file:
            yield json.loads(line)


def _hashes(ids: Iterable[object]) -> tuple[BlockHash, ...]:
    """Ids are chained already: the same id is the same block after the same blocks."""
    return tuple(BlockHash(str(each).encode()) for each in ids)


def _seconds(text: str) -> float:
    """Their fractions have seven digits, one more than datetime reads."""
    whole, _, fraction = text.partition(".")
    return datetime.fromisoformat(whole).timestamp() + float(f"0.{fraction or 0}")
