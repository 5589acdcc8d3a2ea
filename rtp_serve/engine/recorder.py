"""Latencies of sequences and figures of the engine, handed to a metrics sink after each step.

    arrival ──queue time──► first step ──► first token ──ITL──► … ──► last token
    └──────────────TTFT──────────────────►            └───── decode time ─────┘
    └──────────────────────────────── E2E ───────────────────────────────────►

TPOT = decode time / (output tokens − 1), per sequence.
"""

from rtp_serve.engine.scheduler import Scheduler, SchedulerCounters
from rtp_serve.engine.sequence import Sequence
from rtp_serve.observability import metrics
from rtp_serve.observability.metrics import MetricsSink


class EngineRecorder:
    """Turns what happened into measurements. Reads sequences and the scheduler; changes only the
    sequences' timestamps."""

    def __init__(self, sink: MetricsSink) -> None:
        self._sink = sink
        self._reported = SchedulerCounters()

    def scheduled(self, seq: Sequence, now_s: float) -> None:
        """A sequence is in a step for the first time."""
        seq.first_scheduled_s = now_s
        self._sink.observe(metrics.QUEUE_TIME, now_s - seq.arrival_s)

    def token(self, seq: Sequence, now_s: float) -> None:
        """A sequence got a token."""
        self._sink.add(metrics.GENERATION_TOKENS, 1, {})
        if seq.last_token_s is None:
            seq.first_token_s = now_s
            self._sink.observe(metrics.TTFT, now_s - seq.arrival_s)
        else:
            self._sink.observe(metrics.ITL, now_s - seq.last_token_s)
        seq.last_token_s = now_s

    def finished(self, seq: Sequence, now_s: float) -> None:
        """A sequence ended, for whatever reason."""
        assert seq.finish_reason is not None, f"{seq} has not finished"
        labels = {"finished_reason": seq.finish_reason.value}
        self._sink.add(metrics.REQUESTS_FINISHED, 1, labels)
        self._sink.add(metrics.PROMPT_TOKENS, seq.num_prompt_tokens, {})
        if seq.first_token_s is None or seq.last_token_s is None:
            return
        self._sink.observe(metrics.E2E, now_s - seq.arrival_s)
        if seq.num_output_tokens > 1:
            decode_s = seq.last_token_s - seq.first_token_s
            self._sink.observe(metrics.TPOT, decode_s / (seq.num_output_tokens - 1))

    def gauges(self, scheduler: Scheduler, kv_usage: float) -> None:
        """The engine's state after a step or an abort."""
        self._sink.set(metrics.NUM_RUNNING, scheduler.num_running)
        self._sink.set(metrics.NUM_WAITING, scheduler.num_waiting)
        self._sink.set(metrics.KV_USAGE, kv_usage)
        now, before = scheduler.counters, self._reported
        self._sink.add(metrics.PREEMPTIONS, now.num_preemptions - before.num_preemptions, {})
        self._sink.add(metrics.PREFIX_QUERIES, now.prefix_queries - before.prefix_queries, {})
        self._sink.add(metrics.PREFIX_HITS, now.prefix_hits - before.prefix_hits, {})
        self._reported = SchedulerCounters(now.num_preemptions, now.prefix_queries, now.prefix_hits)
