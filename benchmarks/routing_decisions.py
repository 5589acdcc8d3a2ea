"""How long the Master's library takes for one decision, in a fleet of some size.

Workers hold chains of `_CHAIN` blocks; half of the chains begin with one of a few common prefixes,
which many workers have. Requests want 64 blocks: a chain that somebody has, or one that is new.
"""

import gc
import time
from dataclasses import dataclass
from random import Random

from rtp_serve.config.routing import RoutingConfig
from rtp_serve.kv_cache.block import BlockHash
from rtp_serve.routing.block_stream import BlockDelta
from rtp_serve.routing.master import Master
from rtp_serve.routing.types import (
    Outcome,
    Prefilled,
    PrefillPoint,
    RequestFeatures,
    WorkerId,
    WorkerStatus,
)

_CHAIN = 64
_BLOCK_SIZE = 16
_NUM_COMMON, _COMMON = 8, 16
"""Common prefixes, and their blocks."""


@dataclass(frozen=True, slots=True)
class Size:
    """Of a fleet and its index."""

    num_workers: int
    num_blocks: int
    """Different ones, of all workers."""


def decision_s(size: Size, num_decisions: int) -> list[float]:
    """Seconds of each `schedule`; what workers report in between is not counted."""
    rng = Random(0)
    master = Master(RoutingConfig(max_workers=size.num_workers), rng)
    chains = _chains(size.num_blocks, rng)
    for number in range(size.num_workers):
        worker = WorkerId(f"w{number}")
        master.on_status(_status(worker), 0.0)
        held = dict.fromkeys(key for chain in chains[number :: size.num_workers] for key in chain)
        if held:
            master.on_delta(BlockDelta(worker, 1, 0, 1, tuple(held)))
    gc.collect()
    gc.freeze()
    return [_one(master, chains, number, rng) for number in range(num_decisions)]


def _one(master: Master, chains: list[tuple[BlockHash, ...]], number: int, rng: Random) -> float:
    is_known = rng.random() < 0.7
    hashes = rng.choice(chains) if is_known else _chain(f"n{number}", rng)
    now = number * 0.001
    request = RequestFeatures(str(number), _CHAIN * _BLOCK_SIZE + 5, hashes, now)
    start = time.perf_counter()
    decision = master.schedule(request, now)
    took = time.perf_counter() - start
    assert decision.outcome is Outcome.ROUTED
    assert decision.worker_id is not None
    if number >= 200:  # so many are in flight
        _finish(master, str(number - 200), decision.worker_id, now)
    return took


def _finish(master: Master, request_id: str, worker_id: WorkerId, now: float) -> None:
    point = PrefillPoint(1000, 29, 0.11)
    master.on_status(_status(worker_id, Prefilled("none", point)), now)
    master.on_finished(request_id, now)


def _status(worker_id: WorkerId, *prefilled: Prefilled) -> WorkerStatus:
    return WorkerStatus(
        worker_id, 1, num_blocks=100_000, num_free_blocks=100_000, prefilled=prefilled
    )


def _chains(num_blocks: int, rng: Random) -> list[tuple[BlockHash, ...]]:
    return [_chain(f"c{number}", rng) for number in range(num_blocks // _CHAIN)]


def _chain(name: str, rng: Random) -> tuple[BlockHash, ...]:
    num_common = _COMMON if rng.random() < 0.5 else 0
    common = rng.randrange(_NUM_COMMON)
    return tuple(
        BlockHash(
            (f"s{common}.{place}" if place < num_common else f"{name}.{place}")
            .encode()
            .ljust(32, b".")
        )
        for place in range(_CHAIN)
    )
