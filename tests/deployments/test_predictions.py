"""What a decode replica expects of itself and of the prefill replica that it would ask."""

from types import SimpleNamespace
from typing import Any

import pytest

from deployments.kv_transfer.peers import Peers
from deployments.kv_transfer.predictions import Predictions
from deployments.kv_transfer.wire import PrefillLoad
from deployments.live_replicas import LiveReplicas
from rtp_serve.disaggregation.breaker import Breaker, BreakerLimits
from rtp_serve.disaggregation.choice import ChoicePolicy
from tests.factories import make_prompt, make_request

REQUEST = make_request(prompt=make_prompt(1000))
"""A second's work at a thousand tokens a second."""


class Stage:
    """A decode replica of that speed, with 3,000 tokens to compute before."""

    def __init__(self) -> None:
        self.live = LiveReplicas()
        self.live.tell(frozenset("ab"))
        self.peers = Peers(self.live, Breaker(BreakerLimits()))
        engine: Any = SimpleNamespace(
            block_size=16,
            num_cached_blocks=lambda request: 0,
            stats=SimpleNamespace(token_s=0.001, num_tokens_behind=3000, num_running=0),
        )
        self.predictions = Predictions(engine, ChoicePolicy(), self.peers)

    def is_local(self, preferred: str = "") -> bool:
        return self.predictions.choose(REQUEST, None, preferred).is_local

    def heard(self, name: str, num_tokens: int, token_s: float = 0.001) -> None:
        self.predictions.heard(name, PrefillLoad(token_s, num_tokens))


@pytest.fixture
def stage() -> Stage:
    return Stage()


def test_the_best_prefill_replica_is_what_this_one_is_compared_with(stage: Stage):
    stage.heard("a", 9000)
    assert stage.is_local()
    stage.heard("b", 1000)
    assert not stage.is_local()
    stage.heard("b", 1000, token_s=0.01)  # few tokens, each of them slow
    assert stage.is_local()


def test_the_one_that_will_be_asked_counts_whatever_others_can_do(stage: Stage):
    stage.heard("a", 9000)
    stage.heard("b", 1000)
    assert stage.is_local("a")
    assert not stage.is_local("b")
    assert not stage.is_local("unheard of")


def test_one_that_has_left_or_switched_counts_no_more(stage: Stage):
    stage.heard("a", 9000)
    stage.heard("b", 1000)
    stage.live.tell(frozenset("a"))
    assert stage.is_local()
    stage.live.tell(frozenset("ab"))
    stage.predictions.lost("b")
    assert stage.is_local()


def test_what_each_was_asked_for_waits_there_and_what_is_not_asked_yet_everywhere(stage: Stage):
    stage.heard("a", 0)
    stage.heard("b", 0)
    stage.predictions.begun(9000)
    stage.peers.begun("a", 9000)
    assert stage.is_local("a")
    assert not stage.is_local()
    stage.predictions.begun(9000)
    assert stage.is_local()
    stage.predictions.ended(9000)
    assert not stage.is_local()
