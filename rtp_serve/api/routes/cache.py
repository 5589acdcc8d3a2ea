"""/cache: what the KV caches hold, giving some of it up, and keeping the beginning of prompts."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

from rtp_serve.api.body import read_json
from rtp_serve.api.cache_report import report
from rtp_serve.api.checks import check_source
from rtp_serve.api.context import ServingContext
from rtp_serve.api.json_response import json_response
from rtp_serve.api.openai_types import PinRequest, TrimRequest
from rtp_serve.api.parsing import parse
from rtp_serve.api.prompts import PromptEncoder, check_chars, check_prompt
from rtp_serve.config.api import AuthConfig
from rtp_serve.engine.request import cache_salt
from rtp_serve.errors import InvalidRequest


class CacheRoutes:
    """/cache/stats, /cache/trim and /cache/pin."""

    def __init__(self, context: ServingContext, auth: AuthConfig) -> None:
        self._context = context
        self._prompts = PromptEncoder(context.tokenizer, context.chat_template)
        self._tenants = {key.name for key in auth.api_keys}

    async def stats(self, request: HTTPRequest, tenant: str) -> Response:
        """Each replica's caches and each node's store. Raises EngineDead."""
        return json_response(report(await self._context.engine.cache_stats()))

    async def trim(self, request: HTTPRequest, tenant: str) -> Response:
        """Free bytes of the arenas. Raises InvalidRequest, EngineDead, and NoKVTiers, a 409."""
        body = parse(TrimRequest, await read_json(request, self._context.limits))
        trimmed = await self._context.engine.trim_cache(body.bytes)
        return json_response({"stores": [asdict(each) for each in trimmed]})

    async def pin(self, request: HTTPRequest, tenant: str) -> Response:
        """Keep what the arenas have of a prompt's beginning. Raises InvalidRequest, ModelNotFound,
        EngineDead, and NoKVTiers, a 409."""
        raw = await read_json(request, self._context.limits)
        body = parse(PinRequest, raw)
        self._check_tenant(body.tenant)
        token_ids = await self._token_ids(body, raw)
        salt = cache_salt(body.tenant, body.cache_salt)
        pinned = await self._context.engine.pin_prefix(token_ids, salt, body.ttl_s)
        return json_response(
            {"num_tokens": len(token_ids), "stores": [asdict(each) for each in pinned]}
        )

    async def _token_ids(self, body: PinRequest, raw: Mapping[str, Any]) -> tuple[int, ...]:
        check_source(body, self._context.limits)
        model = await self._context.model(body.model)
        if body.prompt_token_ids is not None:
            check_prompt(body.prompt_token_ids, model, "prompt_token_ids")
            return tuple(body.prompt_token_ids)
        field = "prompt" if body.messages is None else "messages"
        texts = [body.prompt or "", *(message.content for message in body.messages or ())]
        check_chars(sum(map(len, texts)), model, field)
        token_ids = await self._prompts.encode_source(
            body, body.add_generation_prompt, raw.get("tools") or ()
        )
        check_prompt(token_ids, model, field)
        return token_ids

    def _check_tenant(self, tenant: str) -> None:
        """Another tenant's requests would never find what was pinned."""
        if tenant not in (self._tenants or {""}):
            allowed = f"one of {sorted(self._tenants)}" if self._tenants else "left out: no keys"
            raise InvalidRequest(f"tenant must be {allowed}, got {tenant!r}", "tenant")
