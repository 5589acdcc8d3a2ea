"""Slabs by tenant: a quota of each tenant's own, and the rest for all.

A tenant within its quota loses a block to itself only. What it has above its quota is evicted
before that, whoever needs the slab. Without quotas every block is above, and all have all.
"""

from collections import Counter
from collections.abc import Mapping


class TenantUse:
    """How many slabs each tenant has and may keep."""

    def __init__(self, num_slabs: int, quotas: Mapping[str, int]) -> None:
        """`quotas`: slabs by tenant; tenants that are not in it have none of their own."""
        assert sum(quotas.values()) <= num_slabs, f"quotas {quotas} of {num_slabs} slabs"
        assert min(quotas.values(), default=0) >= 0, f"quotas {quotas}"
        self._quotas = dict(quotas)
        self._used: Counter[str] = Counter()

    def add(self, tenant: str) -> None:
        self._used[tenant] += 1

    def remove(self, tenant: str) -> None:
        assert self._used[tenant] > 0, f"tenant {tenant!r} has no slab"
        self._used[tenant] -= 1
        if not self._used[tenant]:
            del self._used[tenant]

    def is_over_quota(self, tenant: str) -> bool:
        return self._used[tenant] > self._quotas.get(tenant, 0)

    def used(self) -> dict[str, int]:
        """Slabs by tenant, those without any left out."""
        return dict(self._used)
