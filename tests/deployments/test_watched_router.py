"""What a stopped caller does to the replicas that it has called."""

import asyncio
import os
import signal

import pytest
from ray import serve
from ray.serve.handle import DeploymentHandle

from deployments.args import ROUTER
from tests.deployments.applications import RaySession, running

pytestmark = pytest.mark.ray

_ANSWER_S = 10.0


@serve.deployment(
    ray_actor_options={"num_cpus": 0.1}, max_ongoing_requests=64, request_router_config=ROUTER
)
class Called:
    def __init__(self) -> None:
        self._end = asyncio.Event()

    async def until_ended(self) -> None:
        await self._end.wait()

    async def end(self) -> None:
        self._end.set()

    async def ping(self) -> str:
        return "pong"


@serve.deployment(ray_actor_options={"num_cpus": 0.1})
class Caller:
    def __init__(self, called: DeploymentHandle) -> None:
        self._called = called

    async def call(self) -> int:
        """Has many calls open, so that some end at any rate; gives its process."""
        calls = [self._called.until_ended.remote() for _ in range(8)]
        await self._called.ping.remote()  # sent after those
        self._open = asyncio.gather(*calls)
        return os.getpid()


def test_a_stopped_caller_does_not_hold_up_whom_it_has_called(session: RaySession):
    with running(session, "stopped-caller", Caller.bind(Called.bind())) as app:
        called = serve.get_deployment_handle("Called", app.name)
        pid = app.handle.call.remote().result(timeout_s=_ANSWER_S)
        os.kill(pid, signal.SIGSTOP)
        try:
            called.end.remote().result(timeout_s=_ANSWER_S)
            assert called.ping.remote().result(timeout_s=_ANSWER_S) == "pong"
        finally:
            os.kill(pid, signal.SIGCONT)
