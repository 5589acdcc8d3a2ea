"""A decode replica's transfer, with everything around it held by the test."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest

from deployments.channels.address import ChannelAddress
from deployments.kv_transfer.decode_side import Prefilling, prefill_elsewhere
from deployments.kv_transfer.figures import TransferFigures
from deployments.kv_transfer.wire import (
    FirstToken,
    PrefillCall,
    decode_call,
    encode,
    pack_first,
)
from deployments.token_stream.wire import Refused
from rtp_serve.clock import WallClock
from rtp_serve.config.disaggregation import TransferConfig
from rtp_serve.disaggregation.lifecycle import Copy
from rtp_serve.disaggregation.protocol import (
    Accepted,
    Failed,
    Ready,
    TransferCode,
    TransferKey,
)
from rtp_serve.engine.client import ServedModel
from rtp_serve.engine.receiving import Receiver, Reserved
from rtp_serve.engine.request import FinishReason, Request, SequenceDelta
from rtp_serve.errors import ModelChanged, Overloaded, WrongLayout
from tests.factories import make_prompt, make_request
from tests.unit.disaggregation.memories import MEMORY

KEY = TransferKey("t", 1)
LAYERS = (0, MEMORY.num_layers)


@dataclass
class Stage:
    """Engine, listener, copier, peers and prefill replica in one."""

    deposits: list[int] = field(default_factory=list)
    copies: list[tuple[Copy, Any]] = field(default_factory=list)
    delivered: list[SequenceDelta] = field(default_factory=list)
    transfer: Any = None
    peers: tuple[str, ...] = ("p",)
    blamed: list[str] = field(default_factory=list)
    model = ServedModel("test", 512, 1000, ())

    # The engine's.

    def receive(self, request: Request, receiver: Receiver) -> None:
        receiver.reserved(Reserved(0, (1, 2), "fp", "content"))

    def deposit(self, request_id: str, num_blocks: int) -> None:
        self.deposits.append(num_blocks)

    def end_reception(self, request_id: str) -> None:
        self.deposits.append(0)

    # The listener's.

    def listen(self, transfer: str, listening: Any) -> None:
        self.transfer = listening

    def __getattr__(self, name: str) -> Any:
        """What else is called, and has no say here."""
        return lambda *arguments, **named: None

    # The copier's and the peers'.

    def copy(self, copy: Copy, copied: Any) -> None:
        self.copies.append((copy, copied))

    def choose(self, tried: set[str], now_s: float, preferred: str) -> str | None:
        return next((peer for peer in self.peers if peer not in tried), None)

    def failed(self, peer: str, now_s: float) -> None:
        self.blamed.append(peer)

    # The prefill replica's channel.

    @property
    def hello(self) -> Any:
        return self

    replica, memory, is_local = "p", MEMORY, True

    def tell(self, message: Any) -> None:
        self.transfer.tell(self, message)


class _Silent:
    """Prefill replicas whose control call never ends."""

    def handle(self, name: str) -> Any:
        return self

    class prefill:
        @staticmethod
        def remote(*arguments: Any, **named: Any) -> Any:
            class Response(asyncio.Future[bytes]):
                pass

            return Response()


@dataclass
class _Refusing:
    """Prefill replicas that say no."""

    code: str
    calls: list[PrefillCall] = field(default_factory=list)

    def handle(self, name: str) -> Any:
        return self

    @property
    def prefill(self) -> Any:
        return self

    def remote(self, data: bytes, **named: Any) -> "asyncio.Future[bytes]":
        self.calls.append(decode_call(data))
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        answer.set_result(encode(Refused(self.code, "no")))
        return answer


def first_token(token_id: int) -> FirstToken:
    delta = SequenceDelta("r0", 0, (token_id,), finish_reason=FinishReason.LENGTH)
    return pack_first(KEY, delta, 0.0)


def shared_by(stage: Any, prefill: Any, *, is_exact: bool = True) -> Prefilling:
    stage.door = stage
    stage.address = ChannelAddress("here", "door", b"x" * 32)
    return Prefilling(
        stage, MEMORY, prefill, stage, stage, TransferConfig(), is_exact,
        TransferFigures(), stage, stage, WallClock(),
    )  # fmt: skip


def beginning(stage: Stage, shared: Prefilling) -> "asyncio.Task[Request | None]":
    request = make_request(prompt=make_prompt(32))
    return asyncio.create_task(prefill_elsewhere(shared, "t", request, stage.delivered.append))


async def begun(stage: Stage) -> "asyncio.Task[Request | None]":
    """A transfer whose prefill replica has told of both blocks, which are being copied."""
    bringing = beginning(stage, shared_by(stage, _Silent()))
    while stage.transfer is None or not stage.transfer._calls:
        await asyncio.sleep(0)
    stage.tell(Accepted(KEY, 0, (5, 6), 0, 1))
    stage.tell(Ready(KEY, (0, 2), LAYERS))
    return bringing


def test_the_first_token_is_delivered_and_brought_along():
    async def scenario() -> None:
        stage = Stage()
        bringing = await begun(stage)
        stage.tell(first_token(7))
        assert [delta.token_ids for delta in stage.delivered] == [(7,)]
        assert stage.delivered[0].finish_reason is None
        for copy, copied in stage.copies:
            copied(copy, None)
        rest = await bringing
        assert rest is not None
        assert (rest.emitted, rest.fingerprint) == (((7,),), "fp")
        assert stage.deposits == [2]

    asyncio.run(scenario())


def test_a_first_token_of_an_attempt_that_has_failed_is_neither_delivered_nor_brought():
    """Its copies are under way still, so no other attempt has begun."""

    async def scenario() -> None:
        stage = Stage()
        bringing = await begun(stage)
        stage.tell(Failed(KEY, TransferCode.PEER_FAILED))
        stage.tell(first_token(7))
        for copy, copied in stage.copies:
            copied(copy, TransferCode.MISMATCH)
        rest = await bringing
        assert stage.delivered == []
        assert rest is not None
        assert rest.emitted == ()

    asyncio.run(scenario())


def test_blocks_that_came_as_the_client_went_are_given_back():
    """The last copy and the cancellation are in one turn of the loop, the cancellation second."""

    async def scenario() -> None:
        stage = Stage()
        bringing = await begun(stage)
        stage.tell(first_token(7))
        for copy, copied in stage.copies:
            copied(copy, None)
        bringing.cancel()
        await asyncio.wait((bringing,))
        assert bringing.cancelled()
        assert stage.deposits == [2, 0]

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ModelChanged, TransferCode.OTHER_WEIGHTS),
        (WrongLayout, TransferCode.WRONG_LAYOUT),
        (Overloaded, TransferCode.PEER_REFUSED),
    ],
)
def test_who_is_refused_asks_another_one_and_computes_at_last(error: Any, code: TransferCode):
    async def scenario() -> None:
        stage, prefill = Stage(peers=("p", "q", "r")), _Refusing(error.code)
        shared = shared_by(stage, prefill)
        rest = await beginning(stage, shared)
        assert rest is not None
        assert (rest.emitted, rest.fingerprint) == ((), "")
        assert stage.blamed == ["p", "q"]
        assert [call.key.epoch for call in prefill.calls] == [1, 2]
        assert f'prefill_fallbacks_total{{reason="{code}"}} 1.0' in shared.figures.render()

    asyncio.run(scenario())


@pytest.mark.parametrize(("is_exact", "wanted"), [(True, "fp"), (False, "content")])
def test_the_weights_are_asked_for_whatever_the_ranks(is_exact: bool, wanted: str):
    """With equal ranks, their arithmetic too."""

    async def scenario() -> None:
        stage, prefill = Stage(), _Refusing(ModelChanged.code)
        await beginning(stage, shared_by(stage, prefill, is_exact=is_exact))
        (call,) = prefill.calls
        assert call.request.fingerprint == wanted

    asyncio.run(scenario())
