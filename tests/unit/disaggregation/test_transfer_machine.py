"""Both sides, their memories, a network that delays, repeats, loses and breaks, and random times.

Whatever is given back is overwritten at once. So a block with bytes of anything but the prompt, and
a copy into a block that is another's, show.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from rtp_serve.disaggregation.decode_transfer import DecodeTransfer
from rtp_serve.disaggregation.lifecycle import (
    Ask,
    Bump,
    Copy,
    DecodeAction,
    Deposit,
    Forward,
    GiveUp,
    PrefillAction,
    Release,
    SendAbort,
    SendAccepted,
    SendFailed,
    SendFirstToken,
    SendReady,
    SendReceived,
    StopComputing,
    TransferLimits,
)
from rtp_serve.disaggregation.prefill_transfer import PrefillTransfer
from rtp_serve.disaggregation.protocol import TransferCode, TransferKey
from rtp_serve.disaggregation.transport.parts import BlockCopier
from rtp_serve.disaggregation.transport.slots import SlotReader, Slots, slots_bytes
from tests.unit.disaggregation.memories import (
    HALVES,
    NUM_BLOCKS,
    NUM_LAYERS,
    WHOLE,
    content,
    empty,
    has,
    write,
)

CHAIN = 5
"""Blocks of the prompt."""

GROUP = 2
"""Layers that are announced together."""

ALL = (0, NUM_LAYERS)
LIMITS = TransferLimits(lease_s=3.0, max_attempts=3)
DEADLINE_S = 12.0
FREED = 99
"""Content of what is nobody's."""


@dataclass
class Prefill:
    """A prefill replica that was asked, its engine, and the channel in both directions."""

    transfer: PrefillTransfer
    first_block: int
    memory = None
    to_decode: deque[PrefillAction | None] = field(default_factory=deque)
    """None is a heartbeat."""

    to_prefill: deque[SendReceived | SendAbort | None] = field(default_factory=deque)
    is_connected: bool = True
    is_computing: bool = True
    has_told: bool = False
    num_groups: int = 0
    """Layer groups of all blocks that are computed."""

    held: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.memory = empty(HALVES)
        words = memoryview(bytearray(slots_bytes(1)))
        self.slots = Slots(words)
        slot = self.slots.allocate()
        assert slot is not None
        self.slot = slot
        self.reader = SlotReader(words)

    def block_ids(self) -> list[int]:
        """Of the chain's blocks from the first on; not in the chain's order."""
        return list(reversed(range(NUM_BLOCKS)))[: CHAIN - self.first_block]

    def do(self, actions: Iterable[PrefillAction]) -> None:
        for action in actions:
            match action:
                case Bump():
                    self.slots.retire(self.slot)
                case Release():
                    assert not self.reader.has(self.slot), "released before the slot was bumped"
                    assert self.held, "released twice"
                    for block_id in self.held:
                        write(self.memory, block_id, content(FREED), ALL)
                    self.held = []
                case StopComputing():
                    assert self.is_computing
                    self.is_computing = False
                case _:
                    if self.is_connected:
                        self.to_decode.append(action)


class TransferMachine(RuleBasedStateMachine):
    @initialize(first_block=st.integers(0, 2), num_wanted=st.integers(1, 3))
    def start(self, first_block: int, num_wanted: int) -> None:
        self.now_s = 0.0
        self.first_block = first_block
        self.memory = empty(WHOLE)
        self.targets = list(range(num_wanted))
        self.decode = DecodeTransfer("t", NUM_LAYERS, DEADLINE_S, LIMITS)
        self.prefills: dict[TransferKey, Prefill] = {}
        self.copies: list[tuple[Copy, bool]] = []
        """With whether they are half done."""

        self.key = self.decode.key
        self.is_reserved = False
        self.num_ends = 0
        """Deposits and releases."""

        self.num_outcomes = 0
        """Deposits of everything and give-ups: what the driver waits for."""

        self.is_cancelled = False
        self.num_forwarded = 0

    # What the decode side's driver does.

    def do(self, actions: Iterable[DecodeAction]) -> None:
        for action in actions:
            match action:
                case Ask(key, num_blocks_present):
                    assert not self.copies, "an epoch began while copies of another were under way"
                    assert key not in self.prefills
                    self.key = key
                    for index in range(num_blocks_present - self.first_block):
                        assert has(self.memory, self.targets[index], self.first_block + index)
                    transfer = PrefillTransfer(key, DEADLINE_S, LIMITS, self.now_s)
                    self.prefills[key] = Prefill(transfer, num_blocks_present)
                case Copy():
                    assert action.key == self.key
                    self.copies.append((action, False))
                case SendReceived(key) | SendAbort(key):
                    assert key == self.key
                    if self.prefills[key].is_connected:
                        self.prefills[key].to_prefill.append(action)
                case Deposit(num_blocks):
                    self.end(num_blocks)
                case Release():
                    self.end(0)
                case Forward():
                    self.num_forwarded += 1
                    assert self.num_forwarded == 1
                case GiveUp():
                    self.num_outcomes += 1

    def end(self, num_deposited: int) -> None:
        assert self.is_reserved
        assert not self.copies, "blocks were given away while copies into them were under way"
        self.num_ends += 1
        assert self.num_ends == 1
        for index, block_id in enumerate(self.targets):
            if index < num_deposited:
                assert has(self.memory, block_id, self.first_block + index), "wrong bytes"
            else:
                write(self.memory, block_id, content(FREED), ALL)
        if num_deposited == len(self.targets):
            self.num_outcomes += 1

    @precondition(lambda self: not self.is_reserved)
    @rule()
    def reserve(self) -> None:
        self.is_reserved = True
        self.do(self.decode.reserved(self.first_block, self.targets, self.now_s))

    @precondition(lambda self: self.copies)
    @rule(data=st.data(), is_whole=st.booleans())
    def copy(self, data: st.DataObject, is_whole: bool) -> None:
        """Half of the bytes, or the rest; and then the look at the slot."""
        place = data.draw(st.integers(0, len(self.copies) - 1))
        copy, is_begun = self.copies[place]
        prefill = self.prefills[copy.key]
        copier = BlockCopier(prefill.memory, self.memory)
        begin, end = copy.layers
        middle = (begin + end) // 2
        if not is_begun:
            copier.copy(copy.source_block_ids, copy.target_block_ids, (begin, middle))
            self.copies[place] = (copy, True)
            if not is_whole:
                return
        copier.copy(copy.source_block_ids, copy.target_block_ids, (middle, end))
        del self.copies[place]
        code = None if prefill.reader.has(prefill.slot) else TransferCode.MISMATCH
        self.do(self.decode.copied(copy, code, self.now_s))

    @rule()
    def cancel(self) -> None:
        if not self.num_outcomes:
            self.is_cancelled = True
        self.do(self.decode.cancel())

    # What the prefill side's engine does.

    def asked(self, data: st.DataObject) -> Prefill:
        return self.prefills[data.draw(st.sampled_from(sorted(self.prefills, key=repr)))]

    @precondition(lambda self: self.prefills)
    @rule(data=st.data(), num_blocks=st.integers(1, CHAIN))
    def give_blocks(self, data: st.DataObject, num_blocks: int) -> None:
        """Also after an abort: the engine did not know of it."""
        prefill = self.asked(data)
        ids = prefill.block_ids()
        have = len(prefill.held)
        if prefill.num_groups or have == len(ids) or not (prefill.is_computing or not have):
            return
        more = ids[have : have + num_blocks]
        prefill.held += more
        prefill.do(prefill.transfer.got_blocks(prefill.first_block + have, more))

    @precondition(lambda self: self.prefills)
    @rule(data=st.data())
    def compute(self, data: st.DataObject) -> None:
        prefill = self.asked(data)
        ids = prefill.block_ids()
        layers = (prefill.num_groups * GROUP, (prefill.num_groups + 1) * GROUP)
        is_possible = len(prefill.held) == len(ids) and layers[1] <= NUM_LAYERS
        if not (prefill.is_computing and is_possible):
            return
        for index, block_id in enumerate(ids):
            tag = prefill.first_block + index
            write(prefill.memory, block_id, content(tag, layers), layers)
        prefill.num_groups += 1
        prefill.do(prefill.transfer.computed((prefill.first_block, CHAIN), layers))

    @precondition(lambda self: self.prefills)
    @rule(data=st.data(), is_failing=st.booleans())
    def end_computing(self, data: st.DataObject, is_failing: bool) -> None:
        prefill = self.asked(data)
        if not prefill.is_computing:
            return
        if is_failing:
            prefill.is_computing = False
            prefill.do(prefill.transfer.engine_failed(TransferCode.PEER_FAILED))
        elif prefill.num_groups * GROUP == NUM_LAYERS:
            prefill.is_computing = False
            prefill.do(prefill.transfer.first_token())

    # What the network does.

    @precondition(lambda self: self.prefills)
    @rule(data=st.data(), fate=st.sampled_from(["once", "once", "once", "twice", "lost"]))
    def deliver_to_decode(self, data: st.DataObject, fate: str) -> None:
        prefill = self.asked(data)
        if prefill.to_decode:
            frame = prefill.to_decode.popleft()
            for _ in range({"once": 1, "twice": 2, "lost": 0}[fate]):
                self.hear(prefill.transfer.key, frame)

    def hear(self, key: TransferKey, frame: PrefillAction | None) -> None:
        decode, now_s = self.decode, self.now_s
        match frame:
            case SendAccepted(_, first_block, block_ids):
                self.do(decode.accepted(key, first_block, block_ids, now_s))
            case SendReady(_, blocks, layers):
                self.do(decode.ready(key, blocks, layers, now_s))
            case SendFirstToken():
                self.do(decode.first_token(key, now_s))
            case SendFailed(_, code):
                self.do(decode.failed(key, code, now_s))
            case _:
                decode.heard(key, now_s)

    @precondition(lambda self: self.prefills)
    @rule(data=st.data(), fate=st.sampled_from(["once", "once", "once", "twice", "lost"]))
    def deliver_to_prefill(self, data: st.DataObject, fate: str) -> None:
        prefill = self.asked(data)
        if prefill.to_prefill:
            frame = prefill.to_prefill.popleft()
            for _ in range({"once": 1, "twice": 2, "lost": 0}[fate]):
                prefill.transfer.heard(self.now_s)
                match frame:
                    case SendReceived(key):
                        prefill.do(prefill.transfer.received(key))
                    case SendAbort(key):
                        prefill.do(prefill.transfer.aborted(key))

    @precondition(lambda self: self.prefills)
    @rule(data=st.data())
    def cut(self, data: st.DataObject) -> None:
        prefill = self.asked(data)
        prefill.is_connected = False
        prefill.to_decode.clear()
        prefill.to_prefill.clear()
        self.do(self.decode.lost(prefill.transfer.key, self.now_s))
        prefill.do(prefill.transfer.lost())

    @precondition(lambda self: self.prefills)
    @rule()
    def beat(self) -> None:
        for prefill in self.prefills.values():
            if prefill.is_connected:
                prefill.to_decode.append(None)
                prefill.to_prefill.append(None)

    @rule(seconds=st.sampled_from([0.5, 1.0, 3.0]))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds
        if self.now_s >= (self.decode.next_deadline_s or float("inf")):
            self.do(self.decode.tick(self.now_s))

    @precondition(lambda self: self.prefills)
    @rule(data=st.data())
    def tick(self, data: st.DataObject) -> None:
        """One that is stopped does not."""
        prefill = self.asked(data)
        prefill.do(prefill.transfer.tick(self.now_s))

    def teardown(self) -> None:
        """Everybody goes on, the deadline passes, and nothing is left."""
        if not hasattr(self, "decode"):
            return
        self.now_s = DEADLINE_S
        self.do(self.decode.tick(self.now_s))
        while self.copies:
            copy, _ = self.copies.pop()
            self.do(self.decode.copied(copy, TransferCode.CANCELLED, self.now_s))
        assert self.decode.is_over
        assert self.decode.next_deadline_s is None
        assert self.num_ends == self.is_reserved, "blocks that nobody gave back"
        assert self.is_cancelled or self.num_outcomes == 1, "the request has one outcome"
        for prefill in self.prefills.values():
            prefill.do(prefill.transfer.tick(self.now_s))
            assert prefill.transfer.is_over
            assert not prefill.held
            assert prefill.slots.num_free == 1


TestTransfers = TransferMachine.TestCase
TestTransfers.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
