"""Followers as processes of this machine, started by the leader itself."""

import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress

import msgspec

from rtp_serve.worker.ranks.plan import RankPlan

_HERE = "here"
_COMMAND = (sys.executable, "-m", "rtp_serve.worker.ranks.process")
_GO_S = 3.0
_END_S = 10.0


class LocalProcess:
    """A follower; gone at the latest when its leader is."""

    def __init__(self, plan: RankPlan) -> None:
        self._process = subprocess.Popen(_COMMAND, stdin=subprocess.PIPE, start_new_session=True)
        assert self._process.stdin is not None, "it has a pipe"
        with suppress(BrokenPipeError), self._process.stdin as pipe:
            pipe.write(msgspec.msgpack.encode(plan))

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def wait(self) -> int:
        """For its end; the exit code."""
        return self._process.wait(_END_S)

    def kill(self) -> None:
        self._process.kill()
        self.wait()

    def dismiss(self) -> None:
        try:
            self._process.wait(_GO_S)
        except subprocess.TimeoutExpired:
            self.kill()


class LocalStarter:
    """All ranks here."""

    def __init__(self, world_size: int) -> None:
        self._world_size = world_size

    @property
    def nodes(self) -> Sequence[str]:
        return [_HERE] * self._world_size

    @property
    def host(self) -> str:
        return "127.0.0.1"

    def start(self, plan: RankPlan) -> LocalProcess:
        return LocalProcess(plan)
