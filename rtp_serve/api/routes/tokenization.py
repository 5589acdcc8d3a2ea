"""POST /tokenize and /detokenize: what the model makes of a prompt or a chat, and back."""

from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

from rtp_serve.api.body import read_json
from rtp_serve.api.checks import check_detokenize, check_source
from rtp_serve.api.context import ServingContext
from rtp_serve.api.json_response import json_response
from rtp_serve.api.openai_types import DetokenizeRequest, TokenizeRequest
from rtp_serve.api.parsing import parse
from rtp_serve.api.prompts import PromptEncoder, check_tokens
from rtp_serve.api.responses import Detokenized, Tokenized


class TokenizationRoutes:
    """Both directions; nothing is generated."""

    def __init__(self, context: ServingContext) -> None:
        self._context = context
        self._prompts = PromptEncoder(context.tokenizer, context.chat_template)

    async def tokenize(self, request: HTTPRequest, tenant: str) -> Response:
        limits = self._context.limits
        raw = await read_json(request, limits)
        body = parse(TokenizeRequest, raw)
        check_source(body, limits)
        model = await self._context.model(body.model)
        token_ids = await self._prompts.encode_source(
            body, body.add_generation_prompt, raw.get("tools") or ()
        )
        text = self._context.tokenizer.token_text
        tokens: Tokenized = {
            "count": len(token_ids),
            "max_model_len": model.max_model_len,
            "tokens": list(token_ids),
            "token_strs": [text(each) for each in token_ids] if body.return_token_strs else None,
        }
        return json_response(tokens)

    async def detokenize(self, request: HTTPRequest, tenant: str) -> Response:
        limits = self._context.limits
        body = parse(DetokenizeRequest, await read_json(request, limits))
        check_detokenize(body, limits)
        check_tokens(body.tokens, await self._context.model(body.model), "tokens")
        text: Detokenized = {"prompt": await self._prompts.decode(body.tokens)}
        return json_response(text)
