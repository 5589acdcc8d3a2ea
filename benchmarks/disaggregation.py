"""Prompts and answers in one engine against prefill and decode replicas, on the same cores.

exposed_transfer_fraction       what a prompt of 1,024 tokens waits for its transfer after its last
                                layer, over its prefill
layerwise_over_whole_exposed    that wait, over the same when all layers are copied at the end
itl_p99_over_chunked            p99 of the time between tokens of streams that run while bursts of
                                long prompts come, over one engine's with the chunk size that is
                                best for them among those with which long prompts do not wait longer
ttft_p95_ratio                  p95 of the time to first token of the long prompts, over that one's
itl_p99_over_whole_prompt       as the one before, over one engine that computes a prompt at once
resume_p95_s                    p95 of the longest pause of streams whose decode replica is killed
streams_lost                    of a hundred, those that ended with an error

Two cores show how work disturbs work. They cannot show what separate memory is worth: both replicas
read it through one controller.
"""

import tempfile
from bisect import bisect_left
from collections import Counter
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from benchmarks import topologies
from benchmarks.bursts import BurstLoad, BurstResult, run_bursts
from benchmarks.checkpoints import qwen_directory
from benchmarks.command import run
from benchmarks.lost_replica import LostReplica, lose_a_replica
from benchmarks.peers import peers_directory
from benchmarks.quiet import quiet
from benchmarks.report import Report, say
from benchmarks.servers import Server, ServerPlan
from benchmarks.topologies import Model
from rtp_serve.config.engine import EngineConfig
from rtp_serve.config.model import read_model_config
from rtp_serve.config.sizes import parse_bytes
from rtp_serve.loader.hub import resolve
from rtp_serve.worker.threads import available_cores

FIGURES = (
    "exposed_transfer_fraction",
    "layerwise_over_whole_exposed",
    "itl_p99_over_chunked",
    "itl_p99_over_whole_prompt",
    "ttft_p95_ratio",
    "resume_p95_s",
    "streams_lost",
)

_TRANSFER_TOKENS, _PROMPTS = 1024, 4
_MAX_MODEL_LEN = 4096
_CHUNKS = (8, 12, 16, 24, 32, 48, 64, 80, 96, 128, 192, 256)
_SLACK = 1.05
"""Times to first token that differ by less are equal."""


@dataclass(frozen=True, slots=True)
class Bench:
    """What every part needs."""

    model: Model
    num_threads: int
    work: Path
    report: Report
    seed: int
    patience_s: float
    repetitions: int

    def started(self, plan: ServerPlan, stack: ExitStack) -> Server:
        server = stack.enter_context(closing(Server(plan, self.work / f"{plan.name}.log")))
        server.wait_until_ready()
        server.halt()
        return server


def measure_transfers(bench: Bench) -> None:
    """Layer by layer, and all at the end; prompts one after the other."""
    plans = [
        topologies.disaggregated(bench.model, bench.work, bench.num_threads, layer_groups=groups)
        for groups in (16, 1)
    ]
    fractions, ratios = [], []
    with ExitStack() as stack:
        servers = [bench.started(plan, stack) for plan in plans]
        for number in range(-1, bench.repetitions):
            layerwise, whole = (_exposed(bench, server, number) for server in servers)
            if number >= 0:
                fractions.append(layerwise[0] / layerwise[1])
                ratios.append(layerwise[0] / whole[0])
    bench.report.add("exposed_transfer_fraction", fractions)
    bench.report.add("layerwise_over_whole_exposed", ratios)


def _exposed(bench: Bench, server: Server, number: int) -> tuple[float, float]:
    """Seconds exposed, and of prefill, of a prompt."""
    server.resume()
    with quiet(server.pids, bench.patience_s) as contention:
        before = server.figures()
        for each in range(_PROMPTS):
            seed = bench.seed + 1000 * number + each
            one = BurstLoad(0, 0, 1, _TRANSFER_TOKENS, 1, 0)
            run_bursts(server.target, one, bench.model.shape.vocab_size, seed)
        after = server.figures()
    server.halt()
    count = after["prefill_elsewhere_seconds_count"] - before["prefill_elsewhere_seconds_count"]
    exposed_s, elsewhere_s = (
        (after[name] - before[name]) / count
        for name in ("exposed_transfer_seconds_sum", "prefill_elsewhere_seconds_sum")
    )
    bench.report.run(
        part="transfer", server=server.plan.name, repetition=number, exposed_s=exposed_s,
        elsewhere_s=elsewhere_s, others_cpu_share=contention.others_share,
    )  # fmt: skip
    say(f"{server.plan.name}: {exposed_s * 1e3:.2f} ms exposed of {elsewhere_s * 1e3:.1f}")
    return exposed_s, elsewhere_s - exposed_s


def measure_bursts(bench: Bench, load: BurstLoad) -> None:
    """The best chunk size first, then it, the whole prompt and two replicas in turn."""
    model, work, threads = bench.model, bench.work, bench.num_threads
    whole = topologies.aggregated(model, work, threads, chunk=2 * _MAX_MODEL_LEN)
    with ExitStack() as stack:
        two = bench.started(topologies.disaggregated(model, work, threads, chunk=512), stack)
        at_once = bench.started(whole, stack)
        reference = _burst(bench, two, load, -1)
        chunked = _best_chunked(bench, load, reference, stack)
        servers = (two, chunked, at_once)
        found: list[list[BurstResult]] = []
        for number in range(bench.repetitions):
            start = number % 3
            turn = (*servers[start:], *servers[:start])
            results = {server.plan.name: _burst(bench, server, load, number) for server in turn}
            found.append([results[server.plan.name] for server in servers])
    report = bench.report
    report.add("itl_p99_over_chunked", [a.itl_ms(99) / b.itl_ms(99) for a, b, _ in found])
    report.add("itl_p95_over_chunked", [a.itl_ms(95) / b.itl_ms(95) for a, b, _ in found])
    report.add("itl_p99_over_whole_prompt", [a.itl_ms(99) / c.itl_ms(99) for a, _, c in found])
    report.add("ttft_p95_ratio", [a.ttft_ms(95) / b.ttft_ms(95) for a, b, _ in found])
    report.add("ttft_p95_over_whole_prompt", [a.ttft_ms(95) / c.ttft_ms(95) for a, _, c in found])
    report.add("best_chunk", [float(chunked.plan.name.rpartition("-")[2])])


def _best_chunked(
    bench: Bench, load: BurstLoad, reference: BurstResult, stack: ExitStack
) -> Server:
    """The smallest chunks, which give the least time between tokens, with which long prompts wait
    no longer than with two replicas; the largest if there are none."""
    limit_ms = reference.ttft_ms(95) * _SLACK

    def is_fair(chunk: int) -> bool:
        with ExitStack() as once:
            plan = topologies.aggregated(bench.model, bench.work, bench.num_threads, chunk)
            result = _burst(bench, bench.started(plan, once), load, -1)
        return result.ttft_ms(95) <= limit_ms

    # The larger chunks are, the sooner prompts are done.
    place = bisect_left(_CHUNKS, True, key=is_fair)
    best = _CHUNKS[min(place, len(_CHUNKS) - 1)]
    say(f"best chunk size: {best}{'' if place < len(_CHUNKS) else ', though prompts wait longer'}")
    plan = topologies.aggregated(bench.model, bench.work, bench.num_threads, best)
    return bench.started(plan, stack)


def _burst(bench: Bench, server: Server, load: BurstLoad, number: int) -> BurstResult:
    server.resume()
    seed = bench.seed + 7 * (number + 2)
    before = _computed_here(server)
    with quiet(server.pids, bench.patience_s) as contention:
        result = run_bursts(server.target, load, bench.model.shape.vocab_size, seed)
    computed_here = _computed_here(server) - before
    server.halt()
    figures = {
        f"{name}_p{percent}_ms": getattr(result, f"{name}_ms")(percent)
        for name in ("itl", "ttft")
        for percent in (50, 95, 99)
    }
    bench.report.run(
        part="bursts", server=server.plan.name, repetition=number, **figures,
        num_failed=result.num_failed, others_cpu_share=contention.others_share,
        computed_here=dict(computed_here),
    )  # fmt: skip
    line = "  ".join(f"{name} {value:.1f}" for name, value in figures.items())
    here = "".join(f"  computed here, {why}: {n}" for why, n in computed_here.items())
    say(f"{server.plan.name}: {line}  failed {result.num_failed}{here}")
    return result


def _computed_here(server: Server) -> Counter[str]:
    """Prompts that decode replicas computed although all were to be computed elsewhere, by why."""
    return server.counts("prefill_fallbacks_total", "reason") + server.counts(
        "prefill_choices_total", "reason"
    )


def measure_losses(bench: Bench, model: Model) -> None:
    """Of a small model: a hundred streams, one of two decode replicas is killed."""
    plan = topologies.disaggregated(model, bench.work, bench.num_threads, num_decode=2)
    lost: list[LostReplica] = []
    for number in range(bench.repetitions):
        with ExitStack() as stack:
            server = bench.started(plan, stack)
            server.resume()
            lost.append(lose_a_replica(server, model.shape.vocab_size, bench.seed + number))
        say(f"lost replica: {lost[-1]}")
    bench.report.add("resume_p95_s", [each.pause_p95_s for each in lost])
    bench.report.add("streams_lost", [float(each.num_lost) for each in lost])
    bench.report.add("streams_resumed", [float(each.num_resumed) for each in lost])


PARTS = ("transfer", "bursts", "losses")


def main(  # a command's options
    parts: Annotated[list[str] | None, typer.Option("--part", help="Default: all.")] = None,
    repetitions: Annotated[int, typer.Option(min=1)] = 5,
    kv_memory: Annotated[str, typer.Option(help="Of each engine.")] = "1GiB",
    streams: Annotated[int, typer.Option(help="That run all the time.")] = 4,
    seed: int = 1,
    patience: Annotated[float, typer.Option(help="Seconds to wait for a quiet machine.")] = 30.0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
    output: Annotated[Path | None, typer.Option(help="Append raw runs as JSON lines.")] = None,
) -> None:
    """What it is worth to compute prompts somewhere else."""
    report, chosen = Report(output), parts or PARTS
    kv_bytes = parse_bytes(kv_memory)
    large, small = qwen_directory(peers_directory()), resolve(EngineConfig().model)
    models = [
        Model(directory, read_model_config(directory), _MAX_MODEL_LEN, kv_bytes)
        for directory in (large, small)
    ]
    load = BurstLoad(streams, 400, burst_size=2, burst_tokens=2048, num_bursts=2, period_s=8.0)
    with tempfile.TemporaryDirectory(prefix="rtp-bench-") as name:
        bench = Bench(models[0], available_cores(), Path(name), report, seed, patience, repetitions)
        if "transfer" in chosen:
            measure_transfers(bench)
        if "bursts" in chosen:
            measure_bursts(bench, load)
        if "losses" in chosen:
            measure_losses(bench, models[1])
    report.show(as_json=as_json)


if __name__ == "__main__":
    run(main)
