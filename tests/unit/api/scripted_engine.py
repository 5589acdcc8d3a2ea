"""An engine that says what it is told to: known texts, stalls and failures."""

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass, field

from rtp_serve.engine.cache_answers import CacheStats, DeviceStats, Pinned, Trimmed
from rtp_serve.engine.client import Reloaded, ServedModel
from rtp_serve.engine.request import FinishReason, Request, SequenceDelta, TokenLogprobs
from rtp_serve.errors import EngineDead, NoKVTiers, NoMaster
from rtp_serve.routing.standing import FleetStanding
from rtp_serve.text.tokenizer import Tokenizer

MODEL = ServedModel(
    name="tiny", max_model_len=256, vocab_size=261, eos_token_ids=(259,), fingerprint="fp_test"
)


@dataclass
class ScriptedEngine:
    """An EngineClient. Answer i of a request is `texts[i % len(texts)]`, one token a delta."""

    tokenizer: Tokenizer
    texts: tuple[str, ...] = ("Hello there.",)
    model: ServedModel = MODEL
    tokens_per_delta: int = 1
    num_cached_tokens: int = 0
    num_host_tokens: int = 0
    num_disk_tokens: int = 0
    caches: tuple[CacheStats, ...] = (CacheStats("a", DeviceStats(100, 7, 20, 16), None),)
    """One an engine; those with tiers can be trimmed and pinned."""

    standing: FleetStanding | None = None
    """What the Master knows; None without one."""

    stall_after: int | None = None
    """Give this many deltas, then none until `go_on`."""

    failure: Exception | None = None
    """Raised after `fail_after` deltas."""

    fail_after: int = 0
    last: FinishReason | None = None
    """End each sequence with this instead of what its tokens say."""

    is_dead: bool = False
    requests: list[Request] = field(default_factory=list)
    """What was asked for."""

    open_ids: set[str] = field(default_factory=set)
    """Requests that are being generated; empty again when every generator is closed."""

    num_given: int = 0
    num_reloads: int = 0
    pinned: list[tuple[tuple[int, ...], str, float]] = field(default_factory=list)
    """(token ids, salt, seconds)"""

    has_stalled: asyncio.Event = field(default_factory=asyncio.Event)
    go_on: asyncio.Event = field(default_factory=asyncio.Event)

    async def generate(self, request: Request) -> AsyncGenerator[SequenceDelta, None]:
        self.requests.append(request)
        self.open_ids.add(request.request_id)
        try:
            for count, delta in enumerate(self._deltas(request)):
                await self._misbehave(count)
                self.num_given += 1
                yield delta
        finally:
            self.open_ids.discard(request.request_id)

    async def served_model(self) -> ServedModel:
        if self.is_dead:
            raise EngineDead("no replica at 10.0.0.7")
        return self.model

    async def reload(self) -> list[Reloaded]:
        if self.failure is not None:
            raise self.failure
        self.num_reloads += 1
        return [Reloaded("a", self.model.fingerprint, is_changed=True)]

    async def cache_stats(self) -> list[CacheStats]:
        await self.served_model()
        return list(self.caches)

    async def trim_cache(self, num_bytes: int) -> list[Trimmed]:
        return [Trimmed(store, num_bytes) for store in self._stores()]

    async def pin_prefix(
        self, token_ids: Sequence[int], cache_salt: str, ttl_s: float
    ) -> list[Pinned]:
        self.pinned.append((tuple(token_ids), cache_salt, ttl_s))
        return [Pinned(store, 1, 16) for store in self._stores()]

    def _stores(self) -> list[str]:
        if all(each.tiers is None for each in self.caches):
            raise NoKVTiers
        return sorted({each.tiers.store for each in self.caches if each.tiers is not None})

    async def fleet_standing(self) -> FleetStanding:
        if self.standing is None:
            raise NoMaster
        return self.standing

    async def check_health(self) -> None:
        await self.served_model()

    async def metrics_text(self) -> str:
        await self.served_model()
        return "rtp_serve:num_requests_running 3.0\n"

    async def _misbehave(self, count: int) -> None:
        if self.failure is not None and count == self.fail_after:
            raise self.failure
        if count == self.stall_after:
            self.has_stalled.set()
            await self.go_on.wait()
        await asyncio.sleep(0)

    def _deltas(self, request: Request) -> Iterator[SequenceDelta]:
        """The n sequences take turns."""
        turns = [list(self._sequence(request, index)) for index in range(request.sampling.n)]
        for turn in range(max(map(len, turns))):
            for sequence in turns:
                yield from sequence[turn : turn + 1]

    def _sequence(self, request: Request, index: int) -> Iterator[SequenceDelta]:
        sampling = request.sampling
        text = self.texts[index % len(self.texts)]
        ids = [*self.tokenizer.encode(text, add_special_tokens=False), self.tokenizer.eos_ids[0]]
        assert sampling.max_tokens is not None
        reason = FinishReason.STOP if len(ids) <= sampling.max_tokens else FinishReason.LENGTH
        ids = ids[: sampling.max_tokens]
        for start in range(0, len(ids), self.tokens_per_delta):
            part = tuple(ids[start : start + self.tokens_per_delta])
            is_last = start + self.tokens_per_delta >= len(ids)
            yield SequenceDelta(
                request.request_id,
                index,
                token_ids=part,
                logprobs=_logprobs(part, sampling.logprobs),
                finish_reason=(self.last or reason) if is_last else None,
                stop_token_id=part[-1] if is_last and reason is FinishReason.STOP else None,
                num_cached_tokens=self.num_cached_tokens,
                num_host_tokens=self.num_host_tokens,
                num_disk_tokens=self.num_disk_tokens,
                prompt_logprobs=_prompt_logprobs(request) if start == 0 else (),
                fingerprint=self.model.fingerprint if start == 0 else "",
                error="tensor of shape [3] at 0x7f00" if self.last is FinishReason.ERROR else "",
            )


def _logprobs(token_ids: tuple[int, ...], num_top: int | None) -> tuple[TokenLogprobs, ...]:
    """The token itself is the likeliest, its neighbours in the vocabulary follow."""
    if num_top is None:
        return ()
    return tuple(
        TokenLogprobs(each, -0.25, 1, tuple((each + i, -0.25 - i) for i in range(num_top)))
        for each in token_ids
    )


def _prompt_logprobs(request: Request) -> tuple[TokenLogprobs | None, ...]:
    if request.sampling.prompt_logprobs is None:
        return ()
    rest = request.prompt_token_ids[1:]
    return (None, *_logprobs(rest, request.sampling.prompt_logprobs))
