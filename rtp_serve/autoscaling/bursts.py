"""What bursts of late took, so that the next one finds replicas."""

from collections import deque


class BurstMemory:
    """Needs of the past, each with the number of requests that came then. The quantile over
    requests is the number of replicas with which that share of them would have found enough."""

    def __init__(self, memory_s: float, quantile: float) -> None:
        self._memory_s, self._quantile = memory_s, quantile
        self._seen: deque[tuple[float, float, int]] = deque()  # time, requests, replicas

    def add(self, now: float, num_requests: float, num_replicas: int) -> None:
        seen = self._seen
        if num_requests:
            seen.append((now, num_requests, num_replicas))
        while seen and seen[0][0] <= now - self._memory_s:
            seen.popleft()

    @property
    def num_replicas(self) -> int:
        """0 if nothing is remembered."""
        left = self._quantile * sum(requests for _, requests, _ in self._seen)
        for num, requests in sorted((num, requests) for _, requests, num in self._seen):
            left -= requests
            if left <= 0:
                return num
        return 0
