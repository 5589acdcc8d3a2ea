"""Ingress: the HTTP front end as a Serve replica, and the door for Python callers.

Torch is never imported here: it would cost seconds and 200 MiB for every ingress.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import ray
from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.applications import Starlette

from deployments.autoscaling_record import read_record
from deployments.coalesce import CoalescingClient
from deployments.exposure import exposed_options
from deployments.http_server import HttpServer
from deployments.master.joining import routing_options, start_client
from deployments.replica_client import ReplicaClient
from deployments.replica_model import ReplicaModel
from deployments.replica_search import StreamLimits
from deployments.request_id import WithoutRequestId
from deployments.role_pool import RolePool
from deployments.token_stream.listener import TokenListener
from rtp_serve.api.chat import ChatService
from rtp_serve.api.completion import CompletionService
from rtp_serve.api.context import ServingContext
from rtp_serve.api.openai_app import build_app
from rtp_serve.api.service import answer, answer_stream
from rtp_serve.autoscaling.ingress import CPU_S
from rtp_serve.clock import WallClock
from rtp_serve.config.serving import AppConfig
from rtp_serve.loader.hub import resolve
from rtp_serve.observability.logging import configure_logging
from rtp_serve.routing.types import Role
from rtp_serve.text.chat_template import ChatTemplate
from rtp_serve.text.tokenizer import Tokenizer

# A handle costs about a millisecond an item, so Python callers get what came in this time together.
_HANDLE_PERIOD_S = 0.03

Json = Mapping[str, Any]


class Ingress:
    """OpenAI's API over the engine replicas behind a handle.

    From Python, `chat` and `generate` take the bodies of `/v1/chat/completions` and
    `/v1/completions`; `chat_stream` and `generate_stream` need `handle.options(stream=True)`.
    They are as trusted as the cluster: no key is asked for.
    """

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self,
        replicas: DeploymentHandle,
        config: AppConfig,
        helpers: Sequence[DeploymentHandle] = (),
        *,
        role: Role = Role.MIXED,
        switching: bool = False,
    ) -> None:
        """`role` is that of `replicas`. `helpers`: see `ReplicaClient`; with `switching` they may
        take it."""
        configure_logging()
        self._config = config
        self._listener = TokenListener(
            ray.get_runtime_context().get_node_id(),
            ray.util.get_node_ip_address(),
            config.channel.tcp_port_range,
        )
        http_options = await asyncio.to_thread(exposed_options, config)
        await self._listener.start()
        limits = StreamLimits(config.ingress.replica_timeout_s, config.ingress.max_resumptions)
        model = ReplicaModel(replicas, limits.replica_timeout_s)
        streaming = RolePool(role, replicas, helpers if switching else ())
        routing = routing_options(config)
        self._master = None
        if routing is not None:
            self._master = start_client(routing, replicas.app_name, model, streaming)
        engine = ReplicaClient(
            replicas, self._listener, limits, helpers, self._master, model, streaming
        )
        tokenizer, chat_template = await asyncio.to_thread(_load_text, config)
        self._context = ServingContext(
            engine,
            tokenizer,
            chat_template,
            WallClock(),
            config.api.limits,
            frozenset(config.routing.slo_classes),
        )
        slow = replace(self._context, engine=CoalescingClient(engine, _HANDLE_PERIOD_S))
        self._chat = ChatService(slow)
        self._completion = CompletionService(slow)
        self._server = HttpServer(self._build_app(), http_options) if http_options else None

    async def __serve_build_asgi_app__(self) -> Starlette:
        app = self._build_app()
        app.add_middleware(WithoutRequestId)
        return app

    def _build_app(self) -> Starlette:
        context = self._context
        return build_app(
            context.engine,
            context.tokenizer,
            context.chat_template,
            self._config.api,
            WallClock(),
            _read_autoscaling,
            self._config.routing.slo_classes,
        )

    async def chat(self, body: Json, tenant: str = "") -> Json:
        return await answer(self._chat, body, tenant)

    async def generate(self, body: Json, tenant: str = "") -> Json:
        return await answer(self._completion, body, tenant)

    async def chat_stream(self, body: Json, tenant: str = "") -> AsyncGenerator[Json, None]:
        async with aclosing(answer_stream(self._chat, body, tenant)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def generate_stream(self, body: Json, tenant: str = "") -> AsyncGenerator[Json, None]:
        async with aclosing(answer_stream(self._completion, body, tenant)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """For the policy in Serve's controller."""
        return {CPU_S: time.process_time()}

    async def __del__(self) -> None:
        """Serve awaits it when the ingress has drained."""
        if self._server is not None:
            await self._server.close()
        if self._master is not None:
            await self._master.close()
        await self._listener.close()


async def _read_autoscaling() -> Json:
    return await asyncio.to_thread(read_record, serve.get_replica_context().app_name)


def _load_text(config: AppConfig) -> tuple[Tokenizer, ChatTemplate]:
    directory = resolve(config.engine.model, config.engine.revision, files="tokenizer")
    return Tokenizer.from_directory(directory), ChatTemplate.from_directory(directory)


IngressDeployment = serve.ingress()(Ingress)
