"""What each tenant has had lately, against its share."""

from collections.abc import Mapping

_FORGOTTEN = 1e-3
"""Of all that tenants had: less than this and a tenant is not counted as active."""


class FairShare:
    """Counts tokens to compute, which fade with time."""

    def __init__(self, half_life_s: float, weights: Mapping[str, float]) -> None:
        self._half_life_s = half_life_s
        self._weights = dict(weights)
        self._served: dict[str, float] = {}
        self._faded_s = 0.0

    def charge(self, tenant: str, num_tokens: int, now: float) -> None:
        self._fade(now)
        self._served[tenant] = self._served.get(tenant, 0.0) + num_tokens

    def is_over(self, tenant: str, now: float) -> bool:
        """It had more than its share among those that are active. Alone, nobody is."""
        self._fade(now)
        total = sum(self._served.values())
        if not total:
            return False
        active = {name for name, had in self._served.items() if had > _FORGOTTEN * total}
        weight = self._weights.get(tenant, 1.0)
        others = sum(self._weights.get(name, 1.0) for name in active - {tenant})
        if not others:
            return False
        return self._served.get(tenant, 0.0) / total > weight / (weight + others)

    def _fade(self, now: float) -> None:
        elapsed = now - self._faded_s
        if elapsed < self._half_life_s / 30:
            return
        factor = 0.5 ** (elapsed / self._half_life_s)
        self._served = {
            name: had * factor for name, had in self._served.items() if had * factor >= 1.0
        }
        self._faded_s = now
