"""Servers as processes of their own: started, waited for, halted while others run, taken down."""

import os
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from benchmarks.load import Target
from benchmarks.processes import Memory, below, descendants, memory, send_all
from benchmarks.report import say
from rtp_serve.errors import RtpServeError
from rtp_serve.observability.metrics import PREFIX

_POLL_S = 0.25
_READY_TIMEOUT_S = 900.0
_STOP_TIMEOUT_S = 40.0
_ANSWER_TIMEOUT_S = 30.0

SERVED_NAME = "m"
"""What every server calls its model."""


@dataclass(frozen=True, slots=True)
class ServerPlan:
    """How a server is started."""

    name: str
    command: tuple[str, ...]
    port: int
    kv_bytes: int
    """Memory it is given for keys and values."""

    environment: Mapping[str, str] = field(default_factory=dict)
    replica_marker: str = ""
    """In the command line of the process that computes, where it is not the first one."""


class Server:
    """A running server. It must be closed."""

    def __init__(self, plan: ServerPlan, log: Path) -> None:
        """Starts it; `wait_until_ready` says when it answers."""
        self.plan = plan
        self.target = Target(f"http://127.0.0.1:{plan.port}", SERVED_NAME)
        self._log = log
        self._halted: list[int] = []
        self._started_s = time.monotonic()
        with log.open("w", encoding="utf-8") as file:
            self._process = subprocess.Popen(
                plan.command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**_environment(), **plan.environment},
                start_new_session=True,
            )

    def wait_until_ready(self) -> None:
        """Raises RtpServeError if it ends or takes too long."""
        while not self._is_healthy(timeout_s=2.0):
            self._check_alive()
            if time.monotonic() - self._started_s > _READY_TIMEOUT_S:
                raise RtpServeError(f"{self.plan.name} is not ready; see {self._log}")
            time.sleep(_POLL_S)
        elapsed_s = time.monotonic() - self._started_s
        say(f"{self.plan.name} is ready after {elapsed_s:.1f} s, log in {self._log}")

    def pids(self) -> list[int]:
        """All its processes."""
        return descendants(self._process.pid)

    def replica_memory(self) -> Memory:
        """Of the process that computes, with its children."""
        marker = self.plan.replica_marker
        return memory(below(self._process.pid, marker) if marker else self.pids())

    def figures(self) -> dict[str, float]:
        """Of our own server's `/metrics`: sums over replicas and labels."""
        sums: dict[str, float] = {}
        for sample in self._samples():
            name = sample.name.removeprefix(PREFIX)
            sums[name] = sums.get(name, 0.0) + sample.value
        return sums

    def counts(self, name: str, label: str) -> Counter[str]:
        """One of these by this label of its: sums over replicas."""
        found = Counter[str]()
        for sample in self._samples():
            if sample.name == PREFIX + name:
                found[sample.labels[label]] += int(sample.value)
        return found

    def _samples(self) -> Iterator[Sample]:
        text = httpx.get(f"{self.target.base_url}/metrics", timeout=_ANSWER_TIMEOUT_S).text
        for family in text_string_to_metric_families(text):
            yield from family.samples

    def halt(self) -> None:
        """Stop all its processes where they are, so that it takes no CPU time."""
        self._halted = self.pids()
        send_all(self._halted, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on, and return when it answers."""
        send_all(self._halted, signal.SIGCONT)
        self._halted = []
        while not self._is_healthy(_ANSWER_TIMEOUT_S):
            self._check_alive()
            time.sleep(_POLL_S)

    def close(self) -> None:
        """Ask it to end, and make it end when it does not."""
        self.resume_signals()
        pids = self.pids()
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_STOP_TIMEOUT_S)
        left = [pid for pid in pids if pid in {*descendants(self._process.pid), *_orphans(pids)}]
        send_all(left, signal.SIGKILL)
        self._process.wait()

    def resume_signals(self) -> None:
        """Let halted processes hear signals again."""
        send_all(self._halted, signal.SIGCONT)
        self._halted = []

    def _check_alive(self) -> None:
        if self._process.poll() is not None:
            tail = "\n".join(self._log.read_text(errors="replace").splitlines()[-5:])
            raise RtpServeError(f"{self.plan.name} ended, and said:\n{tail}")

    def _is_healthy(self, timeout_s: float) -> bool:
        try:
            answer = httpx.get(f"{self.target.base_url}/health", timeout=timeout_s)
        except httpx.HTTPError:
            return False
        return answer.status_code == 200


def free_port() -> int:
    """A port that nobody listens on now: a server that outlived an earlier run keeps its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _environment() -> dict[str, str]:
    """Ours, without what would join somebody else's cluster or change how a server waits for its
    threads: importing `rtp_serve` sets `OMP_WAIT_POLICY`, which makes llama.cpp three times
    slower."""
    return {
        name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "OMP_"))
    }


def _orphans(pids: list[int]) -> list[int]:
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]
