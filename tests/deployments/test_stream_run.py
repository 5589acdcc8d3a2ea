"""How a stream moves from a replica that Serve withdraws, with replicas that the test plays."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Collection, Coroutine
from contextlib import aclosing
from itertools import pairwise

import pytest

from deployments.attempt import Attempt, AttemptStarter
from deployments.live_replicas import LiveReplicas, ReplicaWithdrawn
from deployments.replica_search import ReplicaSearch, StreamLimits
from deployments.resumption_figures import ResumptionFigures
from deployments.stream_run import StreamRun
from deployments.token_stream.listener import TokenListener
from deployments.token_stream.streams import ChannelLost
from deployments.token_stream.wire import StreamKey
from rtp_serve.engine.request import FinishReason, Request, SequenceDelta
from rtp_serve.errors import EngineDead, ModelChanged
from tests.factories import make_request

REQUEST = make_request("r", max_tokens=5)


class PlayedReplicas(AttemptStarter):
    """Attempts are noted and nothing is called."""

    def __init__(self) -> None:
        self._listener = TokenListener("node", "127.0.0.1")
        self.attempts: list[Attempt] = []
        self.closed: list[int] = []
        self.excluded: list[set[str]] = []

    def start(
        self,
        request: Request,
        before: StreamKey | None,
        on_opened: Callable[[], None],
        excluded: Collection[str] = (),
    ) -> Attempt:
        self.excluded.append(set(excluded))
        stream = self._listener.open_stream(request, before, on_opened)
        number = stream.key.attempt

        async def call() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                self.closed.append(number)

        attempt = Attempt(request, stream, asyncio.create_task(call()), self._listener)
        self.attempts.append(attempt)
        return attempt

    async def attempt(self, number: int) -> Attempt:
        """The one of that number, counted from 1, when it is there."""
        while len(self.attempts) < number:
            await asyncio.sleep(0)
        return self.attempts[number - 1]


class Stage:
    """A stream, its client and its replicas."""

    def __init__(self, max_resumptions: int = 3, request: Request = REQUEST) -> None:
        self.replicas = PlayedReplicas()
        self.live = LiveReplicas()
        self.live.tell(frozenset({"a", "b"}))
        self.figures = ResumptionFigures()
        search = ReplicaSearch(StreamLimits(10.0, max_resumptions), self.figures)
        run = StreamRun(request, self.replicas, search, self.live)
        self.deltas: AsyncGenerator[SequenceDelta, None] = run.deltas()
        self.tokens: list[int] = []

    async def first_token(self) -> Attempt:
        """The stream runs at replica a, and the client has a token of it."""
        reading = asyncio.create_task(anext(self.deltas))
        attempt = await self.replicas.attempt(1)
        attempt.tokens.opened("a")
        attempt.tokens.push(delta(10, fingerprint="fp"))
        self.tokens += (await reading).token_ids
        return attempt

    async def read(self) -> None:
        async for each in self.deltas:
            self.tokens += each.token_ids


def delta(*token_ids: int, fingerprint: str = "", ended: bool = False) -> SequenceDelta:
    reason = FinishReason.LENGTH if ended else None
    return SequenceDelta("r", 0, token_ids, finish_reason=reason, fingerprint=fingerprint)


def play(scenario: Callable[[], Coroutine[None, None, None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(10):
            await scenario()

    asyncio.run(bounded())


def test_it_stays_until_another_replica_has_taken_the_rest_and_repeats_nothing():
    async def scenario() -> None:
        stage = Stage()
        old = await stage.first_token()
        stage.live.tell(frozenset({"b"}))
        new = await stage.replicas.attempt(2)
        assert new.request.emitted == ((10,),)
        old.tokens.push(delta(11))
        reading = asyncio.create_task(stage.read())
        while stage.tokens != [10, 11]:
            await asyncio.sleep(0)
        new.tokens.opened("b")
        new.tokens.push(delta(11, 12, fingerprint="fp"))
        new.tokens.push(delta(13, 14, ended=True))
        await reading
        assert stage.tokens == [10, 11, 12, 13, 14]
        assert 'resumed_streams_total{reason="drained"} 1.0' in stage.figures.render()

    play(scenario)


def test_it_ends_where_it_is_when_it_is_done_before_another_replica_takes_it():
    async def scenario() -> None:
        stage = Stage()
        old = await stage.first_token()
        stage.live.tell(frozenset({"b"}))
        await stage.replicas.attempt(2)
        old.tokens.push(delta(11, ended=True))
        await stage.read()
        await asyncio.sleep(0)
        assert stage.tokens == [10, 11]
        assert stage.replicas.closed == [1, 2]

    play(scenario)


def test_replicas_that_lost_or_refused_it_are_better_not_asked_again():
    async def scenario() -> None:
        stage = Stage()
        (await stage.first_token()).tokens.fail(EngineDead("lost"))
        reading = asyncio.create_task(stage.read())
        refused = (await stage.replicas.attempt(2)).tokens
        refused.asked = "b"
        refused.fail(EngineDead("refused"))
        await stage.replicas.attempt(3)
        assert stage.replicas.excluded == [set(), {"a"}, {"a", "b"}]
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)

    play(scenario)


def test_it_asks_again_after_a_refusal(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("deployments.stream_run._FIRST_PAUSE_S", 0.0)

    async def scenario() -> None:
        stage = Stage()
        old = await stage.first_token()
        stage.live.tell(frozenset({"b"}))
        reading = asyncio.create_task(stage.read())
        (await stage.replicas.attempt(2)).tokens.fail(ModelChanged("other weights"))
        last = await stage.replicas.attempt(3)
        old.tokens.push(delta(11))
        last.tokens.opened("b")
        last.tokens.push(delta(11, 12, ended=True))
        await reading
        assert stage.tokens == [10, 11, 12]

    play(scenario)


def test_it_stays_while_there_is_no_other_replica():
    async def scenario() -> None:
        stage = Stage()
        old = await stage.first_token()
        stage.live.tell(frozenset())
        old.tokens.push(delta(11))
        old.tokens.push(delta(12, ended=True))
        await stage.read()
        assert stage.tokens == [10, 11, 12]
        assert len(stage.replicas.attempts) == 1

    play(scenario)


def test_it_stays_where_streams_are_not_to_be_resumed():
    async def scenario() -> None:
        stage = Stage(max_resumptions=0)
        old = await stage.first_token()
        stage.live.tell(frozenset({"b"}))
        old.tokens.push(delta(11, ended=True))
        await stage.read()
        assert len(stage.replicas.attempts) == 1

    play(scenario)


def test_a_replica_that_takes_it_when_it_is_withdrawn_already_is_left_too():
    async def scenario() -> None:
        stage = Stage()
        reading = asyncio.create_task(stage.read())
        first = await stage.replicas.attempt(1)
        stage.live.tell(frozenset({"b"}))
        first.tokens.opened("a")
        second = await stage.replicas.attempt(2)
        assert second.request == REQUEST
        second.tokens.opened("b")
        second.tokens.push(delta(10, 11, ended=True))
        await reading
        assert stage.tokens == [10, 11]

    play(scenario)


def test_withdrawals_are_no_losses_and_losses_are():
    async def scenario() -> None:
        stage = Stage(max_resumptions=1)
        reading = asyncio.create_task(stage.read())
        await stage.replicas.attempt(1)
        names = ("a", "b", "c", "d")
        for number, (name, left) in enumerate(pairwise(names), 1):
            (await stage.replicas.attempt(number)).tokens.opened(name)
            stage.live.tell(frozenset({left}))
        last = await stage.replicas.attempt(4)
        last.tokens.opened("d")
        last.tokens.fail(ChannelLost("killed"))
        after_loss = await stage.replicas.attempt(5)
        after_loss.tokens.opened("d")
        after_loss.tokens.fail(ChannelLost("killed too"))
        with pytest.raises(EngineDead, match="killed too"):
            await reading

    play(scenario)


def test_other_tokens_than_the_client_has_are_a_failed_engine():
    async def scenario() -> None:
        stage = Stage(max_resumptions=1)
        old = await stage.first_token()
        reading = asyncio.create_task(stage.read())
        stage.live.tell(frozenset({"b"}))
        wrong = await stage.replicas.attempt(2)
        old.tokens.push(delta(11))
        while stage.tokens != [10, 11]:
            await asyncio.sleep(0)
        wrong.tokens.opened("b")
        wrong.tokens.push(delta(99))
        right = await stage.replicas.attempt(3)
        assert right.request.emitted == ((10, 11),)
        right.tokens.opened("b")
        right.tokens.push(delta(12, ended=True))
        await reading
        assert stage.tokens == [10, 11, 12]

    play(scenario)


def test_what_a_withdrawn_replica_may_never_take_is_asked_again():
    async def scenario() -> None:
        stage = Stage()
        reading = asyncio.create_task(stage.read())
        await stage.replicas.attempt(1)
        stage.live.tell(frozenset({"a", "b", "c"}))
        stage.live.tell(frozenset({"b", "c"}))
        again = await stage.replicas.attempt(2)
        again.tokens.opened("b")
        again.tokens.push(delta(10, 11, ended=True))
        await reading
        assert stage.tokens == [10, 11]
        assert stage.replicas.closed == [1, 2]

    play(scenario)


def test_a_move_to_a_replica_that_is_withdrawn_too_is_made_again():
    async def scenario() -> None:
        stage = Stage()
        stage.live.tell(frozenset({"a", "b", "c"}))
        await stage.first_token()
        stage.live.tell(frozenset({"b", "c"}))
        await stage.replicas.attempt(2)
        stage.live.tell(frozenset({"c"}))
        right = await stage.replicas.attempt(3)
        right.tokens.opened("c")
        right.tokens.push(delta(11, ended=True))
        await stage.read()
        assert stage.tokens == [10, 11]

    play(scenario)


def test_a_client_that_leaves_in_the_middle_of_it_leaves_nothing():
    async def scenario() -> None:
        stage = Stage()
        async with aclosing(stage.deltas):
            await stage.first_token()
            stage.live.tell(frozenset({"b"}))
            new = await stage.replicas.attempt(2)
            new.tokens.opened("b")
        await asyncio.sleep(0)
        assert sorted(stage.replicas.closed) == [1, 2]
        assert not stage.live._watchers

    play(scenario)


def test_a_replica_is_withdrawn_when_others_are_left_alone():
    live = LiveReplicas()
    assert not live.lacks("a")
    live.tell(frozenset({"a", "b"}))
    assert not live.lacks("a")
    live.tell(frozenset({"b"}))
    assert live.lacks("a")
    live.tell(frozenset())
    assert not live.lacks("a")


def test_the_end_of_a_replica_has_its_reason():
    figures = ResumptionFigures()
    figures.dropped(ReplicaWithdrawn("going"))
    assert 'dropped_streams_total{reason="drained"} 1.0' in figures.render()
