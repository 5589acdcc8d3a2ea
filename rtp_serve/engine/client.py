"""What a front end needs of an engine, wherever the engine runs."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Protocol

from rtp_serve.engine.cache_answers import CacheStats, Pinned, Trimmed
from rtp_serve.engine.request import Request, SequenceDelta
from rtp_serve.kv_cache.block import BlockHash, chain_hashes, root_hash
from rtp_serve.routing.standing import FleetStanding


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What the front end must know of the model behind an engine."""

    name: str
    """The name clients use."""

    max_model_len: int
    """Prompt plus output, in tokens."""

    vocab_size: int
    eos_token_ids: tuple[int, ...]
    fingerprint: str = ""
    """Digest of model, KV format and numerics plan: equal values promise equal seeded outputs."""

    content: str = ""
    """Digest of the weights and of what the model does with them, the same however many ranks
    share the model: where it differs other tokens are to be expected."""

    block_size: int = 16
    """Tokens of a KV block."""

    namespace: bytes = b""
    """What a KV block's content depends on beside its tokens: models with equal weights share
    blocks, others never do."""

    def block_hashes(self, token_ids: Sequence[int], cache_salt: str) -> tuple[BlockHash, ...]:
        """Of a prompt's full blocks, as the engine has them under that salt of its requests."""
        return chain_hashes(root_hash(self.namespace, cache_salt), token_ids, self.block_size)


@dataclass(frozen=True, slots=True)
class Reloaded:
    """What came of a reload at one engine."""

    replica: str
    """The engine's name."""

    fingerprint: str
    """Of what new requests run on now."""

    is_changed: bool
    """False where the weights were those that ran already."""


class EngineClient(Protocol):
    """Generates tokens. `AsyncEngine` does it in this process, the ingress through its replicas."""

    def generate(self, request: Request) -> AsyncGenerator[SequenceDelta, None]:
        """Stream the request's deltas until each of its n sequences has a finish reason.

        Closing the generator early aborts the request within one step. Raises Overloaded when the
        queue is full, EngineDead when the engine is gone.
        """
        ...

    async def served_model(self) -> ServedModel:
        """The model's limits; waits until the engine is ready."""
        ...

    async def reload(self) -> list[Reloaded]:
        """Read the model's weights again, at every engine; requests that come later run on them.

        Those under way finish on the weights they began with. Raises ReloadFailed unless every
        engine did it, EngineDead when none is there.
        """
        ...

    async def cache_stats(self) -> list[CacheStats]:
        """What each engine's caches hold. Those that do not answer are left out; raises EngineDead
        when none does."""
        ...

    async def trim_cache(self, num_bytes: int) -> list[Trimmed]:
        """Have each node's store give up arena blocks of at least so many bytes, once for all
        engines that share it.

        Raises NoKVTiers where no engine has one, EngineDead when none answers.
        """
        ...

    async def pin_prefix(
        self, token_ids: Sequence[int], cache_salt: str, ttl_s: float
    ) -> list[Pinned]:
        """Have each node's store keep what its arena has of a prompt's beginning, for a time.

        Raises NoKVTiers where no engine has one, EngineDead when none answers.
        """
        ...

    async def fleet_standing(self) -> FleetStanding:
        """What the Master knows of the engines, and how it has decided of late. Raises NoMaster
        where there is none, MasterUnavailable when it does not answer."""
        ...

    async def check_health(self) -> None:
        """Raise EngineDead if no request can be served."""
        ...

    async def metrics_text(self) -> str:
        """Engine figures in Prometheus text format."""
        ...
