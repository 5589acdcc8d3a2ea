"""Runs workloads on several servers in turn, only one of which ever runs.

The others are halted (SIGSTOP to all of their processes), so that what they do when idle costs the
measured one nothing; Ray alone takes about a twentieth of two cores.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.load import LoadGenerator, LoadResult, figures
from benchmarks.quiet import quiet
from benchmarks.report import Report, say
from benchmarks.samples import short
from benchmarks.servers import Server
from benchmarks.workloads import Workload

Measured = dict[str, dict[int, float]]
"""Figure → repetition → value."""


@dataclass(frozen=True, slots=True)
class Run:
    """One workload on one server."""

    server: str
    workload: str
    repetition: int
    figures: dict[str, float]
    """Empty if a request failed."""


class Interleaver:
    """Keeps one server running at a time and every run on record."""

    def __init__(
        self,
        servers: Sequence[Server],
        generator: LoadGenerator,
        report: Report,
        seed: int,
        patience_s: float,
    ) -> None:
        """`seed` must be new for servers that have seen loads before: they cache prompts. A run
        waits for a quiet machine at most `patience_s`."""
        self._servers = servers
        self._generator = generator
        self._report = report
        self._next_seed = seed
        self._patience_s = patience_s
        self.runs: list[Run] = []

    def repetition(self, workload: Workload, number: int) -> None:
        """The workload once on every server, each time another one first, with equal prompts."""
        self._next_seed += 1
        start = number % len(self._servers)
        for server in (*self._servers[start:], *self._servers[:start]):
            self.run(server, workload, number)

    def run(self, server: Server, workload: Workload, number: int) -> None:
        """The workload once on `server`. A run with a failed request gives no figures, loudly."""
        server.resume()
        pids = [*server.pids(), *self._generator.pids()]
        with quiet(lambda: pids, self._patience_s) as contention:
            result = self._generator.run(server.target, workload, self._next_seed)
        memory = server.replica_memory()
        server.halt()
        found: dict[str, float] = {}
        if result.is_complete(workload):
            found = figures(workload, result)
            found["beyond_kv_bytes"] = memory.beyond(server.plan.kv_bytes)
        else:
            say(f"FAILED: {_failure(server, workload, result)}")
        self.runs.append(Run(server.plan.name, workload.name, number, found))
        self._report.run(
            server=server.plan.name,
            workload=workload.name,
            repetition=number,
            generator=self._generator.name,
            waited_s=contention.waited_s,
            others_cpu_share=round(contention.others_share, 3),
            pss_bytes=memory.pss_bytes,
            num_failed=workload.num_requests - len(result.ttfts_s),
            **found,
        )
        say(
            f"{workload.name} {number + 1}  {server.plan.name:10} "
            f"others' CPU {contention.others_share:.1%}  {_line(found)}"
        )

    def measured(self, server: str, workload: str) -> Measured:
        """The complete runs, by figure and repetition."""
        found: Measured = {}
        for run in self.runs:
            if (run.server, run.workload) == (server, workload):
                for name, value in run.figures.items():
                    found.setdefault(name, {})[run.repetition] = value
        return found


_SHOWN = ("output_tokens_per_s", "decode_tokens_per_s", "ttft_ms", "p95_ttft_ms", "p95_itl_ms")


def _line(found: dict[str, float]) -> str:
    return "  ".join(f"{name} {short(found[name])}" for name in _SHOWN if name in found)


def _failure(server: Server, workload: Workload, result: LoadResult) -> str:
    first = result.errors[0].splitlines()[-1] if result.errors else "no error was told"
    return f"{workload.name} on {server.plan.name}: {len(result.errors)} requests failed: {first}"
