"""Room on the device for keys and values that another engine computes.

    reserve ──► (waits for room) ──► reserved ──► deposit … ──► admitted, or ended
                                        │            │
                              others fill blocks     what is complete can be found

As with a restore from the tiers, what arrives fills the device's prefix cache and nothing else. Its
request runs here as one that brings the output which the other engine made, and finds in the cache
what it finds: blocks that never came cost computing and nothing more. Until it is admitted the
blocks are held for it, so that it has room whatever comes between.
"""

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Protocol

from rtp_serve.engine.request import Request
from rtp_serve.engine.version import ModelVersion
from rtp_serve.kv_cache.block import BlockHash
from rtp_serve.kv_cache.manager import KVCacheManager


@dataclass(frozen=True, slots=True)
class Reserved:
    """Blocks of a prompt's chain."""

    num_present: int
    """So many, from the chain's beginning, are here already."""

    block_ids: tuple[int, ...]
    """For those after them, the last of which may be partial: to be filled by who asked."""

    fingerprint: str
    """Of the model version that the prompt's keys and values are to be of."""

    content: str
    """Of the same version, see `ServedModel`."""


class Receiver(Protocol):
    """Who asked for room."""

    def reserved(self, blocks: Reserved) -> None:
        """Called once, on the engine's thread, when there is room. Must return at once."""
        ...


@dataclass(slots=True, eq=False)
class _Reception:
    """A prompt's chain; the manager's BlockHolder."""

    request: Request
    version: ModelVersion
    receiver: Receiver
    token_ids: list[int]
    block_ids: list[int] = field(default_factory=list)
    block_hashes: list[BlockHash] = field(default_factory=list)
    num_registered_blocks: int = 0
    num_computed_tokens: int = 0

    @property
    def namespace(self) -> bytes:
        return self.version.namespace

    @property
    def cache_salt(self) -> str:
        return self.request.cache_salt

    @property
    def is_granted(self) -> bool:
        return bool(self.block_ids)


@dataclass(frozen=True, slots=True)
class Deposited:
    """Full blocks that can be found since."""

    chain: tuple[BlockHash, ...]
    """From its beginning."""

    namespace: bytes
    salt: str


class Receiving:
    """The receptions of one engine; for its thread."""

    def __init__(self, cache: KVCacheManager) -> None:
        self._cache = cache
        self._receptions: dict[str, _Reception] = {}
        self._asking: deque[_Reception] = deque()

    @property
    def is_active(self) -> bool:
        """Whether blocks are held for anybody."""
        return len(self._receptions) > len(self._asking)

    @property
    def versions(self) -> set[int]:
        """Numbers of the model versions that prompts are received for: their requests are yet to
        come, and may go on with no other."""
        return {each.version.number for each in self._receptions.values()}

    @property
    def num_asking(self) -> int:
        """Receptions that wait for room."""
        return len(self._asking)

    def holds_for(self, request_id: str) -> bool:
        """Whether a request that comes finds blocks."""
        reception = self._receptions.get(request_id)
        return reception is not None and reception.is_granted

    def reserve(self, request: Request, version: ModelVersion, receiver: Receiver) -> None:
        """Ask for room for a prompt; `grant` gives it, first come, first served."""
        assert request.request_id not in self._receptions, f"{request.request_id!r} is received"
        reception = _Reception(request, version, receiver, list(request.prompt_token_ids))
        self._receptions[request.request_id] = reception
        self._asking.append(reception)

    def grant(self) -> None:
        """Give room to those who ask, as far as there is some."""
        while self._asking and self._has_granted(self._asking[0]):
            self._asking.popleft()

    def deposit(self, request_id: str, num_blocks: int) -> Deposited | None:
        """So many blocks of the chain are complete: let them be found.

        None if no full one is among them, or nobody receives this any more.
        """
        reception = self._receptions.get(request_id)
        if reception is None or not reception.is_granted:
            return None
        block_size, num_tokens = self._cache.block_size, len(reception.token_ids)
        num_full = min(num_blocks, num_tokens // block_size)
        for index in range(reception.num_registered_blocks, num_full):
            self._cache.register_restored(reception, index, reception.block_ids[index])
        reception.num_registered_blocks = num_full
        if num_blocks * block_size >= num_tokens:
            self._cache.register_received_tail(reception)
        if not num_full:
            return None
        chain = tuple(reception.block_hashes[:num_full])
        return Deposited(chain, reception.namespace, reception.cache_salt)

    def end(self, request_id: str) -> None:
        """Hold nothing for it any more; unknown ones are ignored."""
        reception = self._receptions.pop(request_id, None)
        if reception is None:
            return
        if reception.is_granted:
            self._cache.pool.release(reception.block_ids)
        else:
            self._asking.remove(reception)

    def holders(self) -> Counter[int]:
        """Every block that is held, and how often. For tests and idle debug runs."""
        held: Counter[int] = Counter()
        for each in self._receptions.values():
            held.update(each.block_ids)
        return held

    def _has_granted(self, reception: _Reception) -> bool:
        pool = self._cache.pool
        cached_ids = self._cache.lookup_prefix(reception)
        num_blocks = -(-len(reception.token_ids) // self._cache.block_size)
        num_needed = num_blocks - len(cached_ids)
        if num_needed > pool.num_free - pool.num_idle(cached_ids):
            return False
        pool.hold(cached_ids)
        added = pool.allocate(num_needed)
        reception.block_ids = [*cached_ids, *added]
        reception.num_registered_blocks = len(cached_ids)
        model = reception.version.model
        reception.receiver.reserved(
            Reserved(len(cached_ids), tuple(added), model.fingerprint, model.content)
        )
        return True
