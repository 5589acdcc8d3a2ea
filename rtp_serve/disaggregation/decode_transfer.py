"""The decode side of a transfer, see `lifecycle`."""

from collections.abc import Sequence

from rtp_serve.disaggregation.lifecycle import (
    Ask,
    Copy,
    DecodeAction,
    DecodeState,
    Deposit,
    Forward,
    GiveUp,
    Release,
    SendAbort,
    SendReceived,
    TransferLimits,
)
from rtp_serve.disaggregation.progress import Progress
from rtp_serve.disaggregation.protocol import Span, TransferCode, TransferKey

Actions = tuple[DecodeAction, ...]

_ACTIVE = frozenset({DecodeState.ASKED, DecodeState.RECEIVING, DecodeState.RECEIVED})
"""An attempt is under way."""

_ENDED = frozenset({DecodeState.DONE, DecodeState.FAILED, DecodeState.CANCELLED})


class DecodeTransfer:
    """Methods are events; each returns what is to be done, in this order. For one thread."""

    def __init__(
        self, transfer: str, num_layers: int, deadline_s: float, limits: TransferLimits
    ) -> None:
        """`deadline_s` is the request's, absolute; no attempt gets a new one."""
        self.state = DecodeState.RESERVING
        self.code: TransferCode | None = None
        """Of the last failure."""

        self.has_first_token = False
        self._transfer = transfer
        self._num_layers = num_layers
        self._deadline_s = deadline_s
        self._limits = limits
        self._epoch = 0
        self._lease_end_s = 0.0
        self._progress: Progress | None = None
        self._holds = False
        self._num_copying = 0

    @property
    def key(self) -> TransferKey:
        """Of the current attempt, or the last one; epoch 0 is none."""
        return TransferKey(self._transfer, self._epoch)

    @property
    def is_over(self) -> bool:
        """It has ended, holds nothing and waits for no copy; it may be forgotten once no answer to
        a reservation is due."""
        return self.state in _ENDED and not self._holds

    @property
    def next_deadline_s(self) -> float | None:
        """When `tick` is wanted; None for not at all."""
        if self.state in _ENDED:
            return None
        if self.state in _ACTIVE:
            return min(self._deadline_s, self._lease_end_s)
        return self._deadline_s

    def reserved(self, first_block: int, block_ids: Sequence[int], now_s: float) -> Actions:
        """The engine holds these blocks for the chain from `first_block` on; before, it has all."""
        assert self._progress is None, f"{self.key} is reserved twice"
        assert block_ids, "nothing is reserved"
        if self.state is not DecodeState.RESERVING:
            return (Release(),)
        self._holds = True
        self._progress = Progress(first_block, tuple(block_ids), self._num_layers)
        return (self._ask(now_s),)

    def not_reserved(self) -> Actions:
        """The engine has no blocks for it, or the chain is there already."""
        if self.state is not DecodeState.RESERVING:
            return ()
        return self._give_up(TransferCode.NO_RESERVATION)

    def accepted(
        self, key: TransferKey, first_block: int, block_ids: Sequence[int], now_s: float
    ) -> Actions:
        """The prefill replica has given blocks of its own to the chain."""
        if not self._hears(key, now_s):
            return ()
        if not self._known.add_source(first_block, block_ids):
            return self._fail(TransferCode.BAD_FRAME, now_s)
        if self.state is DecodeState.ASKED:
            self.state = DecodeState.RECEIVING
        return ()

    def ready(self, key: TransferKey, blocks: Span, layers: Span, now_s: float) -> Actions:
        """Layers of blocks, indexes in the chain, hold their final bytes there."""
        if not self._hears(key, now_s):
            return ()
        if not self._known.is_known(blocks, layers):
            return self._fail(TransferCode.BAD_FRAME, now_s)
        pieces = self._known.request(blocks, layers)
        self._num_copying += len(pieces)
        return tuple(
            Copy(key, span, *self._known.block_ids(span), layers=run) for span, run in pieces
        )

    def copied(self, copy: Copy, code: TransferCode | None, now_s: float) -> Actions:
        """A copy has ended: its bytes are good (None), or not. Told once for each `Copy`, also for
        one that was not begun."""
        assert self._num_copying > 0, f"{copy} was not asked for"
        self._num_copying -= 1
        # Epochs wait for copies, so it is the current one.
        assert copy.key == self.key, f"{copy} is of an epoch that is over"
        if code is None:
            self._known.complete(copy.blocks, copy.layers)
        elif self.state in _ACTIVE:
            return self._fail(code, now_s)
        return self._advance(now_s)

    def first_token(self, key: TransferKey, now_s: float) -> Actions:
        """It goes on at once, whatever is still to come."""
        if not self._hears(key, now_s) or self.has_first_token:
            return ()
        self.has_first_token = True
        return (Forward(), *self._advance(now_s))

    def heard(self, key: TransferKey, now_s: float) -> None:
        """The peer of this attempt has said anything at all."""
        self._hears(key, now_s)

    def failed(self, key: TransferKey, code: TransferCode, now_s: float) -> Actions:
        """The peer has refused, or gives up, and knows of it."""
        if not self._hears(key, now_s):
            return ()
        return self._fail(code, now_s, is_told=False)

    def lost(self, key: TransferKey, now_s: float) -> Actions:
        """The connection to the peer is closed, or the call to it has failed."""
        return self.failed(key, TransferCode.PEER_LOST, now_s)

    def no_peer(self, key: TransferKey) -> Actions:
        """There is nobody to ask: no more attempts."""
        if key != self.key or self.state is not DecodeState.ASKED:
            return ()
        return self._end_failed(TransferCode.NO_PEER)

    def cancel(self) -> Actions:
        """Nobody wants the answer."""
        if self.state in _ENDED:
            return ()
        abort = self._abort()
        self.state = DecodeState.CANCELLED
        self.code = TransferCode.CANCELLED
        return (*abort, *self._release())

    def tick(self, now_s: float) -> Actions:
        """Time has passed."""
        if self.state in _ENDED:
            return ()
        if now_s >= self._deadline_s:
            abort = self._abort()
            return (*abort, *self._give_up(TransferCode.TRANSFER_TIMEOUT))
        if self.state in _ACTIVE and now_s >= self._lease_end_s:
            return self._fail(TransferCode.PEER_LOST, now_s)
        return ()

    @property
    def _known(self) -> Progress:
        assert self._progress is not None, f"{self.key} has no blocks"
        return self._progress

    def _hears(self, key: TransferKey, now_s: float) -> bool:
        """Whether this is of the attempt under way; if so, its peer lives."""
        if key != self.key or self.state not in _ACTIVE:
            return False
        self._lease_end_s = now_s + self._limits.lease_s
        return True

    def _ask(self, now_s: float) -> Ask:
        self._epoch += 1
        self.state = DecodeState.ASKED
        self._lease_end_s = now_s + self._limits.lease_s
        return Ask(self.key, self._known.num_present)

    def _abort(self) -> Actions:
        return (SendAbort(self.key),) if self.state in _ACTIVE else ()

    def _fail(self, code: TransferCode, now_s: float, *, is_told: bool = True) -> Actions:
        """The attempt has; the transfer perhaps not."""
        abort = self._abort() if is_told else ()
        self.state = DecodeState.SETTLING
        self.code = code
        return (*abort, *self._advance(now_s))

    def _advance(self, now_s: float) -> Actions:
        """What follows now from what is here."""
        if self._num_copying:
            return ()
        if self.state in _ENDED:
            return self._release()
        if self.state is DecodeState.SETTLING:
            return self._settle(now_s)
        if self._known.is_complete:
            self.state = DecodeState.RECEIVED
            if self.has_first_token:
                return (SendReceived(self.key), *self._deposit(DecodeState.DONE))
        return ()

    def _settle(self, now_s: float) -> Actions:
        if self._known.is_complete:  # the first token can be computed here
            return self._deposit(DecodeState.DONE)
        if self._epoch < self._limits.max_attempts and now_s < self._deadline_s:
            self._known.begin_attempt()
            return (self._ask(now_s),)
        assert self.code is not None, "an attempt failed for no reason"
        return self._end_failed(self.code)

    def _deposit(self, state: DecodeState) -> Actions:
        self.state = state
        self._holds = False
        return (Deposit(self._known.num_complete),)

    def _end_failed(self, code: TransferCode) -> Actions:
        """No copy is under way; what is complete is of use."""
        if self._known.num_complete:
            self.code = code
            return (*self._deposit(DecodeState.FAILED), GiveUp(code))
        return self._give_up(code)

    def _give_up(self, code: TransferCode) -> Actions:
        self.state = DecodeState.FAILED
        self.code = code
        return (*self._release(), GiveUp(code))

    def _release(self) -> Actions:
        """If there is anything to release, and nothing is copied into it."""
        if not self._holds or self._num_copying:
            return ()
        self._holds = False
        return (Release(),)
