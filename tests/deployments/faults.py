"""Faults that strike a replica when one of its transfers comes to a state.

A test arms steps in a directory that the replicas of its application watch. The first transfer that
comes to a step's state, after some that are let pass, takes the step, notes that it struck, and the
fault strikes its process once what that state asks for is done. Who comes later, and the replica
that follows one that died, finds nothing armed.
"""

import asyncio
import json
import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deployments.channels.dialer import Dialer
from deployments.kv_transfer import decode_side, exchange, prefill_side
from deployments.kv_transfer.inbound import KvListener
from deployments.kv_transfer.outbound import OutboundChannel, kv_dialer
from deployments.replicas import build_real_engine
from rtp_serve.clock import Clock, WallClock
from rtp_serve.config.engine import EngineConfig
from rtp_serve.disaggregation.decode_transfer import DecodeTransfer
from rtp_serve.disaggregation.lifecycle import DecodeState, PrefillState
from rtp_serve.disaggregation.prefill_transfer import PrefillTransfer
from rtp_serve.engine.async_engine import AsyncEngine
from rtp_serve.observability.metrics import MetricsSink

KILL, STOP, CUT, HOLD = "kill", "stop", "cut", "hold"
"""The process is killed, is stopped, loses its KV channels, or is held until a test lets it go on
(`Bench.release`), so that something can happen in that very state."""

DECODING = "DECODING"
"""Of a decode replica, beside the states of its lifecycle: some steps after a transfer is DONE."""

_DECODING_S = 0.05
_LONGEST_HOLD_S = 5.0
_HEARD_S = 0.05
"""Time in which a held replica's sockets get what a test has done to others meanwhile."""


@dataclass(frozen=True, slots=True)
class Step:
    """What is to strike whom, and when."""

    side: str
    """`decode` or `prefill`."""

    state: str
    fault: str
    num_passed: int = 0
    """Transfers of that replica that come to the state unharmed before."""


@dataclass(frozen=True, slots=True)
class Struck:
    pid: int
    at_s: float
    """Of the node's monotonic clock."""


class Bench:
    """The directory, as the test sees it."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def arm(self, *steps: Step) -> None:
        """These and no others, one after the other."""
        for name in ("armed", "struck", "released"):
            (self._root / name).unlink(missing_ok=True)
        _write(self._root / "armed", [_fields(step) for step in steps])

    def struck(self) -> Struck | None:
        """By the last of the steps; None as long as it did not."""
        with suppress(FileNotFoundError):
            return Struck(**json.loads((self._root / "struck").read_text()))
        return None

    def release(self) -> None:
        """Let the process that is held go on."""
        _write(self._root / "released", [])


class FaultyBuild:
    """A `BuildEngine` that makes real engines, in processes that faults can strike."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def __call__(self, config: EngineConfig, *, clock: Clock, sink: MetricsSink) -> AsyncEngine:
        _watch(_Faults(self._root))
        return build_real_engine(config, clock=clock, sink=sink)


class _Faults:
    """Of one replica's process."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._clock = WallClock()
        self._num_passed: dict[int, int] = {}
        self.cuts: list[Callable[[], None]] = []

    def reached(self, side: str, state: str) -> None:
        try:
            with (self._root / "armed").open() as file:
                armed = os.fstat(file.fileno()).st_mtime_ns
                steps = [Step(**fields) for fields in json.load(file)]
        except FileNotFoundError:
            return
        if (side, state) != (steps[0].side, steps[0].state):
            return
        num_passed = self._num_passed.get(armed, 0)
        self._num_passed[armed] = num_passed + 1
        if num_passed < steps[0].num_passed:
            return
        try:
            (self._root / "armed").rename(self._root / f"taken-{os.getpid()}")
        except FileNotFoundError:  # another process was faster
            return
        asyncio.get_running_loop().call_soon(self._strike, steps[0], steps[1:])

    def _strike(self, step: Step, later: list[Step]) -> None:
        if later:
            _write(self._root / "armed", [_fields(each) for each in later])
        else:
            _write(self._root / "struck", {"pid": os.getpid(), "at_s": self._clock.monotonic()})
        match step.fault:
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "cut":
                for cut in self.cuts:
                    cut()
            case "hold":
                self._hold()

    def _hold(self) -> None:
        """The event loop, as long as the test likes."""
        wait = threading.Event().wait
        end_s = self._clock.monotonic() + _LONGEST_HOLD_S
        while not (self._root / "released").exists() and self._clock.monotonic() < end_s:
            wait(0.001)
        wait(_HEARD_S)


def _watch(faults: _Faults) -> None:
    """Have this process's transfers tell of their states, and find its channels."""

    class WatchedDecode(DecodeTransfer):
        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, value)
            if name == "state":
                faults.reached("decode", value.name)
                if value is DecodeState.DONE:
                    loop = asyncio.get_running_loop()
                    loop.call_later(_DECODING_S, faults.reached, "decode", DECODING)

    class WatchedPrefill(PrefillTransfer):
        def __setattr__(self, name: str, value: Any) -> None:
            if name != "state":
                super().__setattr__(name, value)
                return
            is_new = getattr(self, "state", None) is not value
            super().__setattr__(name, value)
            if is_new:  # it is COMPUTING again with each step
                faults.reached("prefill", value.name)

    class FoundListener(KvListener):
        async def start(self) -> None:
            await super().start()
            faults.cuts.append(lambda: [each.close() for each in list(self._channels)])

    def found_dialer(*arguments: Any) -> Dialer[OutboundChannel]:
        dialer = kv_dialer(*arguments)
        faults.cuts.append(lambda: _cut(dialer))
        return dialer

    decode_side.DecodeTransfer = WatchedDecode
    prefill_side.PrefillTransfer = WatchedPrefill
    exchange.KvListener = FoundListener
    exchange.kv_dialer = found_dialer


def _cut(dialer: Dialer[OutboundChannel]) -> None:
    for dial in list(dialer._dials.values()):
        if dial.done() and not dial.cancelled() and dial.exception() is None:
            dial.result().close("cut by a test")


def _fields(step: Step) -> dict[str, Any]:
    return {name: getattr(step, name) for name in Step.__slots__}


def _write(path: Path, content: Any) -> None:
    """So that nobody sees half of it."""
    part = path.with_suffix(f".{os.getpid()}")
    part.write_text(json.dumps(content))
    part.rename(path)


def states_of(side: str) -> tuple[str, ...]:
    """Those that a transfer comes through, faults apart from one."""
    if side == "prefill":
        states = (
            PrefillState.ADMITTED,
            PrefillState.COMPUTING,
            PrefillState.PUBLISHED,
            PrefillState.RELEASED,
        )
        return tuple(state.name for state in states)
    ended = (DecodeState.FAILED, DecodeState.CANCELLED)
    return (*(state.name for state in DecodeState if state not in ended), DECODING)
