"""What operators ask: is it alive, how is it doing, what is it set to do; and its new weights."""

from dataclasses import asdict

import msgspec
from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

from rtp_serve.api.body import read_json
from rtp_serve.api.json_response import json_response
from rtp_serve.api.metrics import HttpMetrics
from rtp_serve.config.api import ApiConfig
from rtp_serve.engine.client import EngineClient
from rtp_serve.errors import EngineDead, InvalidRequest

_PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


class OperationsRoutes:
    """/health, /metrics, /routing, /admin/config and /admin/reload."""

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

    async def routing(self, request: HTTPRequest, tenant: str) -> Response:
        """The replicas as the Master sees them, and its last decisions. Raises NoMaster, a 409, and
        MasterUnavailable, a 503."""
        return json_response(msgspec.to_builtins(await self._engine.fleet_standing()))

    async def reload(self, request: HTTPRequest, tenant: str) -> Response:
        """Read the model's weights again. Raises InvalidRequest for a body that wants more,
        ReloadFailed, which is a 409, and EngineDead."""
        if request.headers.get("content-length", "0") != "0" or "content-type" in request.headers:
            body = await read_json(request, self._config.limits)
            if body:
                raise InvalidRequest(
                    f"unknown field {next(iter(body))!r}: a reload reads the configured model "
                    "again; user_config of the EngineReplica deployment names another",
                    next(iter(body)),
                )
        reloaded = await self._engine.reload()
        return json_response({"replicas": [asdict(each) for each in reloaded]})

    async def config(self, request: HTTPRequest, tenant: str) -> Response:
        """The configuration in force, without digests."""
        values = self._config.model_dump(mode="json", exclude={"auth"})
        auth = self._config.auth
        values["auth"] = {
            "api_keys": [{"name": key.name} for key in auth.api_keys],
            "has_admin_token": auth.admin_token_sha256 is not None,
        }
        return json_response(values)
