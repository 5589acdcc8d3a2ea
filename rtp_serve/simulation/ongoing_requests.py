"""Serve's own autoscaling, `target_ongoing_requests`, as Ray 2.60 does it.

    desired = current + factor · (total / target − current)        rounded up

`total` is the mean over the look-back period of requests that run and wait, `current` the replicas
that run. More replicas are ordered when `desired` has been above the target for the up-scale delay
on end, fewer when it has been below for the down-scale delay; then it is the latest `desired` that
counts. From zero one comes at once.
"""

from collections import deque
from dataclasses import dataclass
from math import ceil

from rtp_serve.simulation.scaled_fleet import FleetView

_EPSILON_S = 1e-6


@dataclass(frozen=True, slots=True)
class OngoingRequests:
    """Settings, by Serve's names; its defaults."""

    target_ongoing_requests: float = 2.0
    upscale_delay_s: float = 30.0
    downscale_delay_s: float = 600.0
    look_back_period_s: float = 30.0
    upscaling_factor: float = 1.0
    downscaling_factor: float = 1.0
    min_replicas: int = 1
    max_replicas: int = 1


class OngoingRequestsScaler:
    """One deployment's."""

    def __init__(self, settings: OngoingRequests) -> None:
        self._settings = settings
        self._samples: deque[tuple[float, float]] = deque()
        self._since_s: float | None = None
        self._is_up = False

    def target(self, view: FleetView, now: float) -> int:
        settings = self._settings
        total = self._total(view.num_ongoing, now)
        if not view.num_running and total > 0:
            wanted = max(ceil(settings.upscaling_factor), view.num_target)
        else:
            wanted = self._delayed(max(0, self._desired(total, view)), view.num_target, now)
        return max(settings.min_replicas, min(settings.max_replicas, wanted))

    def _total(self, num_ongoing: float, now: float) -> float:
        """Every sample is of one period, so the mean by time is theirs."""
        samples = self._samples
        samples.append((now, num_ongoing))
        while samples[0][0] < now - self._settings.look_back_period_s + _EPSILON_S:
            samples.popleft()
        return sum(value for _, value in samples) / len(samples)

    def _desired(self, total: float, view: FleetView) -> int:
        settings, current = self._settings, view.num_running
        if not current:
            return view.num_target
        desired = total / settings.target_ongoing_requests
        factor = settings.upscaling_factor if desired > current else settings.downscaling_factor
        scaled = ceil(current + factor * (desired - current))
        if ceil(desired) < current and scaled == current:
            scaled -= 1
        return scaled

    def _delayed(self, desired: int, target: int, now: float) -> int:
        if desired == target:
            self._since_s = None
            return target
        is_up = desired > target
        if self._since_s is None or is_up != self._is_up:
            self._since_s, self._is_up = now, is_up
        settings = self._settings
        if not is_up and target > 1:
            desired = max(1, desired)
        delay_s = settings.upscale_delay_s if is_up else settings.downscale_delay_s
        if now - self._since_s + _EPSILON_S < delay_s:
            return target
        self._since_s = None
        return desired
