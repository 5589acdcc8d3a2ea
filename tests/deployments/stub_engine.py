"""A torch-free engine for replicas under test; what it generates can be predicted exactly."""

import threading

from ray import serve

from deployments.aggregated import assemble
from deployments.args import replica_options
from deployments.replicas import EngineReplica
from rtp_serve.clock import Clock
from rtp_serve.config.engine import EngineConfig
from rtp_serve.config.serving import AppConfig
from rtp_serve.engine.async_engine import AsyncEngine
from rtp_serve.engine.executor import CompletedStep
from rtp_serve.engine.output import SchedulerOutput
from rtp_serve.observability.metrics import MetricsSink, PrometheusSink, TeeSink
from tests.factories import MemoryWorker, make_core

SLOW_TOKEN = 999
"""A prompt that starts with it takes SLOW_STEP_S to compute, without the GIL as a kernel does."""

SLOW_STEP_S = 2.0

POISON_TOKEN = 998
"""A prompt that starts with it makes the step fail, and with it the engine."""

_NUM_BLOCKS = 2048


class StubWorker(MemoryWorker):
    """Predictable tokens; some steps are slow, some fail."""

    def __init__(self, step_s: float) -> None:
        """Each step takes `step_s` at least."""
        super().__init__(_NUM_BLOCKS)
        self._step_s = step_s

    def submit(self, scheduled: SchedulerOutput) -> CompletedStep:
        if self._step_s:
            threading.Event().wait(self._step_s)
        first_tokens = {int(new.token_ids[0]) for new in scheduled.new_seqs}
        if SLOW_TOKEN in first_tokens:
            threading.Event().wait(SLOW_STEP_S)
        if POISON_TOKEN in first_tokens:
            raise RuntimeError("poisoned")
        return super().submit(scheduled)


def build_stub_engine(config: EngineConfig, *, clock: Clock, sink: MetricsSink) -> AsyncEngine:
    return _build(config, clock, sink, step_s=0.0)


def build_slow_engine(config: EngineConfig, *, clock: Clock, sink: MetricsSink) -> AsyncEngine:
    """A token takes it 30 ms, so that streams last."""
    return _build(config, clock, sink, step_s=0.03)


def _build(config: EngineConfig, clock: Clock, sink: MetricsSink, step_s: float) -> AsyncEngine:
    own = PrometheusSink()
    core = make_core(
        num_blocks=_NUM_BLOCKS,
        max_num_seqs=64,
        max_num_batched_tokens=512,
        clock=clock,
        sink=TeeSink(own, sink),
        worker=StubWorker(step_s),
    )
    return AsyncEngine(core, config.scheduler.max_queued, own.render)


def app(config: AppConfig) -> serve.Application:
    """The application over stub engines, for a YAML file."""
    return assemble(config, build_stub_engine)


def slow_replicas(config: AppConfig) -> serve.Application:
    """Replicas alone, whose streams last."""
    options = replica_options(config)
    return serve.deployment(EngineReplica, **options).bind(config.engine, build_slow_engine)
