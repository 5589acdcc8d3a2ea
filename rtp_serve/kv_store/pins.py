"""Pins: blocks that stay, because somebody said so, until he is gone or the time is.

A pin is of an owner and a key, and counts once however often it is set.
"""

from rtp_serve.kv_cache.block import BlockHash


class PinTable:
    """All pins. A block counts its own."""

    def __init__(self) -> None:
        self._expiries: dict[tuple[str, BlockHash], float | None] = {}

    def __len__(self) -> int:
        return len(self._expiries)

    def has(self, owner: str, key: BlockHash) -> bool:
        return (owner, key) in self._expiries

    def add(self, owner: str, key: BlockHash, expires_s: float | None) -> None:
        """A new pin, or a new expiry for an old one. None never expires."""
        self._expiries[owner, key] = expires_s

    def drop(self, owner: str, key: BlockHash) -> bool:
        """Whether there was one."""
        is_set = self.has(owner, key)
        self._expiries.pop((owner, key), None)
        return is_set

    def drop_expired(self, now_s: float) -> list[BlockHash]:
        """The keys of the pins dropped, one for each."""
        expired = [
            pin
            for pin, expires_s in self._expiries.items()
            if expires_s is not None and expires_s <= now_s
        ]
        return self._drop(expired)

    def drop_owner(self, owner: str) -> list[BlockHash]:
        """The keys of the pins dropped."""
        return self._drop([pin for pin in self._expiries if pin[0] == owner])

    def drop_key(self, key: BlockHash) -> None:
        """The block is gone, whoever pinned it."""
        self._drop([pin for pin in self._expiries if pin[1] == key])

    def all(self) -> list[tuple[str, BlockHash, float | None]]:
        """Owner, key and expiry of each, in the order in which they were set."""
        return [(owner, key, expires_s) for (owner, key), expires_s in self._expiries.items()]

    def owners(self) -> set[str]:
        return {owner for owner, _ in self._expiries}

    def count_by_key(self) -> dict[BlockHash, int]:
        """For invariants."""
        counts: dict[BlockHash, int] = {}
        for _, key in self._expiries:
            counts[key] = counts.get(key, 0) + 1
        return counts

    def _drop(self, pins: list[tuple[str, BlockHash]]) -> list[BlockHash]:
        for pin in pins:
            del self._expiries[pin]
        return [key for _, key in pins]
