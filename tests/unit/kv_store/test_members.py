"""Who uses a store: comes, leaves, dies; and when the store may end."""

from rtp_serve.clock import VirtualClock
from rtp_serve.kv_store.member import member_name
from rtp_serve.kv_store.members import Members

IDLE_S = 60.0


class Node:
    """A clock, and processes that die when they are told to."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.dead: set[str] = set()
        self.members = Members(self.clock, self.dead.__contains__)

    def is_over_after(self, seconds: float) -> bool:
        self.clock.advance(seconds)
        return self.members.close_if_idle(IDLE_S)


def test_a_store_that_nobody_comes_to_ends():
    node = Node()
    assert not node.is_over_after(IDLE_S - 1)
    assert node.is_over_after(1)


def test_it_does_not_end_while_a_member_lives_however_silent():
    node = Node()
    node.members.come("a")
    assert not node.is_over_after(10 * IDLE_S)
    assert not node.is_over_after(10 * IDLE_S)


def test_its_time_begins_when_the_last_is_seen_no_more():
    node = Node()
    node.members.come("a")
    node.members.come("b")
    node.dead.add("a")
    assert not node.is_over_after(2 * IDLE_S)
    node.dead.add("b")
    assert not node.is_over_after(IDLE_S - 1)
    assert node.is_over_after(1)


def test_its_time_begins_when_the_last_has_left():
    node = Node()
    node.members.come("a")
    node.clock.advance(2 * IDLE_S)
    node.members.leave("a")
    assert not node.is_over_after(IDLE_S - 1)
    assert node.is_over_after(1)


def test_who_comes_in_time_keeps_it_and_who_comes_late_is_refused():
    node = Node()
    node.clock.advance(IDLE_S)
    assert node.members.come("a")
    assert not node.members.close_if_idle(IDLE_S)
    node.members.leave("a")
    assert node.is_over_after(IDLE_S)
    assert not node.members.come("b")
    assert node.is_over_after(0)


def test_this_process_is_a_member_that_lives():
    clock = VirtualClock()
    members = Members(clock)
    members.come(member_name())
    clock.advance(IDLE_S)
    assert not members.close_if_idle(IDLE_S)
