"""What travels between the Master, the replicas and the ingresses: msgpack with a schema.
`channel_wire` has the frames around it."""

import msgspec

from deployments.channels.framing import decoded
from rtp_serve.kv_cache.block import BlockHash
from rtp_serve.kv_store.client import TierPosition
from rtp_serve.routing.block_stream import Tier
from rtp_serve.routing.report import WorkerReport
from rtp_serve.routing.snapshot import RoutingSnapshot
from rtp_serve.routing.standing import FleetStanding
from rtp_serve.routing.types import Decision, Outcome, RequestFeatures, WorkerId


class Heard(msgspec.Struct, frozen=True, array_like=True):
    """The answer to a report."""

    instance: str
    """Of the Master; another one after each of its restarts."""

    needs_snapshot: bool
    """Whether the next report must bring all blocks."""

    to_prefetch: tuple[tuple[BlockHash, ...], ...] = ()
    """Chains, from their beginnings, that are worth having there."""

    tiers: dict[Tier, TierPosition] = {}
    """What the Master knows of the worker's store."""


class Ruling(msgspec.Struct, frozen=True, array_like=True):
    """What an ingress must know of a Decision."""

    outcome: Outcome
    reason: str
    worker_id: WorkerId | None = None
    decode_worker_id: WorkerId | None = None
    retry_after_s: float = 0.0


class Ended(msgspec.Struct, frozen=True, array_like=True):
    """What became of requests, from who waited for them, and workers that leave."""

    lost: tuple[str, ...] = ()
    """Their workers could not be reached, or refused them."""

    finished: tuple[str, ...] = ()

    left: tuple[WorkerId, ...] = ()
    """Workers that are gone for good."""


class SnapshotWanted(msgspec.Struct, frozen=True, array_like=True):
    """From an ingress: what has changed?"""

    with_blocks: bool = True

    known: dict[str, tuple[int, int]] = {}
    """Epoch and version of the holders that it has, the longest known first."""


class SnapshotPart(msgspec.Struct, frozen=True, array_like=True):
    """All workers, and the blocks of some of those holders whose blocks have changed. Each is
    whole; who asks again gets others."""

    instance: str

    is_ready: bool
    """False as long as the Master waits for the first word of its workers."""

    snapshot: RoutingSnapshot


Message = WorkerReport | Heard | RequestFeatures | Ruling | Ended | SnapshotWanted | SnapshotPart

_encoder = msgspec.msgpack.Encoder()
_report = msgspec.msgpack.Decoder(WorkerReport)
_heard = msgspec.msgpack.Decoder(Heard)
_features = msgspec.msgpack.Decoder(RequestFeatures)
_ruling = msgspec.msgpack.Decoder(Ruling)
_ended = msgspec.msgpack.Decoder(Ended)
_wanted = msgspec.msgpack.Decoder(SnapshotWanted)
_part = msgspec.msgpack.Decoder(SnapshotPart)
_standing = msgspec.msgpack.Decoder(FleetStanding)


def encode(message: Message | FleetStanding) -> bytes:
    return _encoder.encode(message)


def ruling_of(decision: Decision) -> Ruling:
    return Ruling(
        decision.outcome,
        decision.reason,
        decision.worker_id,
        decision.decode_worker_id,
        decision.retry_after_s,
    )


# All raise WireError.


def decode_report(data: bytes) -> WorkerReport:
    return decoded(_report, data)


def decode_heard(data: bytes) -> Heard:
    return decoded(_heard, data)


def decode_features(data: bytes) -> RequestFeatures:
    return decoded(_features, data)


def decode_ruling(data: bytes) -> Ruling:
    return decoded(_ruling, data)


def decode_ended(data: bytes) -> Ended:
    return decoded(_ended, data)


def decode_wanted(data: bytes) -> SnapshotWanted:
    return decoded(_wanted, data)


def decode_part(data: bytes) -> SnapshotPart:
    return decoded(_part, data)


def decode_standing(data: bytes) -> FleetStanding:
    return decoded(_standing, data)
