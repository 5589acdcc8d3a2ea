"""Up at once, down one by one: from what is needed to what is ordered."""

from collections import deque

from rtp_serve.config.autoscaling import ScalingConfig


class Steps:
    """Of one role."""

    def __init__(self, config: ScalingConfig, hold_s: float) -> None:
        """`hold_s`: fewer are enough for so long before one goes."""
        self._config = config
        self._hold_s = hold_s
        self._needs: deque[tuple[float, int]] = deque()  # falling: those that still count
        self._too_few_since_s: float | None = None
        self._stepped_s = float("-inf")

    def held(self, need: int, now: float) -> int:
        """The most that was needed in the down-scale delay, with `need` of now."""
        needs = self._needs
        while needs and needs[-1][1] <= need:
            needs.pop()
        needs.append((now, need))
        while needs[0][0] <= now - self._hold_s and len(needs) > 1:
            needs.popleft()
        return needs[0][1]

    def next(self, need: int, held: int, target: int, now: float) -> int:
        """The number to order, of `target` that are ordered now."""
        if need <= target:
            self._too_few_since_s = None
        if need > target:
            if self._too_few_since_s is None:
                self._too_few_since_s = now
            if now - self._too_few_since_s < self._config.upscale_delay_s:
                return target
            self._too_few_since_s = None
            return need
        if held < target and now - self._stepped_s >= self._config.downscale_step_s:
            self._stepped_s = now
            return target - 1
        return target


def step_reason(target: int, before: int, cause: str, need: int, held: int) -> str:
    """What `target` replicas are ordered for, of which there were `before`."""
    if target > before:
        return f"{cause}: {need} needed"
    if target < before:
        return f"{held} were enough of late"
    return f"{cause}: {need} needed, {held} of late"
