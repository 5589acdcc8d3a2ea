"""Puts the HTTP server together: services, routes, and the layers around them."""

from collections.abc import Iterable, Sequence

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

from rtp_serve.api.auth import Access, Gate
from rtp_serve.api.boundary import Boundary
from rtp_serve.api.chat import ChatService
from rtp_serve.api.completion import CompletionService
from rtp_serve.api.context import ServingContext
from rtp_serve.api.errors import routing_error_response
from rtp_serve.api.kept_streams import KeptStreams
from rtp_serve.api.metrics import HttpMetrics
from rtp_serve.api.routes.access import RouteTable
from rtp_serve.api.routes.autoscaling import AutoscalingRoute, ReadAutoscaling
from rtp_serve.api.routes.cache import CacheRoutes
from rtp_serve.api.routes.generation import generation_endpoint
from rtp_serve.api.routes.models import ModelRoutes
from rtp_serve.api.routes.operations import OperationsRoutes
from rtp_serve.api.routes.playground import PlaygroundRoute
from rtp_serve.api.routes.streams import StreamRoutes
from rtp_serve.api.routes.tokenization import TokenizationRoutes
from rtp_serve.clock import Clock, WallClock
from rtp_serve.config.api import ApiConfig
from rtp_serve.config.routing import DEFAULT_CLASS
from rtp_serve.engine.client import EngineClient
from rtp_serve.text.chat_template import ChatTemplate
from rtp_serve.text.tokenizer import Tokenizer


def build_app(
    engine: EngineClient,
    tokenizer: Tokenizer,
    chat_template: ChatTemplate,
    config: ApiConfig | None = None,
    clock: Clock | None = None,
    autoscaling: ReadAutoscaling | None = None,
    slo_classes: Iterable[str] = (DEFAULT_CLASS,),
) -> Starlette:
    """The ASGI application for one served model. Starts nothing and asks the engine nothing yet.
    Where replicas come and go, `autoscaling` says why. Requests may name `slo_classes`."""
    config = config or ApiConfig()
    context = ServingContext(
        engine=engine,
        tokenizer=tokenizer,
        chat_template=chat_template,
        clock=clock or WallClock(),
        limits=config.limits,
        slo_classes=frozenset(slo_classes),
    )
    metrics = HttpMetrics()
    table = _route_table(context, config, metrics)
    if autoscaling is not None:
        table.add("GET", "/autoscaling", Access.METRICS, AutoscalingRoute(autoscaling).read)
    app = Starlette(
        routes=table.routes,
        middleware=_layers(context, config, metrics, table.paths),
        exception_handlers={HTTPException: _on_routing_error},
    )
    app.router.redirect_slashes = False
    return app


def _route_table(context: ServingContext, config: ApiConfig, metrics: HttpMetrics) -> RouteTable:
    models = ModelRoutes(context)
    tokens = TokenizationRoutes(context)
    cache = CacheRoutes(context, config.auth)
    operations = OperationsRoutes(context.engine, metrics, config)
    kept = KeptStreams(config.streams, config.limits.request_timeout_s)
    streams = StreamRoutes(kept, config.limits.client_stall_timeout_s)
    chat = generation_endpoint(ChatService(context), config.limits, kept)
    completion = generation_endpoint(CompletionService(context), config.limits, kept)

    table = RouteTable(Gate(config.auth))
    table.add("GET", "/", Access.OPEN, PlaygroundRoute().page)
    table.add("GET", "/health", Access.OPEN, operations.health)
    table.add("GET", "/metrics", Access.METRICS, operations.metrics)
    table.add("GET", "/admin/config", Access.ADMIN, operations.config)
    table.add("POST", "/admin/reload", Access.ADMIN, operations.reload)
    table.add("GET", "/routing", Access.ADMIN, operations.routing)
    table.add("GET", "/cache/stats", Access.ADMIN, cache.stats)
    table.add("POST", "/cache/trim", Access.ADMIN, cache.trim)
    table.add("POST", "/cache/pin", Access.ADMIN, cache.pin)
    table.add("GET", "/v1/models", Access.KEY, models.list)
    table.add("GET", "/v1/models/{name:path}", Access.KEY, models.retrieve)
    table.add("POST", "/v1/chat/completions", Access.KEY, chat)
    table.add("POST", "/v1/completions", Access.KEY, completion)
    table.add("GET", "/v1/streams/{id}", Access.KEY, streams.resume)
    table.add("DELETE", "/v1/streams/{id}", Access.KEY, streams.end)
    table.add("POST", "/tokenize", Access.KEY, tokens.tokenize)
    table.add("POST", "/detokenize", Access.KEY, tokens.detokenize)
    return table


def _layers(
    context: ServingContext, config: ApiConfig, metrics: HttpMetrics, paths: frozenset[str]
) -> Sequence[Middleware]:
    """Outermost first: error answers, too, must carry the headers that let a page read them."""
    cors = Middleware(
        CORSMiddleware,
        allow_origins=config.cors_origins,
        allow_methods=["GET", "POST", "DELETE"],
        allow_headers=["authorization", "content-type", "last-event-id", "x-request-id"],
        expose_headers=["x-request-id", "retry-after"],
    )
    boundary = Middleware(
        Boundary,
        limits=config.limits,
        metrics=metrics,
        clock=context.clock,
        draw_id=context.draw_id,
        routes=paths,
    )
    return [cors, boundary] if config.cors_origins else [boundary]


async def _on_routing_error(request: HTTPRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return routing_error_response(error)
