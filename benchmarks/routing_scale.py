"""How long a simulation of many replicas takes, and how much memory.

Chats over 1,000 replicas, say, each of which is as busy as in a fleet of any size: chats begin at a
rate in proportion.
"""

import resource
import time
from dataclasses import dataclass
from random import Random

from rtp_serve.config.routing import RoutingConfig
from rtp_serve.simulation.chats import Conversations, turns
from rtp_serve.simulation.engine_model import EngineModel
from rtp_serve.simulation.fleet import SimulatedFleet
from rtp_serve.simulation.report import summarise

_CHATS_PER_S = 0.8
"""That begin at each replica."""


@dataclass(frozen=True, slots=True)
class Replayed:
    """One simulation."""

    num_requests: int
    seconds: float
    """Of a processor, for the replay and the making of its traffic."""
    peak_bytes: int
    """Of the process."""
    hit_rate: float


def replayed(num_workers: int, num_requests: int) -> Replayed:
    """About so many requests: chats are of four turns on average."""
    shape = Conversations(
        num_conversations=num_requests // 4,
        conversations_per_s=_CHATS_PER_S * num_workers,
        num_system_prompts=64,
    )
    config = RoutingConfig(block_size=shape.block_size, max_workers=num_workers)
    fleet = SimulatedFleet(config, [EngineModel(num_blocks=4000)] * num_workers, Random(1))
    start_s = time.process_time()
    served = fleet.play(turns(shape, Random(1)))
    seconds = time.process_time() - start_s
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    return Replayed(len(served), seconds, peak, summarise(served, 0.1).hit_rate)
