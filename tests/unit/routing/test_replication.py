from random import Random

from rtp_serve.config.routing import ReplicationConfig, RoutingConfig
from rtp_serve.routing.block_stream import BlockDelta
from rtp_serve.routing.master import Master
from rtp_serve.routing.replication import HotPrefixes
from rtp_serve.routing.types import Decision, PrefillPoint, Replication, WorkerId
from tests.unit.routing.requests import keys, make_request, make_status
from tests.unit.routing.test_policies import make_candidates

SHARED = keys(*range(32))  # 512 of 1,000 tokens


def make_hot(**fields: object) -> HotPrefixes:
    return HotPrefixes(ReplicationConfig.model_validate(fields))


def test_a_prefix_for_which_nobody_waits_needs_no_copy():
    hot = make_hot()
    idle = make_candidates([0.0, 0.0], [512, 0])
    assert all(hot.note(SHARED, 16, idle, now) is None for now in range(5))


def test_a_prefix_for_which_many_wait_is_copied_once_in_a_while():
    hot = make_hot(cooldown_s=5)
    busy = make_candidates([0.3, 0.0, 0.1], [512, 0, 0])
    advice = [hot.note(SHARED, 16, busy, 0.1 * number) for number in range(8)]
    assert advice[:3] == [None] * 3
    first = next(each for each in advice if each is not None)
    assert (first.source, first.target, first.hashes) == ("w0", "w1", SHARED)
    assert sum(each is not None for each in advice) == 1
    assert hot.note(SHARED, 16, busy, 9.0) is not None


def test_what_was_hot_cools_down():
    hot = make_hot(half_life_s=1)
    busy = make_candidates([0.3, 0.0], [512, 0])
    assert [hot.note(SHARED, 16, busy, 10.0 * number) for number in range(20)] == [None] * 20


def test_what_everybody_has_is_not_copied():
    hot = make_hot()
    everywhere = make_candidates([9.0, 0.0], [512, 512])
    assert all(hot.note(SHARED, 16, everywhere, 0.0) is None for _ in range(20))


def test_no_more_prefixes_are_watched_than_allowed():
    hot = make_hot(max_prefixes=10)
    for number in range(50):
        hot.note(keys(number), 16, make_candidates([0.0], [0]), 0.0)
    assert len(hot) == 10


def advised() -> tuple[Master, tuple[Replication, ...]]:
    """A Master, and what its decisions have advised: that w1 have what w0 has."""
    master = Master(RoutingConfig(replication=ReplicationConfig(enable=True)), Random(0))
    points = (PrefillPoint(100, 0, 0.1), PrefillPoint(1000, 0, 1.0))
    for name in ("w0", "w1"):
        master.on_status(make_status(name, self_benchmark=points), 0.0)
    master.on_delta(BlockDelta("w0", 1, 0, 1, SHARED))

    def ask(number: int) -> Decision:
        hashes = SHARED + keys(f"own {number}")
        return master.schedule(make_request(f"r{number}", 560, block_hashes=hashes), 0.0)

    advice = [ask(number).replication for number in range(20)]
    return master, tuple(each for each in advice if each is not None)


def test_a_decision_brings_the_advice_and_its_target_is_told_once():
    master, advice = advised()
    assert {each.target for each in advice} == {"w1"}
    assert master.take_advice(WorkerId("w0")) == ()
    assert master.take_advice(WorkerId("w1")) == advice
    assert master.take_advice(WorkerId("w1")) == ()


def test_who_has_left_needs_no_advice():
    master, _ = advised()
    master.remove(WorkerId("w1"), 1.0)
    assert master.take_advice(WorkerId("w1")) == ()
