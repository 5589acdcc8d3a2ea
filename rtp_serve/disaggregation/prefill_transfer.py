"""The prefill side of one attempt, see `lifecycle`."""

from collections.abc import Sequence

from rtp_serve.disaggregation.lifecycle import (
    Bump,
    PrefillAction,
    PrefillState,
    Release,
    SendAccepted,
    SendFailed,
    SendFirstToken,
    SendReady,
    StopComputing,
    TransferLimits,
)
from rtp_serve.disaggregation.protocol import Span, TransferCode, TransferKey

Actions = tuple[PrefillAction, ...]

_ENGINE_WORKS = frozenset({PrefillState.ADMITTED, PrefillState.COMPUTING})
_ENDED = frozenset({PrefillState.RELEASED, PrefillState.EXPIRED, PrefillState.ABORTED})


class PrefillTransfer:
    """Methods are events; each returns what is to be done, in this order. For one thread.

    Whoever makes one has a slot for it, which is taken back with `Bump`.
    """

    def __init__(
        self, key: TransferKey, deadline_s: float, limits: TransferLimits, now_s: float
    ) -> None:
        """`deadline_s` is the request's, in this process's time."""
        self.key = key
        self.state = PrefillState.ADMITTED
        self.code: TransferCode | None = None
        """Why it ended, if it came to nothing."""

        self._deadline_s = deadline_s
        self._lease_s = limits.lease_s
        self._lease_end_s = now_s + limits.lease_s
        self._holds = False

    @property
    def is_over(self) -> bool:
        return self.state in _ENDED

    @property
    def next_deadline_s(self) -> float | None:
        """When `tick` is wanted; None for not at all."""
        return None if self.is_over else min(self._deadline_s, self._lease_end_s)

    def got_blocks(self, first_block: int, block_ids: Sequence[int]) -> Actions:
        """The engine holds more blocks of the chain for the transfer, beside the sequence's own
        hold. All are released together; those that come too late, at once."""
        if self.is_over:
            return (Release(),)
        self.state = PrefillState.COMPUTING
        self._holds = True
        return (SendAccepted(self.key, first_block, tuple(block_ids)),)

    def computed(self, blocks: Span, layers: Span) -> Actions:
        """These layers of these blocks, indexes in the chain, hold their final bytes."""
        if self.state is not PrefillState.COMPUTING:
            return ()
        return (SendReady(self.key, blocks, layers),)

    def first_token(self) -> Actions:
        """The engine has it, and so all blocks are computed."""
        if self.state not in _ENGINE_WORKS:
            return ()
        self.state = PrefillState.PUBLISHED
        return (SendFirstToken(self.key),)

    def engine_failed(self, code: TransferCode) -> Actions:
        """The engine has ended the request without a first token."""
        if self.state not in _ENGINE_WORKS:
            return ()
        return (SendFailed(self.key, code), *self._end(PrefillState.ABORTED, code))

    def received(self, key: TransferKey) -> Actions:
        """The decode side has all of it."""
        if key != self.key or self.state is not PrefillState.PUBLISHED:
            return ()
        return self._end(PrefillState.RELEASED, None)

    def aborted(self, key: TransferKey) -> Actions:
        """The decode side wants no more of it."""
        if key != self.key or self.is_over:
            return ()
        return self._stop(PrefillState.ABORTED, TransferCode.CANCELLED)

    def lost(self) -> Actions:
        """The connection to the decode side is closed."""
        return () if self.is_over else self._stop(PrefillState.ABORTED, TransferCode.PEER_LOST)

    def heard(self, now_s: float) -> None:
        """The decode side has said anything at all."""
        self._lease_end_s = now_s + self._lease_s

    def tick(self, now_s: float) -> Actions:
        """Time has passed."""
        if self.is_over:
            return ()
        if now_s >= self._deadline_s:
            return self._expire(TransferCode.TRANSFER_TIMEOUT)
        if now_s >= self._lease_end_s:
            return self._expire(TransferCode.PEER_LOST)
        return ()

    def _expire(self, code: TransferCode) -> Actions:
        """The decode side may be stopped and go on later; then it reads this."""
        return (SendFailed(self.key, code), *self._stop(PrefillState.EXPIRED, code))

    def _stop(self, state: PrefillState, code: TransferCode) -> Actions:
        stop = (StopComputing(),) if self.state in _ENGINE_WORKS else ()
        return (*stop, *self._end(state, code))

    def _end(self, state: PrefillState, code: TransferCode | None) -> Actions:
        """The slot first: what is read after it is discarded, so blocks can go to anybody."""
        self.state = state
        self.code = code
        held, self._holds = self._holds, False
        return (Bump(), Release()) if held else (Bump(),)
