from dataclasses import dataclass, replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from rtp_serve.routing.ledger import Entry, Ledger, RequestState

NUM_SLOTS = 4


def make_entry(request_id: str, slot: int = 0, decode_slot: int = 0, **fields: float) -> Entry:
    entry = Entry(
        request_id,
        slot,
        decode_slot,
        num_tokens=100,
        prefill_s=1.0,
        prompt_blocks=7,
        decode_blocks=9,
        created_s=0.0,
    )
    return replace(entry, **fields)


def test_a_request_waits_for_all_that_was_sent_before_it():
    ledger = Ledger(NUM_SLOTS)
    ledger.create(make_entry("a", prefill_s=2.0))
    ledger.create(make_entry("b", prefill_s=3.0))
    assert ledger.wait_s(2, now=0.5).tolist() == [4.5, 0.0]


def test_a_head_that_takes_longer_than_predicted_leaves_those_behind_it():
    ledger = Ledger(NUM_SLOTS)
    ledger.create(make_entry("a", prefill_s=2.0))
    ledger.create(make_entry("b", prefill_s=3.0))
    assert ledger.wait_s(1, now=9.0).tolist() == [3.0]


def test_a_first_token_starts_the_next_in_line():
    ledger = Ledger(NUM_SLOTS)
    ledger.create(make_entry("a", prefill_s=2.0))
    ledger.create(make_entry("b", prefill_s=3.0))
    assert ledger.first_token(0, "a", now=5.0)
    assert ledger.wait_s(1, now=6.0).tolist() == [2.0]


def test_blocks_are_held_until_the_end_and_tokens_until_the_first_token():
    ledger = Ledger(NUM_SLOTS)
    ledger.create(make_entry("a"))
    assert (ledger.pending_tokens[0], ledger.reserved_blocks[0]) == (100, 9)
    ledger.first_token(0, "a", now=1.0)
    assert (ledger.pending_tokens[0], ledger.reserved_blocks[0]) == (0, 9)
    ledger.end("a", RequestState.FINISHED, now=2.0)
    assert ledger.reserved_blocks[0] == 0


def test_a_decode_worker_has_its_blocks_reserved_at_once():
    ledger = Ledger(NUM_SLOTS)
    ledger.create(make_entry("a", slot=0, decode_slot=1))
    assert ledger.reserved_blocks[:2].tolist() == [7, 9]
    entry = ledger.first_token(0, "a", now=1.0)
    assert entry is not None
    assert (entry.state, entry.owner_slot) == (RequestState.IN_TRANSIT, 1)
    assert ledger.reserved_blocks[:2].tolist() == [0, 9]


def test_the_states_of_a_life():
    ledger = Ledger(NUM_SLOTS)
    entry = make_entry("a")
    ledger.create(entry)
    states = [entry.state]
    ledger.sent("a", now=0.1)
    states.append(entry.state)
    ledger.confirm(0, ["a"], [], now=0.2)
    states.append(entry.state)
    ledger.confirm(0, [], ["a"], now=0.3)
    states.append(entry.state)
    ledger.end("a", RequestState.FINISHED, now=0.4)
    states.append(entry.state)
    assert [each.name for each in states] == [
        "CREATED",
        "IN_TRANSIT",
        "CONFIRMED",
        "RUNNING",
        "FINISHED",
    ]


def test_only_its_own_worker_confirms_a_request():
    ledger = Ledger(NUM_SLOTS)
    entry = make_entry("a")
    ledger.create(entry)
    ledger.sent("a", now=0.0)
    ledger.confirm(1, [], ["a"], now=1.0)
    assert ledger.first_token(1, "a", now=1.0) is None
    assert entry.state is RequestState.IN_TRANSIT


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (0.5, {}),
        (1.5, {"sent": RequestState.LOST}),
        (9.0, dict.fromkeys(("sent", "queued"), RequestState.TIMEOUT)),
    ],
)
def test_what_is_not_heard_of_is_given_up(now: float, expected: dict[str, RequestState]):
    ledger = Ledger(NUM_SLOTS)
    for name in ("sent", "queued"):
        ledger.create(make_entry(name))
        ledger.sent(name, now=0.0)
    ledger.confirm(0, ["queued"], [], now=0.0)
    assert ledger.overdue(now, transit_s=1.0, silent_s=5.0) == expected


def test_a_request_in_transit_is_not_missed_a_confirmed_one_is():
    ledger = Ledger(NUM_SLOTS)
    for name in ("sent", "queued"):
        ledger.create(make_entry(name))
        ledger.sent(name, now=0.0)
    ledger.confirm(0, ["queued"], [], now=0.1)
    assert ledger.missing(0, frozenset()) == ("queued",)
    assert ledger.missing(0, frozenset({"queued"})) == ()


def test_a_dead_decode_worker_ends_what_is_on_the_way_to_it():
    ledger = Ledger(NUM_SLOTS)
    ledger.create(make_entry("a", slot=0, decode_slot=1))
    ledger.create(make_entry("b", slot=0, decode_slot=2))
    assert ledger.at(1) == ("a",)
    assert ledger.at(0) == ("a", "b")
    ledger.first_token(0, "a", now=1.0)
    assert ledger.at(0) == ("b",)


@dataclass
class Known:
    slot: int
    decode_slot: int
    tokens: int
    has_first_token: bool = False


class LedgerMachine(RuleBasedStateMachine):
    """Against a list of requests in the order they were sent."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger(NUM_SLOTS)
        self.known: dict[str, Known] = {}
        self.now = 0.0
        self.count = 0
        self.head_since = [0.0] * NUM_SLOTS

    def head(self, slot: int) -> str | None:
        for request_id, each in self.known.items():
            if each.slot == slot and not each.has_first_token:
                return request_id
        return None

    def pick(self, number: int) -> str | None:
        return list(self.known)[number % len(self.known)] if self.known else None

    @rule(
        slot=st.integers(0, NUM_SLOTS - 1),
        decode_slot=st.integers(0, NUM_SLOTS - 1),
        tokens=st.integers(1, 500),
    )
    def create(self, slot: int, decode_slot: int, tokens: int) -> None:
        request_id = f"r{self.count}"
        self.count += 1
        if self.head(slot) is None:
            self.head_since[slot] = self.now
        self.known[request_id] = Known(slot, decode_slot, tokens)
        self.ledger.create(
            Entry(request_id, slot, decode_slot, tokens, tokens / 100, tokens // 16, 5, self.now)
        )
        self.ledger.sent(request_id, self.now)

    @rule(seconds=st.floats(0.01, 3.0))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(number=st.integers(0, 99))
    def first_token(self, number: int) -> None:
        request_id = self.pick(number)
        if request_id is None:
            return
        each = self.known[request_id]
        was_head = self.head(each.slot) == request_id
        found = self.ledger.first_token(each.slot, request_id, self.now)
        assert (found is None) == each.has_first_token
        each.has_first_token = True
        if was_head:
            self.head_since[each.slot] = self.now

    @rule(
        number=st.integers(0, 99),
        state=st.sampled_from([RequestState.FINISHED, RequestState.LOST, RequestState.TIMEOUT]),
    )
    def end(self, number: int, state: RequestState) -> None:
        request_id = self.pick(number)
        if request_id is None:
            return
        each = self.known[request_id]
        was_head = self.head(each.slot) == request_id
        assert self.ledger.end(request_id, state, self.now) is not None
        assert self.ledger.end(request_id, state, self.now) is None
        del self.known[request_id]
        if was_head:
            self.head_since[each.slot] = self.now

    @invariant()
    def waits_are_those_of_the_list(self) -> None:
        self.ledger.check_invariants()
        assert len(self.ledger) == len(self.known)
        for slot in range(NUM_SLOTS):
            queue = [
                each.tokens / 100
                for each in self.known.values()
                if each.slot == slot and not each.has_first_token
            ]
            had = min(queue[0], self.now - self.head_since[slot]) if queue else 0.0
            wait_s = self.ledger.wait_s(NUM_SLOTS, self.now)[slot]
            assert wait_s == pytest.approx(max(0.0, sum(queue) - had), abs=1e-9)
            assert self.ledger.num_in_flight[slot] == len(queue)


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
