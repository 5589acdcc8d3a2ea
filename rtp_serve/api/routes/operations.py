"""What operators ask: is it alive, how is it doing, what is it configured to do."""

from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

from rtp_serve.api.json_response import json_response
from rtp_serve.api.metrics import HttpMetrics
from rtp_serve.config.api import ApiConfig
from rtp_serve.engine.client import EngineClient
from rtp_serve.errors import EngineDead

_PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


class OperationsRoutes:
    """/health, /metrics and /admin/config."""

    def __init__(self, engine: EngineClient, metrics: HttpMetrics, config: ApiConfig) -> None:
        self._engine = engine
        self._metrics = metrics
        self._config = config

    async def health(self, request: HTTPRequest, tenant: str) -> Response:
        """200 if a request could be served now. Raises EngineDead, which is a 503."""
        await self._engine.check_health()
        return json_response({"status": "ok"})

    async def metrics(self, request: HTTPRequest, tenant: str) -> Response:
        """This edge's figures, and the engine's while there is one to ask."""
        try:
            engine_text = await self._engine.metrics_text()
        except EngineDead:
            engine_text = ""
        return Response(self._metrics.render() + engine_text, media_type=_PROMETHEUS)

    async def config(self, request: HTTPRequest, tenant: str) -> Response:
        """The configuration in force, without digests."""
        values = self._config.model_dump(mode="json", exclude={"auth"})
        auth = self._config.auth
        values["auth"] = {
            "api_keys": [{"name": key.name} for key in auth.api_keys],
            "has_admin_token": auth.admin_token_sha256 is not None,
        }
        return json_response(values)
