"""What a benchmark says: figures on stdout, progress on stderr, raw runs in a file."""

import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.samples import Spread

_PACKAGES = ("rtp-serve", "torch", "ray", "numpy")


class Report:
    """Figures by name, in the order they came."""

    def __init__(self, output: Path | None = None) -> None:
        """Raw runs are appended to `output` as JSON lines."""
        self.figures: dict[str, Spread] = {}
        self._output = output

    def add(self, name: str, values: Sequence[float]) -> None:
        """A figure's repetitions. None at all is no figure."""
        if values:
            self.figures[name] = Spread.of(values)

    def run(self, **run: Any) -> None:
        """Keep a raw run."""
        if self._output is not None:
            with self._output.open("a", encoding="utf-8") as file:
                file.write(json.dumps(run) + "\n")

    def show(self, *, as_json: bool) -> None:
        """Print everything to stdout: one JSON object or a table."""
        print(self.json() if as_json else self.table())

    def json(self) -> str:
        """`figures` holds medians, `spreads` what is behind them."""
        return json.dumps(
            {
                "figures": {name: spread.median for name, spread in self.figures.items()},
                "spreads": {name: asdict(spread) for name, spread in self.figures.items()},
                "environment": environment(),
            }
        )

    def table(self) -> str:
        width = max(map(len, self.figures), default=0)
        return "\n".join(f"{name:{width}}  {spread}" for name, spread in self.figures.items())


def environment() -> dict[str, str]:
    """Versions and machine, for the record."""
    found = {"python": platform.python_version(), "cpu": _cpu_model()}
    found["cores"] = str(len(os.sched_getaffinity(0)))
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "missing"
    return found


def say(text: str) -> None:
    """Progress, to stderr."""
    print(text, file=sys.stderr, flush=True)


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()
