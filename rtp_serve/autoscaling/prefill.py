"""How many replicas it takes to keep the TTFT targets."""

from math import ceil

from rtp_serve.autoscaling.history import RoleHistory
from rtp_serve.autoscaling.queueing import Traffic, WaitLimit, servers_needed
from rtp_serve.config.autoscaling import AutoscalingConfig

_GAIN = 5.0
_MAX_CORRECTION = 2.0
"""The load that is planned for, over the forecast: one and the gain times what attainment lacks."""

_MIX_S = 60.0
"""The mix of prompt lengths is that of so long."""


class PrefillNeed:
    """Feed-forward from arrivals, feedback from what waits."""

    def __init__(self, config: AutoscalingConfig) -> None:
        self._config = config

    def expected(self, history: RoleHistory) -> tuple[int, dict[str, float]]:
        """Replicas for what is forecast."""
        config = self._config
        recent = history.arrivals.recent(_MIX_S)
        if not recent.count:
            return 0, {"tokens_per_s": 0.0}
        # Late first tokens ask for more than the model does: its queue is one line for all, while
        # a replica's line may have a long prompt at its head.
        correction = min(
            _MAX_CORRECTION, 1 + _GAIN * max(0.0, config.attainment - history.attained)
        )
        tokens_per_s = correction * history.arrivals.forecast(config.forecast.startup_s)
        mean_tokens = recent.num_tokens / recent.count
        traffic = Traffic(
            tokens_per_s / mean_tokens,
            history.s_per_token * mean_tokens,
            history.arrivals.dispersion,
            history.service_cv2,
        )
        limits = self._limits(history)
        num, late = servers_needed(traffic, limits, 1 - config.attainment, config.max_replicas)
        return num, {
            "tokens_per_s": tokens_per_s,
            "correction": correction,
            "requests_per_s": traffic.rate,
            "service_s": traffic.service_s,
            "arrival_cv2": traffic.arrival_cv2,
            "service_cv2": traffic.service_cv2,
            "offered": traffic.offered,
            "late_share": late,
        }

    def backlog(
        self, history: RoleHistory, num_running: int, num_unrouted: float
    ) -> tuple[int, dict[str, float]]:
        """Replicas with which what waits now is done soon enough after they have started."""
        config = self._config
        recent = history.arrivals.recent(_MIX_S)
        mean_tokens = recent.num_tokens / recent.count if recent.count else 1024.0
        work_s = history.s_per_token * (history.present.waiting_tokens + num_unrouted * mean_tokens)
        offered = history.s_per_token * history.arrivals.forecast(0.0)
        wait_s = self._mean_wait_s(history)
        numbers = {"backlog_s": work_s, "allowed_wait_s": wait_s}
        if work_s <= num_running * wait_s and not num_unrouted:
            return 0, numbers
        startup_s = config.forecast.startup_s
        left_s = max(0.0, work_s + (offered - num_running) * startup_s)
        return ceil(offered + left_s / wait_s), numbers | {"left_after_startup_s": left_s}

    def _limits(self, history: RoleHistory) -> list[WaitLimit]:
        """What the target leaves for waiting, by bucket. No number of replicas keeps one that the
        prompt alone takes longer than."""
        recent = history.arrivals.recent(_MIX_S)
        limits = []
        for bucket, count in enumerate(recent.counts):
            if not count or not self._config.targets.ttft:
                continue
            service_s = history.s_per_token * recent.tokens[bucket] / count
            wait_s = self._config.targets.ttft[bucket].ttft_s - service_s
            if wait_s > 0:
                limits.append(WaitLimit(count / recent.count, wait_s))
        return limits

    def _mean_wait_s(self, history: RoleHistory) -> float:
        limits = self._limits(history)
        share = sum(each.share for each in limits)
        if not share:
            return 1.0
        return max(0.1, sum(each.share * each.wait_s for each in limits) / share)
