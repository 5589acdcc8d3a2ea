"""What workers report, what a request looks like to the Master, and what it decides.

Times are seconds on the Master's clock, unless they are durations.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import NewType

import numpy as np
import numpy.typing as npt

from rtp_serve.config.routing import DEFAULT_CLASS
from rtp_serve.kv_cache.block import BlockHash

WorkerId = NewType("WorkerId", str)
"""A replica's name. It says nothing of which life of the replica it is: that is its epoch."""

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


class Role(Enum):
    """What a worker does of a request."""

    MIXED = "mixed"
    PREFILL = "prefill"
    DECODE = "decode"
    ENCODER = "encoder"
    INGRESS = "ingress"
    """Of no worker: takes requests from clients. Autoscaling plans it with the others."""


@dataclass(frozen=True, slots=True)
class PrefillPoint:
    """How long one prefill took."""

    num_new_tokens: int
    """Computed."""

    num_context_tokens: int
    """Before them, from a cache."""

    duration_s: float


@dataclass(frozen=True, slots=True)
class Prefilled:
    """A request has its first token."""

    request_id: str

    point: PrefillPoint | None
    """Its prefill; None if nobody knows how long it took."""


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """A worker's report, sent after the block deltas of the same time."""

    worker_id: WorkerId

    epoch: int
    """Another number in each life of the worker."""

    role: Role = Role.MIXED

    node_id: str = ""

    store: str = ""
    """Name of the tiers below the device that it shares with others; empty if it has none."""

    num_blocks: int = 0
    """Of its KV cache."""

    num_free_blocks: int = 0
    """That no running sequence holds; cached blocks are free."""

    num_decoding: int = 0
    """Sequences past their first token."""

    itl_s: float = 0.0
    """Measured lately; 0 if nothing decodes."""

    waiting_ids: tuple[str, ...] = ()
    """Requests without their first token, in its queue or being computed."""

    running_ids: tuple[str, ...] = ()
    """Requests past their first token, also those that were preempted since."""

    prefilled: tuple[Prefilled, ...] = ()
    """Since the last report."""

    finished_ids: tuple[str, ...] = ()
    """Since the last report, however they ended."""

    self_benchmark: tuple[PrefillPoint, ...] = ()
    """What the worker measured before it took requests."""


@dataclass(frozen=True, slots=True)
class RequestFeatures:
    """What the Master knows of a request: nothing of its text."""

    request_id: str

    num_tokens: int
    """Of the prompt; at least 1."""

    block_hashes: tuple[BlockHash, ...]
    """Of its full blocks, from the beginning."""

    arrival_s: float

    max_new_tokens: int = 256

    slo_class: str = DEFAULT_CLASS

    priority: int = 50
    """1 to 100; more is more urgent."""

    tenant: str = ""

    excluded: frozenset[WorkerId] = frozenset()
    """Workers that have failed it already."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One worker's numbers in a decision."""

    worker_id: WorkerId
    cost: float
    wait_s: float
    prefill_s: float
    load_s: float
    num_cached_tokens: int


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """The workers that could take a request: arrays of one element each, [num_candidates].

    They are the decision's own and are not written to.
    """

    worker_ids: tuple[WorkerId, ...]

    slots: Ints
    """Their places in the Master's tables."""

    wait_s: Floats
    """Until the work ahead is done."""

    prefill_s: Floats
    """Predicted for what it would have to compute, without `load_s`."""

    load_s: Floats
    """For blocks that it would take from a tier below the device."""

    num_cached_tokens: Ints
    """That it need not compute."""

    num_in_flight: Ints
    """Requests there that have no first token."""

    num_decoding: Ints

    free_fraction: Floats
    """Of its KV blocks, those neither held nor promised."""

    num_tokens: int
    """Of the prompt."""

    num_remote_tokens: int
    """The longest prefix that any worker has."""

    mean_prefill_s: float
    """Of lately routed requests."""

    @property
    def ttft_s(self) -> Floats:
        """Predicted, [num_candidates]."""
        return self.wait_s + self.prefill_s + self.load_s

    def __len__(self) -> int:
        return len(self.worker_ids)


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """What a policy makes of candidates."""

    position: int
    """Of the chosen candidate."""

    costs: Floats
    """By which it was chosen; the least wins. [num_candidates]"""

    reason: str


@dataclass(frozen=True, slots=True)
class Replication:
    """Advice: bring these blocks, a chain from its beginning, to `target`."""

    target: WorkerId
    source: WorkerId
    """Has them, or is about to."""
    hashes: tuple[BlockHash, ...]
    reason: str


class Outcome(Enum):
    ROUTED = "routed"
    REJECTED = "rejected"
    NO_WORKER = "no worker"


@dataclass(frozen=True, slots=True, eq=False)
class Decision:
    """Where a request goes, or why nowhere, with the numbers behind it."""

    request_id: str

    outcome: Outcome

    reason: str

    worker_id: WorkerId | None = None
    """Computes the prompt, and decodes unless `decode_worker_id` says otherwise."""

    decode_worker_id: WorkerId | None = None

    predicted_ttft_s: float = 0.0

    num_cached_tokens: int = 0

    retry_after_s: float = 0.0
    """Of a rejection: when it would have been taken, by what is known now."""

    candidates: Candidates | None = None

    costs: Floats | None = None

    slo_class: str = DEFAULT_CLASS
    """Of the request."""

    replication: Replication | None = None
    """What else would be worth doing; `Master.take_advice` has it for its target."""

    def table(self) -> Iterator[Candidate]:
        """All candidates, the cheapest first."""
        if self.candidates is None or self.costs is None:
            return
        found = self.candidates
        for at in np.argsort(self.costs, kind="stable").tolist():
            yield Candidate(
                found.worker_ids[at],
                float(self.costs[at]),
                float(found.wait_s[at]),
                float(found.prefill_s[at]),
                float(found.load_s[at]),
                int(found.num_cached_tokens[at]),
            )
