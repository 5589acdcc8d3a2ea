"""GET /v1/models and /v1/models/{id}."""

from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

from rtp_serve.api.context import ServingContext
from rtp_serve.api.json_response import json_response
from rtp_serve.api.responses import ModelCard, ModelList


class ModelRoutes:
    """The one served model, as a list and by name."""

    def __init__(self, context: ServingContext) -> None:
        self._context = context
        self._created = int(context.clock.wall())

    async def list(self, request: HTTPRequest, tenant: str) -> Response:
        models: ModelList = {"object": "list", "data": [await self._card(None)]}
        return json_response(models)

    async def retrieve(self, request: HTTPRequest, tenant: str) -> Response:
        """Names may have slashes. Raises ModelNotFound."""
        return json_response(await self._card(request.path_params["name"]))

    async def _card(self, name: str | None) -> ModelCard:
        model = await self._context.model(name)
        return {
            "id": model.name,
            "object": "model",
            "created": self._created,
            "owned_by": "rtp-serve",
            "max_model_len": model.max_model_len,
        }
