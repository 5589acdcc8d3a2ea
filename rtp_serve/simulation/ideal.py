"""What would be left to do with one cache that forgets nothing."""

from dataclasses import dataclass

from rtp_serve.kv_cache.block import BlockHash
from rtp_serve.simulation.engine_model import EngineModel
from rtp_serve.simulation.requests import Trace


@dataclass(frozen=True, slots=True)
class Ideal:
    """Of a trace."""

    prefill_s: float
    """Of all requests, one after the other."""

    hit_rate: float
    """Cached ÷ prompt tokens."""


def ideal(trace: Trace, model: EngineModel, skip: float = 0.0) -> Ideal:
    """The first `skip` of requests fills the cache and is not counted otherwise."""
    seen: set[BlockHash] = set()
    prefill_s, num_cached, num_tokens = 0.0, 0, 0
    num_skipped = int(skip * len(trace.requests))
    for number, each in enumerate(trace.requests):
        found = 0
        while found < len(each.block_hashes) and each.block_hashes[found] in seen:
            found += 1
        seen.update(each.block_hashes[found:])
        if number < num_skipped:
            continue
        cached = min(found * trace.block_size, each.num_tokens - 1)
        prefill_s += model.prefill_s(each.num_tokens - cached, cached)
        num_cached += cached
        num_tokens += each.num_tokens
    return Ideal(prefill_s, num_cached / num_tokens if num_tokens else 0.0)
