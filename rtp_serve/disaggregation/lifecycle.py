"""The life of a transfer, as two state machines that touch nothing: events in, actions out.

The decode side (`decode_transfer`), one for a request, over all attempts:

    1 RESERVING   the engine is asked for blocks
    2 ASKED       a prefill replica is asked for the prompt (`Ask`); it has not answered
    3 RECEIVING   layers of blocks become ready, and are copied as they do (`Copy`)
    4 RECEIVED    every layer of every block is here; the first token is not
    5 SETTLING    the attempt has failed; its copies are still under way. Then 2 again, with
                  the next epoch and the blocks that are complete, or 6 or 7
    6 DONE        the blocks are the engine's (`Deposit`); the prefill side may free its own
    7 FAILED      given up (`GiveUp`); what is complete is the engine's, the rest is free
    8 CANCELLED   nobody wants it any more

The prefill side (`prefill_transfer`), one for an attempt:

    1 ADMITTED    the request waits in the engine; no blocks yet
    2 COMPUTING   blocks are held, layers are told as they are computed
    3 PUBLISHED   the first token is out; blocks are held until the decode side has them
    4 RELEASED    it has them
    5 EXPIRED     it was silent for a lease, or the deadline has passed
    6 ABORTED     it wanted no more, its connection broke, or the engine here has failed

Every reservation ends with exactly one `Deposit` or `Release`, never while a copy into it is under
way. Every publication ends with exactly one `Bump` and then, if it held blocks, one `Release`.

Nothing here reads a clock: `now_s` comes with the events, and `next_deadline_s` says when `tick` is
wanted. Events of an epoch that is over are dropped, and so are those that come twice.
"""

from dataclasses import dataclass
from enum import Enum

from rtp_serve.disaggregation.protocol import Span, TransferCode, TransferKey


class DecodeState(Enum):
    """See the module."""

    RESERVING = 1
    ASKED = 2
    RECEIVING = 3
    RECEIVED = 4
    SETTLING = 5
    DONE = 6
    FAILED = 7
    CANCELLED = 8


class PrefillState(Enum):
    """See the module."""

    ADMITTED = 1
    COMPUTING = 2
    PUBLISHED = 3
    RELEASED = 4
    EXPIRED = 5
    ABORTED = 6


@dataclass(frozen=True, slots=True)
class TransferLimits:
    """How long and how often."""

    lease_s: float = 3.0
    """So long may the other side be silent."""

    max_attempts: int = 2
    """Prefill replicas that are asked for one prompt."""

    def __post_init__(self) -> None:
        assert self.lease_s > 0, f"a lease of {self.lease_s} s"
        assert self.max_attempts >= 1, f"{self.max_attempts} attempts"

    @property
    def heartbeat_s(self) -> float:
        """Time between two heartbeats."""
        return self.lease_s / 6


@dataclass(frozen=True, slots=True)
class Ask:
    """Choose a prefill replica, another one than in epochs before, and ask it for the prompt."""

    key: TransferKey
    num_blocks_present: int
    """From the chain's beginning: it need not send these."""


@dataclass(frozen=True, slots=True)
class Copy:
    """Copy these layers, see that the blocks were not given back meanwhile, and tell `copied`."""

    key: TransferKey
    blocks: Span
    """Indexes in the chain."""

    source_block_ids: tuple[int, ...]
    target_block_ids: tuple[int, ...]
    layers: Span


@dataclass(frozen=True, slots=True)
class Forward:
    """The first token, which this event brought, goes to the client. Once in a transfer."""


@dataclass(frozen=True, slots=True)
class SendReceived:
    key: TransferKey


@dataclass(frozen=True, slots=True)
class SendAbort:
    key: TransferKey


@dataclass(frozen=True, slots=True)
class Deposit:
    """So many blocks of the reservation are complete: let them be found. The reservation is the
    engine's, which holds it until the sequence has started; the rest of it is free."""

    num_blocks: int


@dataclass(frozen=True, slots=True)
class GiveUp:
    """There will be no more attempts; whoever drives decides what becomes of the request."""

    code: TransferCode


@dataclass(frozen=True, slots=True)
class Release:
    """The blocks that the transfer holds are free."""


@dataclass(frozen=True, slots=True)
class SendAccepted:
    """More blocks of the chain have their place."""

    key: TransferKey
    first_block: int
    block_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SendReady:
    key: TransferKey
    blocks: Span
    layers: Span


@dataclass(frozen=True, slots=True)
class SendFirstToken:
    """The one that this event brought."""

    key: TransferKey


@dataclass(frozen=True, slots=True)
class SendFailed:
    key: TransferKey
    code: TransferCode


@dataclass(frozen=True, slots=True)
class StopComputing:
    """Abort the request in the engine here."""


@dataclass(frozen=True, slots=True)
class Bump:
    """Give the slot its next value: from now on every copy out of these blocks is discarded."""


DecodeAction = Ask | Copy | Forward | SendReceived | SendAbort | Deposit | GiveUp | Release
PrefillAction = (
    SendAccepted | SendReady | SendFirstToken | SendFailed | StopComputing | Bump | Release
)
