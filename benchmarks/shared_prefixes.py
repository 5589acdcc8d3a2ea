"""Prompts that share beginnings, at random times, and a client that streams their answers."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from time import perf_counter
from typing import Self

import httpx

from benchmarks.servers import SERVED_NAME
from rtp_serve.errors import RtpServeError

_VOCABULARY = range(1000, 40_000)
_TIMEOUT_S = 300.0
_RETRY_S = 0.05


@dataclass(frozen=True, slots=True)
class SharedPrefixes:
    """Requests to assistants, whose instructions all prompts of an assistant begin with."""

    instructions: tuple[tuple[int, ...], ...]
    """Of each assistant: token ids."""

    num_requests: int = 90
    requests_per_s: float = 3.0
    own_tokens: int = 32
    output_tokens: int = 4

    @classmethod
    def drawn(cls, ids: Random, num_assistants: int = 9, num_tokens: int = 512) -> Self:
        """Of assistants with random instructions of so many tokens each."""
        return cls(tuple(_draw(ids, num_tokens) for _ in range(num_assistants)))

    def arrivals(self, order: Random, ids: Random) -> list["Arrival"]:
        """Equal `order` has the same assistants called at the same times; `ids` draws the rest of
        each prompt, which nobody has seen before."""
        after_s, arrivals = 0.0, []
        for _ in range(self.num_requests):
            after_s += order.expovariate(self.requests_per_s)
            prompt = order.choice(self.instructions) + _draw(ids, self.own_tokens)
            arrivals.append(Arrival(after_s, prompt, self.output_tokens))
        return arrivals


@dataclass(frozen=True, slots=True)
class Arrival:
    after_s: float
    """The first one's clock begins with the run."""

    prompt: tuple[int, ...]
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What a client saw of one request."""

    sent_s: float
    """`perf_counter` when it was sent first."""

    ttft_s: float
    """From then on, tries that failed included."""

    num_cached_tokens: int
    num_tries: int
    failure: str
    """Why it has no answer, of as many tokens as were asked for; else empty."""


def ttfts_s(answers: Sequence[Answer]) -> list[float]:
    """In order. Raises RtpServeError if a request failed."""
    for each in answers:
        if each.failure:
            raise RtpServeError(f"a request failed: {each.failure}")
    return [each.ttft_s for each in answers]


def num_cached_tokens(answers: Sequence[Answer]) -> int:
    """Of all together."""
    return sum(each.num_cached_tokens for each in answers)


async def play(base_url: str, arrivals: Sequence[Arrival], num_tries: int = 1) -> list[Answer]:
    """The answers, in order. Who has lost its connection may try again."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=base_url, timeout=_TIMEOUT_S, limits=limits) as http:
        client = _Client(http, num_tries, perf_counter())
        return await asyncio.gather(*map(client.answer, arrivals))


@dataclass(frozen=True, slots=True)
class _Client:
    http: httpx.AsyncClient
    num_tries: int
    began_s: float

    async def answer(self, arrival: Arrival) -> Answer:
        await asyncio.sleep(max(0.0, self.began_s + arrival.after_s - perf_counter()))
        sent_s = perf_counter()
        failure = ""
        for number in range(1, self.num_tries + 1):
            try:
                first_s, num_cached_tokens = await self._stream(arrival)
                return Answer(sent_s, first_s - sent_s, num_cached_tokens, number, "")
            except httpx.TransportError as error:
                failure = repr(error)
                await asyncio.sleep(_RETRY_S)
            except RtpServeError as error:
                failure = str(error)
                break
        return Answer(sent_s, 0.0, 0, number, failure)

    async def _stream(self, arrival: Arrival) -> tuple[float, int]:
        """When the first token came, and how many of the prompt were cached. Raises
        httpx.TransportError, and RtpServeError for an answer that is not what was asked for."""
        body = {
            "model": SERVED_NAME, "prompt": arrival.prompt, "max_tokens": arrival.output_tokens,
            "temperature": 0, "ignore_eos": True,
            "stream": True, "stream_options": {"include_usage": True},
        }  # fmt: skip
        first_s, usage = 0.0, None
        async with self.http.stream("POST", "/v1/completions", json=body) as answer:
            if answer.status_code != 200:
                raise RtpServeError(f"{answer.status_code}: {(await answer.aread())[:200]!r}")
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    first_s = first_s or perf_counter()
                    usage = json.loads(line.removeprefix("data: ")).get("usage") or usage
        if usage is None or usage["completion_tokens"] != arrival.output_tokens:
            raise RtpServeError(f"the stream ended early: {usage}")
        return first_s, usage["prompt_tokens_details"]["cached_tokens"]


def _draw(ids: Random, count: int) -> tuple[int, ...]:
    return tuple(ids.choices(_VOCABULARY, k=count))
