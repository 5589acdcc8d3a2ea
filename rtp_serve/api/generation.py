"""Engine deltas → pieces of text. Finds stop strings and ends the engine's work when they match.

Knows neither OpenAI's shapes nor HTTP. Closing a generator of pieces aborts the request behind it.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from itertools import chain

from rtp_serve.api.responses import FinishWord
from rtp_serve.engine.client import EngineClient
from rtp_serve.engine.request import (
    NOTHING_CACHED,
    CachedTokens,
    FinishReason,
    Request,
    SequenceDelta,
    TokenLogprobs,
)
from rtp_serve.errors import EngineDead, RtpServeError
from rtp_serve.text.stream import TextDelta, TextStream
from rtp_serve.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Piece:
    """Text that one sequence gained. Tokens whose text is still held back come with a later one."""

    index: int
    """Which of the request's n sequences."""

    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    """One per token id, or empty."""

    finish_reason: FinishWord | None = None
    """With the sequence's last piece."""

    stop_reason: str | int | None = None
    """The stop string or stop token that ended the sequence."""

    cached: CachedTokens = NOTHING_CACHED
    prompt_logprobs: tuple[TokenLogprobs | None, ...] = ()
    """With a sequence's first piece: one entry per prompt token, None for the first."""

    fingerprint: str = ""
    """Of the model version that the sequence runs on."""


class GenerationFailed(RtpServeError):
    """The engine gave one sequence up; others live on."""


async def generate_pieces(
    engine: EngineClient, tokenizer: Tokenizer, request: Request
) -> AsyncGenerator[Piece, None]:
    """The request's pieces until each of its sequences has a finish reason.

    A sequence ends at its first stop string, whatever the engine goes on to generate for it; the
    engine's generator is closed as soon as no sequence needs it. Raises what the engine raises,
    EngineDead for a sequence that the engine aborted, GenerationFailed for one that failed.
    """
    texts = {index: _SequenceText(index, tokenizer, request) for index in range(request.sampling.n)}
    num_generating = len(texts)
    last: Piece | None = None
    async with aclosing(engine.generate(request)) as deltas:
        async for delta in deltas:
            num_generating -= delta.finish_reason is not None
            text = texts.get(delta.index)
            piece = text.push(delta) if text is not None else None
            if piece is None:
                continue
            if piece.finish_reason is not None:
                del texts[piece.index]
            if num_generating and not texts:
                last = piece  # stop strings ended what the engine has not
                break
            yield piece
    if texts:
        raise EngineDead(f"request {request.request_id} ended without a finish reason")
    if last is not None:
        yield last


def join(pieces: Sequence[Piece]) -> Piece:
    """All pieces of one sequence, at least one, as a single piece."""
    last = pieces[-1]
    return replace(
        last,
        text="".join(piece.text for piece in pieces),
        token_ids=tuple(chain.from_iterable(piece.token_ids for piece in pieces)),
        logprobs=tuple(chain.from_iterable(piece.logprobs for piece in pieces)),
        prompt_logprobs=pieces[0].prompt_logprobs,
        fingerprint=pieces[0].fingerprint,
    )


async def merge(
    generators: Sequence[AsyncGenerator[Piece, None]],
) -> AsyncGenerator[tuple[int, Piece], None]:
    """(which generator, piece) as they come. Ends, failing too, with every generator closed."""
    if len(generators) == 1:  # spares a task for each piece
        async with aclosing(generators[0]) as pieces:
            async for only in pieces:
                yield 0, only
        return
    waiting = {asyncio.ensure_future(anext(each, None)): i for i, each in enumerate(generators)}
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for future in done:
                which = waiting.pop(future)
                piece = future.result()
                if piece is not None:
                    yield which, piece
                    waiting[asyncio.ensure_future(anext(generators[which], None))] = which
    finally:
        for future in waiting:
            future.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        for generator in generators:
            await generator.aclose()


class _SequenceText:
    """One sequence's text so far, and the tokens whose text is not out yet."""

    def __init__(self, index: int, tokenizer: Tokenizer, request: Request) -> None:
        sampling = request.sampling
        self._index = index
        self._stop_token_ids = sampling.stop_token_ids
        self._stream = TextStream(
            tokenizer,
            stop=sampling.stop,
            include_stop=sampling.include_stop,
            min_tokens=sampling.min_tokens,
            skip_special_tokens=sampling.skip_special_tokens,
        )
        self._token_ids: tuple[int, ...] = ()
        self._logprobs: tuple[TokenLogprobs, ...] = ()
        self._prompt_logprobs: tuple[TokenLogprobs | None, ...] = ()
        self._cached = NOTHING_CACHED
        self._fingerprint = ""

    def push(self, delta: SequenceDelta) -> Piece | None:
        """What there is to tell after a delta, or None while all of its text is held back."""
        if delta.finish_reason is FinishReason.ERROR:
            raise GenerationFailed(f"request {delta.request_id}: {delta.error}")
        if delta.finish_reason is FinishReason.ABORT:
            why = delta.error or "it was aborted"
            raise EngineDead(f"request {delta.request_id}: {why}")
        out = self._stream.push(delta.token_ids, delta.finish_reason)
        self._token_ids += delta.token_ids[: out.num_tokens]
        self._logprobs += delta.logprobs[: out.num_tokens]
        self._prompt_logprobs += delta.prompt_logprobs
        self._cached = max(self._cached, delta.cached)
        self._fingerprint = delta.fingerprint or self._fingerprint
        if not out.text and not out.finished:
            return None
        piece = Piece(
            index=self._index,
            text=out.text,
            token_ids=self._token_ids,
            logprobs=self._logprobs,
            finish_reason=_finish_word(delta, out),
            stop_reason=out.stop or self._stop_token(delta),
            cached=self._cached,
            prompt_logprobs=self._prompt_logprobs,
            fingerprint=self._fingerprint,
        )
        self._token_ids = self._logprobs = self._prompt_logprobs = ()
        return piece

    def _stop_token(self, delta: SequenceDelta) -> int | None:
        asked_for = delta.stop_token_id in self._stop_token_ids
        return delta.stop_token_id if asked_for else None


def _finish_word(delta: SequenceDelta, out: TextDelta) -> FinishWord | None:
    if not out.finished:
        return None
    return "length" if out.stop is None and delta.finish_reason is FinishReason.LENGTH else "stop"
