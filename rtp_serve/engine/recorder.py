"""Latencies of sequences and figures of the engine, handed to a metrics sink after each step.

    arrival ──queue time──► first step ──► first token ──ITL──► … ──► last token
    └──────────────TTFT──────────────────►            └───── decode time ─────┘
    └──────────────────────────────── E2E ───────────────────────────────────►

TPOT = decode time / (output tokens − 1), per sequence.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from operator import attrgetter

from rtp_serve.engine.output import ExpertLoad
from rtp_serve.engine.prefetching import PrefetchCounts
from rtp_serve.engine.scheduler import Scheduler, SchedulerCounters
from rtp_serve.engine.sequence import Sequence
from rtp_serve.kv_store.tier_counts import Tier, TierCounts
from rtp_serve.observability import metrics
from rtp_serve.observability.metrics import MetricsSink

_GAUGES = (metrics.NUM_RUNNING, metrics.NUM_WAITING, metrics.KV_USAGE)
_TIER_COUNTERS = {
    metrics.TIER_RESTORED: attrgetter("restored"),
    metrics.TIER_RESTORE_SECONDS: attrgetter("restore_s"),
    metrics.TIER_STORED: attrgetter("stored"),
    metrics.TIER_NOT_STORED: attrgetter("not_stored"),
    metrics.TIER_MISMATCHES: attrgetter("mismatches"),
}


class EngineRecorder:
    """Turns what happened into measurements. Reads sequences and the scheduler; changes only the
    sequences' timestamps."""

    def __init__(self, sink: MetricsSink) -> None:
        self._sink = sink
        self._counters = SchedulerCounters()
        self._gauges: tuple[float, ...] = ()
        self._tiers = {tier: TierCounts() for tier in Tier}
        self._prefetches = PrefetchCounts()

    def scheduled(self, seq: Sequence, now_s: float) -> None:
        """A sequence is in a step for the first time."""
        seq.first_scheduled_s = now_s
        self._sink.observe(metrics.QUEUE_TIME, now_s - seq.arrival_s)

    def tokens(self, seqs: list[Sequence], now_s: float) -> None:
        """Each of these got a token."""
        self._sink.add(metrics.GENERATION_TOKENS, len(seqs))
        for seq in seqs:
            if seq.last_token_s is None:
                seq.first_token_s = now_s
                if not seq.num_emitted_tokens:  # else another engine gave the first one
                    self._sink.observe(metrics.TTFT, now_s - seq.arrival_s)
            else:
                self._sink.observe(metrics.ITL, now_s - seq.last_token_s)
            seq.last_token_s = now_s

    def finished(self, seq: Sequence, now_s: float) -> None:
        """A sequence ended, for whatever reason."""
        assert seq.finish_reason is not None, f"{seq} has not finished"
        labels = {"finished_reason": seq.finish_reason.value}
        self._sink.add(metrics.REQUESTS_FINISHED, 1, labels)
        self._sink.add(metrics.PROMPT_TOKENS, seq.num_prompt_tokens)
        if seq.first_token_s is None or seq.last_token_s is None:
            return
        self._sink.observe(metrics.E2E, now_s - seq.arrival_s)
        num_tokens = seq.num_output_tokens - seq.num_emitted_tokens
        if num_tokens > 1:
            decode_s = seq.last_token_s - seq.first_token_s
            self._sink.observe(metrics.TPOT, decode_s / (num_tokens - 1))

    def state(self, scheduler: Scheduler, kv_usage: float) -> None:
        """The engine's state after a step or an abort; what has not changed is not told again."""
        gauges = (scheduler.num_running, scheduler.num_waiting, kv_usage)
        if gauges != self._gauges:
            for gauge, value in zip(_GAUGES, gauges, strict=True):
                self._sink.set(gauge, value)
            self._gauges = gauges
        now, before = scheduler.counters, self._counters
        if now != before:
            self._sink.add(metrics.PREEMPTIONS, now.num_preemptions - before.num_preemptions)
            self._sink.add(metrics.PREFIX_QUERIES, now.prefix_queries - before.prefix_queries)
            self._sink.add(metrics.PREFIX_HITS, now.prefix_hits - before.prefix_hits)
            self._sink.add(metrics.PARTIAL_HITS, now.partial_hits - before.partial_hits)
            self._counters = replace(now)

    def expert_loads(self, loads: Iterable[ExpertLoad]) -> None:
        """How tokens were spread over experts. A series an expert would be thousands of them."""
        for load in loads:
            labels = {"layer": str(load.layer)}
            self._sink.add(metrics.EXPERT_MEAN_TOKENS, load.mean, labels)
            self._sink.add(metrics.EXPERT_MAX_TOKENS, load.largest, labels)

    def tiers(self, counts: Mapping[Tier, TierCounts]) -> None:
        """What went to and from the tiers below; others count on meanwhile."""
        for tier, counting in counts.items():
            before = self._tiers[tier]
            if counting == before:
                continue
            now = self._tiers[tier] = replace(counting)
            for metric, count in _TIER_COUNTERS.items():
                if amount := count(now) - count(before):
                    self._sink.add(metric, amount, {"tier": tier.value})

    def prefetches(self, now: PrefetchCounts) -> None:
        """Chains that were to be brought here."""
        before = self._prefetches
        if now != before:
            self._sink.add(metrics.PREFETCHES_ASKED, now.asked - before.asked)
            self._sink.add(metrics.PREFETCHES_MADE, now.made - before.made)
            self._sink.add(metrics.PREFETCHED_BLOCKS, now.blocks - before.blocks)
            self._prefetches = replace(now)
