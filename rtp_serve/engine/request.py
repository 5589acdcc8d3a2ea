"""What a client asked, and what it gets back. Token ids only; text is `rtp_serve.text`'s."""

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import NamedTuple

from rtp_serve.config.routing import DEFAULT_CLASS
from rtp_serve.engine.sampling_params import SamplingParams


class FinishReason(StrEnum):
    """Why a sequence ended; the values are OpenAI's where it has one."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    """Somebody ended it, or the engine did not live to its end."""

    ERROR = "error"
    """It could not be computed."""


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt and how to continue it. Immutable; yields `sampling.n` sequences."""

    request_id: str
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams
    seed: int
    """64-bit base of the sequences' random numbers (the client's seed, or one drawn for it)."""

    priority: int = 0
    """Lower goes first under the "priority" policy."""

    cache_salt: str = ""
    """Requests share prefix-cache blocks only under an equal salt (the tenant, with keys)."""

    emitted: tuple[tuple[int, ...] | None, ...] = ()
    """Of a request that goes on where another engine left it: for each of the n sequences the
    output tokens that the client has, or None where the sequence has ended. Empty for a new one."""

    fingerprint: str = ""
    """It may only go on with the model version of this fingerprint, or of this content where other
    ranks' arithmetic will do; empty for any. See `ServedModel`."""

    slo_class: str = DEFAULT_CLASS
    """What it is promised, as the Master counts; nothing to the engine."""

    @property
    def indices(self) -> tuple[int, ...]:
        """Which of its n sequences are to run."""
        if not self.emitted:
            return tuple(range(self.sampling.n))
        return tuple(i for i, token_ids in enumerate(self.emitted) if token_ids is not None)

    def emitted_tokens(self, index: int) -> tuple[int, ...]:
        """The output that the sequence brings along."""
        return (self.emitted[index] or ()) if self.emitted else ()


def first_token_request(request: Request) -> Request:
    """The same, to its first token: which is the same token, as the random number of a position
    depends on (seed, position) alone. Of a request with one sequence and nothing emitted."""
    assert request.sampling.n == 1, "a prompt is computed for one sequence"
    assert not request.emitted, "the first token is there already"
    min_tokens = min(request.sampling.min_tokens, 1)
    sampling = replace(request.sampling, max_tokens=1, min_tokens=min_tokens)
    return replace(request, sampling=sampling)


def cache_salt(tenant: str, salt: str) -> str:
    """The engine's, for a client's. No two pairs give the same one, because the names of tenants
    have no slash."""
    return f"{tenant}/{salt}" if salt else tenant


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probabilities at one position."""

    token_id: int
    logprob: float
    rank: int
    """1 for the most likely token."""

    top: tuple[tuple[int, float], ...] = ()
    """(token id, logprob) of the most likely tokens, best first."""


class CachedTokens(NamedTuple):
    """How many of a prompt's tokens had their KV, and where. The larger one is the one that had
    more."""

    total: int = 0
    host: int = 0
    """Of those, what the node's memory gave and not the device."""

    disk: int = 0
    """What the disk gave."""

    remote: int = 0
    """What other nodes gave."""

    @property
    def device(self) -> int:
        return self.total - self.host - self.disk - self.remote


NOTHING_CACHED = CachedTokens()


@dataclass(frozen=True, slots=True)
class SequenceDelta:
    """What one step added to one sequence of a request."""

    request_id: str
    index: int
    """Which of the request's n sequences."""

    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    """One per token id when the request asked for them, else empty."""

    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    """The token that ended the sequence when it was a stop token (it is in `token_ids`)."""

    num_cached_tokens: int = 0
    """Prompt tokens whose KV came from the prefix cache."""

    num_host_tokens: int = 0
    """Of those, what the node's memory gave and not the device."""

    num_disk_tokens: int = 0
    num_remote_tokens: int = 0

    prompt_logprobs: tuple[TokenLogprobs | None, ...] = field(default=())
    """With the first delta: one entry per prompt token, None for the first."""

    error: str = ""
    """With FinishReason.ERROR and ABORT: what went wrong."""

    fingerprint: str = ""
    """With the first delta of an engine: of the model version that the sequence runs on."""

    @property
    def cached(self) -> CachedTokens:
        """What was cached of the prompt; no tier has given more than that."""
        total = self.num_cached_tokens
        host = min(self.num_host_tokens, total)
        disk = min(self.num_disk_tokens, total - host)
        remote = min(self.num_remote_tokens, total - host - disk)
        return CachedTokens(total, host, disk, remote)
