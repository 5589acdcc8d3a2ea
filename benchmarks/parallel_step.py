"""How long a step takes from the process that schedules it to one that runs it."""

import time
from statistics import median

from benchmarks.rank_processes import run_processes, unique_name
from benchmarks.report import Report, say
from rtp_serve.engine.output import SchedulerOutput
from rtp_serve.native.step_ring import StepReader, StepWriter
from rtp_serve.worker.ranks.messages import Step, decode_order, encode

_NUM_SEQS = 32
_STEPS = 300
_GAP_S = 0.002
"""Between steps: as a step takes, so that readers sleep where they would."""

_PATIENCE_S = 60.0


def measure(report: Report, repetitions: int) -> None:
    """Medians of steps, one a repetition."""
    say("step broadcast")
    medians = []
    for _ in range(repetitions):
        sent, read = run_processes(2, _run, unique_name("steps"), unique_name("answers"))
        latencies = [there - here for here, there in zip(sent, read, strict=True)]
        medians.append(median(latencies) * 1e6)
    report.add("step_broadcast_us", medians)


def decode_step(step: int) -> SchedulerOutput:
    """Every sequence gets a token, and two of them a block."""
    blocks = [() for _ in range(_NUM_SEQS)]
    return SchedulerOutput(
        step=step,
        seq_ids=tuple(range(1000, 1000 + _NUM_SEQS)),
        num_computed_tokens=tuple(500 + 7 * seq + step for seq in range(_NUM_SEQS)),
        num_scheduled_tokens=(1,) * _NUM_SEQS,
        is_sampled=(True,) * _NUM_SEQS,
        new_block_ids=((4000 + step,), (5000 + step,), *blocks[2:]),
    )


def _run(side: int, name: str, answers: str) -> list[float]:
    return _write(name, answers) if side == 0 else _read(name, answers)


def _write(name: str, answers: str) -> list[float]:
    """When the encoding of each step began."""
    writer, reader = StepWriter(name, 1), StepReader(answers, 0, 1)
    begins = []
    for step in range(_STEPS):
        scheduled = decode_step(step)
        begins.append(time.perf_counter())
        writer.write(encode(Step(scheduled)), _PATIENCE_S)
        reader.read(_PATIENCE_S)
        time.sleep(_GAP_S)
    return begins


def _read(name: str, answers: str) -> list[float]:
    """When each step was decoded; the clock is the machine's."""
    reader, writer = StepReader(name, 0, 1), StepWriter(answers, 1)
    ends = []
    for _ in range(_STEPS):
        message = reader.read(_PATIENCE_S)
        assert message is not None, "no step came"
        decode_order(message)
        ends.append(time.perf_counter())
        writer.write(b"", _PATIENCE_S)
    return ends
