"""Both sides, their memories, a network that delays, repeats, loses and breaks, and random times.

Whatever is given back is overwritten at once. So a block with bytes of anything but the prompt, and
a copy into a block that is another's, show.
"""

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from rtp_serve.disaggregation.decode_transfer import DecodeTransfer
from rtp_serve.disaggregation.lifecycle import (
    Ask,
    Bump,
    Copy,
    DecodeAction,
    DecodeState,
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
DEADLINE_S = 30.0
FATES = (1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 0)
"""How often a frame arrives."""

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


class World:
    def __init__(self, random: Random) -> None:
        self.random = random
        self.now_s = 0.0
        self.first_block = random.randint(0, 2)
        self.memory = empty(WHOLE)
        self.targets = list(range(random.randint(1, CHAIN - 2)))
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

    def run(self, num_moves: int, num_disturbances: int) -> None:
        moves = [self.move] * num_moves + [self.disturb] * num_disturbances
        self.random.shuffle(moves)
        if self.random.random() < 0.9:
            self.reserve()
        for move in moves:
            if self.prefills:
                move()
        if not self.is_reserved:
            self.do(self.decode.cancel())
            self.is_cancelled = True
            self.reserve()
        self.finish()

    def move(self) -> None:
        """What goes on by itself."""
        moves = [self.work, self.deliver_to_decode, self.deliver_to_prefill, self.beat]
        if self.copies:
            moves.append(self.copy)
        self.random.choice(moves)()

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

    def reserve(self) -> None:
        self.is_reserved = True
        self.do(self.decode.reserved(self.first_block, self.targets, self.now_s))

    def copy(self) -> None:
        """Half of the bytes, or the rest; and then the look at the slot."""
        place = self.random.randrange(len(self.copies))
        copy, is_begun = self.copies[place]
        prefill = self.prefills[copy.key]
        copier = BlockCopier(prefill.memory, self.memory)
        begin, end = copy.layers
        middle = (begin + end) // 2
        if not is_begun:
            copier.copy(copy.source_block_ids, copy.target_block_ids, (begin, middle))
            self.copies[place] = (copy, True)
            if self.random.random() < 0.5:
                return
        copier.copy(copy.source_block_ids, copy.target_block_ids, (middle, end))
        del self.copies[place]
        code = None if prefill.reader.has(prefill.slot) else TransferCode.MISMATCH
        self.do(self.decode.copied(copy, code, self.now_s))

    # What the prefill side's engine does.

    def asked(self) -> Prefill:
        """Mostly the one that was asked last."""
        prefills = list(self.prefills.values())
        return prefills[-1] if self.random.random() < 0.7 else self.random.choice(prefills)

    def work(self) -> None:
        """The next thing."""
        prefill = self.asked()
        ids = prefill.block_ids()
        if not prefill.is_computing:
            return
        if len(prefill.held) < len(ids):
            self.give_blocks(prefill, self.random.randint(1, CHAIN))
        elif prefill.num_groups * GROUP < NUM_LAYERS:
            self.compute(prefill)
        else:
            prefill.is_computing = False
            prefill.do(prefill.transfer.first_token())

    def give_blocks(self, prefill: Prefill, num_blocks: int) -> None:
        begin = len(prefill.held)
        more = prefill.block_ids()[begin : begin + num_blocks]
        prefill.held += more
        prefill.do(prefill.transfer.got_blocks(prefill.first_block + begin, more))

    def compute(self, prefill: Prefill) -> None:
        layers = (prefill.num_groups * GROUP, (prefill.num_groups + 1) * GROUP)
        for index, block_id in enumerate(prefill.block_ids()):
            tag = prefill.first_block + index
            write(prefill.memory, block_id, content(tag, layers), layers)
        prefill.num_groups += 1
        prefill.do(prefill.transfer.computed((prefill.first_block, CHAIN), layers))

    def fail(self, prefill: Prefill) -> None:
        if prefill.is_computing:
            prefill.is_computing = False
            prefill.do(prefill.transfer.engine_failed(TransferCode.PEER_FAILED))

    def give_late(self, prefill: Prefill) -> None:
        """The engine did not know yet that it was to stop."""
        if prefill.transfer.is_over and not prefill.is_computing:
            self.give_blocks(prefill, CHAIN)

    # What the network does.

    def deliver_to_decode(self) -> None:
        prefill = self.asked()
        if prefill.to_decode:
            frame = prefill.to_decode.popleft()
            for _ in range(self.random.choice(FATES)):
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

    def deliver_to_prefill(self) -> None:
        prefill = self.asked()
        if prefill.to_prefill:
            frame = prefill.to_prefill.popleft()
            for _ in range(self.random.choice(FATES)):
                prefill.transfer.heard(self.now_s)
                match frame:
                    case SendReceived(key):
                        prefill.do(prefill.transfer.received(key))
                    case SendAbort(key):
                        prefill.do(prefill.transfer.aborted(key))

    def beat(self) -> None:
        self.now_s += 0.2
        for prefill in self.prefills.values():
            if prefill.is_connected:
                prefill.to_decode.append(None)
                prefill.to_prefill.append(None)

    # What goes wrong.

    def disturb(self) -> None:
        prefill = self.asked()
        match self.random.choice(["cancel", "stop", "cut", "cut", "fail", "fail", "late"]):
            case "cancel":
                self.cancel()
            case "stop":
                self.stop(self.random.random() < 0.5, self.random.random() < 0.5)
            case "cut":
                self.cut(prefill)
            case "fail":
                self.fail(prefill)
            case "late":
                self.give_late(prefill)

    def cancel(self) -> None:
        self.is_cancelled = self.is_cancelled or not self.num_outcomes
        self.do(self.decode.cancel())

    def stop(self, is_decode: bool, is_prefill: bool) -> None:
        """For a lease, which those that are not stopped notice."""
        self.now_s += LIMITS.lease_s
        if not is_decode:
            self.do(self.decode.tick(self.now_s))
        if not is_prefill:
            for prefill in self.prefills.values():
                prefill.do(prefill.transfer.tick(self.now_s))

    def cut(self, prefill: Prefill) -> None:
        prefill.is_connected = False
        prefill.to_decode.clear()
        prefill.to_prefill.clear()
        self.do(self.decode.lost(prefill.transfer.key, self.now_s))
        prefill.do(prefill.transfer.lost())

    def finish(self) -> None:
        """Everybody goes on, the deadline passes, and nothing is left."""
        self.now_s += DEADLINE_S
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


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 2**32), num_disturbances=st.integers(0, 6))
def test_whatever_happens_every_transfer_ends_and_no_wrong_byte_is_kept(
    seed: int, num_disturbances: int
):
    World(Random(seed)).run(num_moves=120, num_disturbances=num_disturbances)


def test_the_world_does_reach_every_end():
    """Otherwise the test above would say little."""
    ends = Counter[tuple[DecodeState, int]]()
    for seed in range(300):
        world = World(Random(seed))
        world.run(num_moves=120, num_disturbances=seed % 4)
        ends[world.decode.state, world.decode.key.epoch] += 1
    assert ends[DecodeState.DONE, 1] > 30
    assert ends[DecodeState.DONE, 2] > 10
    assert ends[DecodeState.FAILED, 3] > 10
    assert ends[DecodeState.CANCELLED, 1] > 10
