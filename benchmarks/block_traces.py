"""Traces of requests as chains of blocks, in the order in which they came."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from rtp_serve.errors import ConfigError
from rtp_serve.kv_cache.block import BlockHash

TRACES = {
    "mooncake": ("mooncake_conversation.jsonl", "hash_ids"),
    "rtp_llm": ("rtp_llm_30min.jsonl", "bh"),
}
"""Name → file, and the field with a request's blocks. Their ids are chained already."""


@dataclass(frozen=True, slots=True)
class BlockTrace:
    """One trace. Blocks are numbered from 0."""

    chains: tuple[tuple[int, ...], ...]
    """A request's blocks."""

    keys: tuple[BlockHash, ...]
    """Of each block."""

    @property
    def num_wanted(self) -> int:
        """Blocks of all requests."""
        return sum(map(len, self.chains))


def read_trace(directory: Path, name: str) -> BlockTrace:
    """Raises ConfigError if the file is not there."""
    file, field = TRACES[name]
    try:
        text = (directory / file).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"--traces: no {file} in {directory}") from None
    return trace_of(json.loads(line)[field] for line in text.splitlines())


def trace_of(requests: Iterator[list[Any]]) -> BlockTrace:
    """Any ids; the same id is the same block after the same blocks."""
    numbers: dict[Any, int] = {}
    chains = tuple(
        tuple(numbers.setdefault(each, len(numbers)) for each in ids) for ids in requests
    )
    return BlockTrace(chains, tuple(_key(each) for each in numbers))


def _key(block_id: object) -> BlockHash:
    return BlockHash(blake2b(str(block_id).encode(), digest_size=32).digest())
