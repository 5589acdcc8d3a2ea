"""A deployment on this machine, `configs/autoscaled.yaml`, under a load for three replicas."""

import re
import tempfile
import threading
import time
from contextlib import closing
from pathlib import Path

import httpx

from benchmarks.plans import application, shipped_config
from benchmarks.quiet import quiet
from benchmarks.report import say
from benchmarks.servers import Server
from rtp_serve.errors import RtpServeError

_NUM_STREAMS = 12
_PROMPT_TOKENS = 700
_OUTPUT_TOKENS = 32
_TIMEOUT_S = 90.0
_ANSWER_TIMEOUT_S = 120.0
"""Of a request, which may have to wait for all others."""

_POLL_S = 0.1
_REPLICA = re.compile(r'replica="([^"]+)"')


def scale_up_s(num_warm: int) -> float:
    """From the first request to three replicas that answer, with so many processes started ahead.
    Raises RtpServeError if they do not come, or a request fails."""
    with tempfile.TemporaryDirectory() as directory:
        config = shipped_config("autoscaled.yaml")
        replica = config["applications"][0]["args"]["replica"]
        replica["autoscaling"]["warm_processes"] = num_warm
        plan = application("autoscaled", config, Path(directory), kv_bytes=0)
        with closing(Server(plan, Path(directory, "log"))) as server:
            server.wait_until_ready()
            _wait_until_warm(server, num_warm)
            model = config["applications"][0]["args"]["engine"]["model"]
            return _Load(server.target.base_url, model).scale_up_s()


def _wait_until_warm(server: Server, num_warm: int) -> None:
    """Until processes that were started ahead, as many as that, have torch like the one replica,
    and nobody computes. Raises RtpServeError."""
    start_s = time.monotonic()
    while sum(map(_has_torch, server.pids())) < 1 + num_warm:
        if time.monotonic() - start_s > _TIMEOUT_S:
            raise RtpServeError(f"fewer than {num_warm} processes after {_TIMEOUT_S} s")
        time.sleep(_POLL_S)
    with quiet(server.pids, _TIMEOUT_S):
        pass


def _has_torch(pid: int) -> bool:
    """False of a process that is gone."""
    try:
        return "/libtorch_cpu" in Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return False


class _Load:
    """Streams one after the other in each of several threads, until there are enough replicas."""

    def __init__(self, base_url: str, model: str) -> None:
        self._client = httpx.Client(base_url=base_url, timeout=_ANSWER_TIMEOUT_S)
        self._model = model
        self._is_over = threading.Event()
        self._failures: list[str] = []

    def scale_up_s(self) -> float:
        start_s = time.monotonic()
        threads = [threading.Thread(target=self._ask, args=(i,)) for i in range(_NUM_STREAMS)]
        for each in threads:
            each.start()
        try:
            while self._num_replicas() < 3:
                if time.monotonic() - start_s > _TIMEOUT_S:
                    raise RtpServeError(f"{self._num_replicas()} replicas after {_TIMEOUT_S} s")
                self._is_over.wait(_POLL_S)
            took_s = time.monotonic() - start_s
        finally:
            self._is_over.set()
            for each in threads:
                each.join()
            self._client.close()
        if self._failures:
            raise RtpServeError(f"{len(self._failures)} requests failed: {self._failures[0]}")
        say(f"1 → 3 replicas in {took_s:.1f} s, no request failed")
        return took_s

    def _num_replicas(self) -> int:
        return len(set(_REPLICA.findall(self._client.get("/metrics").text)))

    def _ask(self, number: int) -> None:
        count = 0
        while not self._is_over.is_set():
            count += 1
            token = 1000 + number * 97 + count
            body = {
                "model": self._model,
                "prompt": [token + i % 50 for i in range(_PROMPT_TOKENS)],
                "max_tokens": _OUTPUT_TOKENS,
                "ignore_eos": True,
            }
            try:
                answer = self._client.post("/v1/completions", json=body)
            except httpx.HTTPError as error:
                self._failures.append(repr(error))
                return
            if answer.status_code != 200:
                self._failures.append(answer.text)
                return
