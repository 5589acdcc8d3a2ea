"""Ray Serve and HTTP against the engine alone, in turn, with equal settings and request lengths.

serve_fraction_of_engine    output tokens per second of a burst of 16 × 512/128 by HTTP, over the
                            same burst in this process
ttft_overhead_ms            time to first token of a request of 64 tokens by HTTP, less the same in
                            this process

The client shares the cores with the server, and that is part of the measure. The server's
processes are halted while the engine runs in this one. The load is made by vLLM's `bench serve` if
`$PEERS` has it, else by a client of our own.
"""

import tempfile
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import Annotated

import typer

from benchmarks import plans
from benchmarks.command import run
from benchmarks.in_process import InProcessEngine
from benchmarks.interleave import Interleaver
from benchmarks.load import LoadGenerator
from benchmarks.own_load import OwnClient
from benchmarks.peers import peers_directory
from benchmarks.plans import Settings
from benchmarks.prompts import PromptSource
from benchmarks.quiet import quiet
from benchmarks.report import Report, say
from benchmarks.samples import short
from benchmarks.servers import Server
from benchmarks.vllm_load import VllmBench
from benchmarks.workloads import WARM_UP, WORKLOADS, Workload
from rtp_serve.config.engine import EngineConfig
from rtp_serve.config.model import read_model_config
from rtp_serve.config.sizes import parse_bytes
from rtp_serve.loader.hub import resolve
from rtp_serve.worker.threads import available_cores

FIGURES = ("serve_fraction_of_engine", "ttft_overhead_ms")

_BURST, _FIRST = WORKLOADS["c16"], WORKLOADS["first"]


class Alone:
    """The engine in this process, under the workloads that the server gets."""

    def __init__(self, settings: Settings, report: Report, seed: int, patience_s: float) -> None:
        config = plans.our_config(settings)["applications"][0]["args"]["engine"]
        self._engine = InProcessEngine(EngineConfig.model_validate(config))
        self._prompts = PromptSource(settings.model.vocab_size, seed)
        self._report = report
        self._patience_s = patience_s

    def tokens_per_s(self, workload: Workload, number: int) -> float:
        """Of all requests at once, from the first call to the last token."""
        prompts = self._prompts.prompts(workload.num_requests, workload.prompt_tokens)
        with quiet(list, self._patience_s) as contention:
            times = self._engine.token_times(prompts, workload.output_tokens)
        rate = workload.total_output_tokens / max(each[-1] for each in times)
        self._keep(workload, number, contention.others_share, output_tokens_per_s=rate)
        return rate

    def ttft_ms(self, workload: Workload, number: int) -> float:
        """Median over requests that come one after the other."""
        found = []
        with quiet(list, self._patience_s) as contention:
            for _ in range(workload.num_requests):
                prompt = self._prompts.prompt(workload.prompt_tokens)
                (times,) = self._engine.token_times([prompt], workload.output_tokens)
                found.append(times[0] * 1e3)
        self._keep(workload, number, contention.others_share, ttft_ms=median(found))
        return median(found)

    def _keep(self, workload: Workload, number: int, others: float, **figures: float) -> None:
        run = {"server": "in-process", "workload": workload.name, "repetition": number}
        self._report.run(**run, others_cpu_share=round(others, 3), **figures)
        line = "  ".join(f"{name} {short(value)}" for name, value in figures.items())
        say(f"{workload.name} {number + 1}  in-process others' CPU {others:.1%}  {line}")


def measure(
    alone: Alone, interleaver: Interleaver, server: Server, repetitions: int, report: Report
) -> None:
    """Alternate between the two, and put the figures into `report`."""
    interleaver.run(server, WARM_UP, -1)
    alone.tokens_per_s(WARM_UP, -1)
    in_process: dict[str, dict[int, float]] = {_BURST.name: {}, _FIRST.name: {}}
    for number in range(repetitions):
        in_process[_BURST.name][number] = alone.tokens_per_s(_BURST, number)
        interleaver.repetition(_BURST, number)
        in_process[_FIRST.name][number] = alone.ttft_ms(_FIRST, number)
        interleaver.repetition(_FIRST, number)
    name = server.plan.name
    by_http = interleaver.measured(name, _BURST.name).get("output_tokens_per_s", {})
    first = interleaver.measured(name, _FIRST.name).get("ttft_ms", {})
    engine_rates, engine_ttfts = in_process[_BURST.name], in_process[_FIRST.name]
    report.add("serve_fraction_of_engine", [by_http[each] / engine_rates[each] for each in by_http])
    report.add("ttft_overhead_ms", [first[each] - engine_ttfts[each] for each in first])
    report.add("http_tokens_per_s", list(by_http.values()))
    report.add("engine_tokens_per_s", list(engine_rates.values()))
    report.add("http_ttft_ms", list(first.values()))
    report.add("engine_ttft_ms", list(engine_ttfts.values()))
    report.add("failed_runs", [float(sum(not run.figures for run in interleaver.runs))])


def generator_for(tokenizer: Path, vocab_size: int, log: Path) -> LoadGenerator:
    """vLLM's where it is installed."""
    python = peers_directory() / "venv-vllm/bin/python"
    if not python.exists():
        return OwnClient(vocab_size)
    return VllmBench(python, tokenizer, log, reuses_connections=True)


def main(  # a command's options
    model: Annotated[str, typer.Option(help="As for `rtp-serve chat`.")] = EngineConfig().model,
    repetitions: Annotated[int, typer.Option(min=1)] = 5,
    kv_memory: Annotated[str, typer.Option(help="Of each of the two engines.")] = "1GiB",
    threads: Annotated[int | None, typer.Option(help="Default: all cores.")] = None,
    seed: int = 1,
    patience: Annotated[float, typer.Option(help="Seconds to wait for a quiet machine.")] = 30.0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
    output: Annotated[Path | None, typer.Option(help="Append raw runs as JSON lines.")] = None,
) -> None:
    """What HTTP and Ray Serve cost."""
    directory = resolve(model)
    settings = Settings(
        directory,
        gguf=None,
        model=read_model_config(directory),
        kv_bytes=parse_bytes(kv_memory),
        num_threads=threads or available_cores(),
    )
    report = Report(output)
    with tempfile.TemporaryDirectory(prefix="rtp-bench-") as name:
        work = Path(name)
        generator = generator_for(directory, settings.model.vocab_size, work / "load.log")
        say(f"load by {generator.name}")
        with closing(generator), closing(Server(plans.ours(settings, work), work / "s")) as server:
            server.wait_until_ready()
            server.halt()
            alone = Alone(settings, report, seed, patience)
            interleaver = Interleaver([server], generator, report, seed, patience)
            measure(alone, interleaver, server, repetitions, report)
    report.show(as_json=as_json)


if __name__ == "__main__":
    run(main)
