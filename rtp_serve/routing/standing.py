"""A fleet as its Master sees it, for people."""

from dataclasses import dataclass

from rtp_serve.routing.types import Candidate, Role, WorkerId


@dataclass(frozen=True, slots=True)
class WorkerStanding:
    """One worker at this moment."""

    worker_id: WorkerId
    role: Role
    node_id: str

    is_usable: bool
    """False of one that has been silent for too long."""

    silent_s: float
    """Since its last report."""

    wait_s: float
    """Until the work that was sent to it is done, as predicted."""

    num_in_flight: int
    """Requests there that have no first token."""

    num_decoding: int
    num_blocks: int
    num_free_blocks: int

    num_reserved_blocks: int
    """Promised to requests in flight."""

    num_cached_blocks: int
    """That the Master knows of."""

    num_tier_blocks: int
    """That it knows of in the tiers below the worker's device, counted in each."""


@dataclass(frozen=True, slots=True)
class DecisionRecord:
    """A decision that was made lately."""

    request_id: str

    age_s: float

    slo_class: str

    outcome: str

    reason: str

    worker_id: str
    """Computes the prompt; empty if nobody does."""

    decode_worker_id: str

    predicted_ttft_s: float

    num_cached_tokens: int

    candidates: tuple[Candidate, ...]
    """The cheapest ones, cheapest first."""


@dataclass(frozen=True, slots=True)
class FleetStanding:
    """All of it."""

    instance: str
    """Of the Master; another one after each of its restarts."""

    age_s: float
    """Since it began."""

    num_in_flight: int
    """Requests that were sent and have not ended."""

    workers: tuple[WorkerStanding, ...]

    decisions: tuple[DecisionRecord, ...]
    """The latest first."""
