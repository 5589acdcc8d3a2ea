"""Chat completions, without HTTP: messages in, answers or a stream of their pieces out."""

from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from rtp_serve.api.checks import check_chat
from rtp_serve.api.context import ServingContext
from rtp_serve.api.generation import Piece, generate_pieces, join
from rtp_serve.api.logprobs import chat_logprobs, prompt_logprobs
from rtp_serve.api.openai_types import ChatCompletionRequest
from rtp_serve.api.parsing import parse
from rtp_serve.api.prompts import PromptEncoder, check_chars, check_prompt
from rtp_serve.api.responses import (
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatDelta,
    ChatLogprobs,
    ChatUsageChunk,
    Envelope,
    PromptLogprobs,
    Usage,
)
from rtp_serve.api.sampling import chat_sampling, with_budget
from rtp_serve.api.tally import Tally
from rtp_serve.engine.request import Request


@dataclass(frozen=True, slots=True)
class PreparedChat:
    """A chat that is ready to run."""

    body: ChatCompletionRequest
    envelope: Envelope
    request: Request


class ChatService:
    """`/v1/chat/completions`."""

    def __init__(self, context: ServingContext) -> None:
        self._context = context
        self._prompts = PromptEncoder(context.tokenizer, context.chat_template)

    async def prepare(self, body: Mapping[str, Any], tenant: str = "") -> PreparedChat:
        """Check, render and tokenize. Raises InvalidRequest, ModelNotFound or EngineDead."""
        context = self._context
        chat = parse(ChatCompletionRequest, body)
        check_chat(chat, context.limits, context.slo_classes)
        model = await context.model(chat.model)
        sampling = chat_sampling(chat, context.tokenizer)
        sampling.check_vocabulary(model.vocab_size)
        check_chars(sum(len(message.content) for message in chat.messages), model, "messages")
        token_ids = await self._prompts.encode_chat(
            [message.for_template() for message in chat.messages],
            body.get("tools") or (),
            chat.add_generation_prompt,
            chat.add_special_tokens,
            chat.chat_template_kwargs,
        )
        check_prompt(token_ids, model, "messages")
        field = "max_completion_tokens" if chat.max_completion_tokens else "max_tokens"
        cap = context.limits.max_tokens
        sampling = with_budget(sampling, len(token_ids), model, cap, field)
        envelope = context.envelope("chatcmpl", "chat.completion", model)
        request = context.request(envelope["id"], token_ids, sampling, chat, tenant)
        return PreparedChat(chat, envelope, request)

    async def complete(self, prepared: PreparedChat) -> ChatCompletion:
        """The whole answer. Cancelling aborts the request."""
        request = prepared.request
        tally = Tally([request.prompt_token_ids])
        pieces_by_index: list[list[Piece]] = [[] for _ in range(request.sampling.n)]
        async with aclosing(self._pieces(request)) as pieces:
            async for piece in pieces:
                tally.add(piece)
                pieces_by_index[piece.index].append(piece)
        answers = [join(pieces) for pieces in pieces_by_index]
        return {
            **prepared.envelope,
            "system_fingerprint": tally.fingerprint,
            "choices": [self._choice(answer, prepared) for answer in answers],
            "usage": tally.usage(),
            "prompt_logprobs": self._prompt_logprobs(answers[0], prepared),
        }

    async def stream(self, prepared: PreparedChat) -> AsyncGenerator[ChatCompletionChunk, None]:
        """A role chunk, text chunks and a finish chunk per answer, then perhaps the usage.

        Closing the generator aborts the request.
        """
        request = prepared.request
        tally = Tally([request.prompt_token_ids])
        started: set[int] = set()
        async with aclosing(self._pieces(request)) as pieces:
            async for piece in pieces:
                tally.add(piece)
                for choice in self._chunk_choices(piece, prepared, piece.index not in started):
                    yield self._chunk(prepared, tally.fingerprint, [choice])
                started.add(piece.index)
        if prepared.body.include_usage:
            yield self._chunk(prepared, tally.fingerprint, [], tally.usage())

    def _pieces(self, request: Request) -> AsyncGenerator[Piece, None]:
        return generate_pieces(self._context.engine, self._context.tokenizer, request)

    def _choice(self, answer: Piece, prepared: PreparedChat) -> ChatChoice:
        assert answer.finish_reason is not None, "a whole answer has ended"
        return {
            "index": answer.index,
            "message": {"role": "assistant", "content": answer.text, "refusal": None},
            "logprobs": self._logprobs(answer, prepared),
            "finish_reason": answer.finish_reason,
            "stop_reason": answer.stop_reason,
        }

    def _chunk_choices(
        self, piece: Piece, prepared: PreparedChat, is_first: bool
    ) -> Iterator[ChatChunkChoice]:
        if is_first:
            yield _chunk_choice(piece.index, {"role": "assistant", "content": ""})
        logprobs = self._logprobs(piece, prepared)
        if piece.text or piece.logprobs:
            yield _chunk_choice(piece.index, {"content": piece.text}, logprobs)
        if piece.finish_reason is not None:
            last = _chunk_choice(piece.index, {})
            last["finish_reason"] = piece.finish_reason
            last["stop_reason"] = piece.stop_reason
            yield last

    def _logprobs(self, piece: Piece, prepared: PreparedChat) -> ChatLogprobs | None:
        if not prepared.body.logprobs:
            return None
        return chat_logprobs(piece.logprobs, self._context.tokenizer)

    def _prompt_logprobs(self, answer: Piece, prepared: PreparedChat) -> PromptLogprobs | None:
        if prepared.body.prompt_logprobs is None:
            return None
        return prompt_logprobs(answer.prompt_logprobs, self._context.tokenizer)

    def _chunk(
        self,
        prepared: PreparedChat,
        fingerprint: str | None,
        choices: list[ChatChunkChoice],
        usage: Usage | None = None,
    ) -> ChatCompletionChunk:
        chunk: ChatCompletionChunk = {**prepared.envelope, "choices": choices}
        chunk["object"] = "chat.completion.chunk"
        chunk["system_fingerprint"] = fingerprint
        if not prepared.body.include_usage:
            return chunk
        with_usage: ChatUsageChunk = {**chunk, "usage": usage}
        return with_usage


def _chunk_choice(
    index: int, delta: ChatDelta, logprobs: ChatLogprobs | None = None
) -> ChatChunkChoice:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None}
