"""Text completions, without HTTP: prompts in, their continuations out."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from rtp_serve.api.checks import check_completion
from rtp_serve.api.context import ServingContext
from rtp_serve.api.generation import Piece, generate_pieces, join, merge
from rtp_serve.api.logprobs import LogprobColumns, prompt_logprobs
from rtp_serve.api.openai_types import CompletionRequest
from rtp_serve.api.parsing import parse
from rtp_serve.api.prompts import PromptEncoder, check_chars, check_prompt
from rtp_serve.api.responses import (
    Completion,
    CompletionChoice,
    CompletionChunk,
    CompletionLogprobs,
    Envelope,
    Usage,
)
from rtp_serve.api.sampling import completion_sampling, with_budget
from rtp_serve.api.tally import Tally
from rtp_serve.engine.request import Request, TokenLogprobs


@dataclass(frozen=True, slots=True)
class PreparedCompletion:
    """Prompts that are ready to run: one engine request each, in the client's order."""

    body: CompletionRequest
    envelope: Envelope
    requests: tuple[Request, ...]
    prompt_texts: tuple[str, ...]
    """What an echo starts with; empty strings without one."""

    @property
    def tally(self) -> Tally:
        """A new count for this request."""
        return Tally([request.prompt_token_ids for request in self.requests])


class CompletionService:
    """`/v1/completions`. Choice `i * n + j` is answer j to prompt i."""

    def __init__(self, context: ServingContext) -> None:
        self._context = context
        self._prompts = PromptEncoder(context.tokenizer, context.chat_template)

    async def prepare(self, body: Mapping[str, Any], tenant: str = "") -> PreparedCompletion:
        """Check and tokenize. Raises InvalidRequest, ModelNotFound or EngineDead."""
        context = self._context
        completion = parse(CompletionRequest, body)
        check_completion(completion, context.limits, context.slo_classes)
        model = await context.model(completion.model)
        sampling = completion_sampling(completion, context.tokenizer)
        sampling.check_vocabulary(model.vocab_size)
        envelope = context.envelope("cmpl", "text_completion", model)
        requests = []
        for index, prompt in enumerate(completion.prompt):
            field = "prompt" if len(completion.prompt) == 1 else f"prompt[{index}]"
            if isinstance(prompt, str):
                check_chars(len(prompt), model, field)
                token_ids = await self._prompts.encode(prompt, completion.add_special_tokens)
            else:
                token_ids = tuple(prompt)
            check_prompt(token_ids, model, field)
            room = with_budget(sampling, len(token_ids), model, context.limits.max_tokens)
            request_id = f"{envelope['id']}-{index}"
            requests.append(context.request(request_id, token_ids, room, completion, tenant))
        texts = [await self._echo(completion, prompt) for prompt in completion.prompt]
        return PreparedCompletion(completion, envelope, tuple(requests), tuple(texts))

    async def complete(self, prepared: PreparedCompletion) -> Completion:
        """The whole answer. Cancelling aborts every prompt's request."""
        tally = prepared.tally
        choices = self._choices(prepared)
        collected: list[list[Piece]] = [[] for _ in choices]
        async with aclosing(self._pieces(prepared)) as pieces:
            async for prompt_index, piece in pieces:
                tally.add(piece, prompt_index)
                collected[prompt_index * prepared.body.n + piece.index].append(piece)
        joined = [join(pieces) for pieces in collected]
        taken = [choice.take(piece) for choice, piece in zip(choices, joined, strict=True)]
        return {
            **prepared.envelope,
            "system_fingerprint": tally.fingerprint,
            "choices": taken,
            "usage": tally.usage(),
        }

    async def stream(self, prepared: PreparedCompletion) -> AsyncGenerator[CompletionChunk, None]:
        """Text chunks, the last of each choice with its finish reason, then perhaps the usage.

        Closing the generator aborts every prompt's request.
        """
        tally = prepared.tally
        choices = self._choices(prepared)
        async with aclosing(self._pieces(prepared)) as pieces:
            async for prompt_index, piece in pieces:
                tally.add(piece, prompt_index)
                choice = choices[prompt_index * prepared.body.n + piece.index]
                yield _chunk(prepared, tally.fingerprint, [choice.take(piece)])
        if prepared.body.include_usage:
            yield _chunk(prepared, tally.fingerprint, [], tally.usage())

    async def _echo(self, body: CompletionRequest, prompt: str | list[int]) -> str:
        if not body.echo:
            return ""
        return prompt if isinstance(prompt, str) else await self._prompts.decode(prompt)

    async def _pieces(
        self, prepared: PreparedCompletion
    ) -> AsyncGenerator[tuple[int, Piece], None]:
        engine, tokenizer = self._context.engine, self._context.tokenizer
        generators = [generate_pieces(engine, tokenizer, each) for each in prepared.requests]
        is_echo_only = prepared.body.max_tokens == 0
        async with aclosing(merge(generators)) as pieces:
            async for prompt_index, piece in pieces:
                yield prompt_index, _without_answer(piece) if is_echo_only else piece

    def _choices(self, prepared: PreparedCompletion) -> list["_Choice"]:
        return [
            _Choice(self._context, prepared, prompt_index, prompt_index * prepared.body.n + index)
            for prompt_index in range(len(prepared.requests))
            for index in range(prepared.body.n)
        ]


class _Choice:
    """One continuation: turns its pieces into choices, the first one with the echo."""

    def __init__(
        self, context: ServingContext, prepared: PreparedCompletion, prompt_index: int, index: int
    ) -> None:
        self._tokenizer = context.tokenizer
        self._body = prepared.body
        self._index = index
        self._prompt_ids = prepared.requests[prompt_index].prompt_token_ids
        self._echo = prepared.prompt_texts[prompt_index]
        self._columns = LogprobColumns(context.tokenizer, prepared.body.logprobs or 0)
        self._is_first = True

    def take(self, piece: Piece) -> CompletionChoice:
        """The choice as a chunk carries it; the whole one if `piece` is the whole answer."""
        choice: CompletionChoice = {
            "index": self._index,
            "text": self._echo + piece.text if self._is_first else piece.text,
            "logprobs": self._logprobs(piece),
            "finish_reason": piece.finish_reason,
            "stop_reason": piece.stop_reason,
        }
        if self._body.prompt_logprobs is not None:
            choice["prompt_logprobs"] = prompt_logprobs(piece.prompt_logprobs, self._tokenizer)
        self._is_first = False
        return choice

    def _logprobs(self, piece: Piece) -> CompletionLogprobs | None:
        if self._body.logprobs is None:
            return None
        tokens: list[tuple[int, TokenLogprobs | None]] = []
        if self._is_first and self._body.echo:
            tokens += zip(self._prompt_ids, piece.prompt_logprobs, strict=True)
        tokens += zip(piece.token_ids, piece.logprobs, strict=True)
        return self._columns.take(tokens)


def _without_answer(piece: Piece) -> Piece:
    """An echo alone: the one token that was sampled for it is not told."""
    return replace(piece, text="", token_ids=(), logprobs=())


def _chunk(
    prepared: PreparedCompletion,
    fingerprint: str | None,
    choices: list[CompletionChoice],
    usage: Usage | None = None,
) -> CompletionChunk:
    chunk: CompletionChunk = {**prepared.envelope, "choices": choices}
    chunk["system_fingerprint"] = fingerprint
    if not prepared.body.include_usage:
        return chunk
    with_usage: Completion = {**chunk, "usage": usage}
    return with_usage
