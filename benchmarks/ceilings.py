"""What the machine can do: memory reads and matrix products, measured beside the engine's runs."""

import importlib.util
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.traffic import LinearShape, combined_rate
from rtp_serve import ops
from rtp_serve.ops import probe
from rtp_serve.ops.probe import PrefetchHint

_SETTINGS: tuple[tuple[PrefetchHint, int], ...] = (
    ("none", 0),
    ("t0", 1024),
    ("t0", 2048),
    ("t0", 4096),
    ("t1", 4096),
    ("t1", 8192),
)
"""Prefetch hint and distance in bytes."""

_ROTATED_BYTES = 64 << 20
"""Weights of one shape are rotated through as many copies as this holds, as layers would be."""


class ReadProbe:
    """Reads plain memory with the calling thread's team and the kernels' vector loads."""

    def __init__(self, num_bytes: int = 1 << 30) -> None:
        self._regions = {
            "huge pages": probe.memory(num_bytes, has_huge_pages=True),
            "small pages": probe.memory(num_bytes, has_huge_pages=False),
        }

    def bytes_per_s(self, num_passes: int = 2) -> dict[str, float]:
        """The best pass of each setting."""
        found = {}
        for pages, words in self._regions.items():
            for hint, ahead in _SETTINGS:
                seconds = (
                    _seconds(lambda: probe.read(words, ahead, hint))  # noqa: B023
                    for _ in range(num_passes)
                )
                found[f"{pages}, {hint} {ahead}"] = words.nbytes / min(seconds)
        return found


@dataclass(frozen=True, slots=True)
class GemmRates:
    """FLOP/s by shape, then by implementation."""

    by_shape: dict[str, dict[str, float]]

    @property
    def best(self) -> dict[str, float]:
        """Of the fastest implementation of each shape."""
        return {name: max(rates.values()) for name, rates in self.by_shape.items()}


class GemmProbe:
    """Multiplies [num_rows, K] by a model's own weight shapes: oneDNN, zentorch and ours."""

    def __init__(self, shapes: tuple[LinearShape, ...], num_rows: int) -> None:
        self._shapes = shapes
        self._num_rows = num_rows
        self._weights = {shape.name: _copies(shape) for shape in shapes}
        self._packed = {
            name: [ops.pack_weight(weight) for weight in weights]
            for name, weights in self._weights.items()
        }
        self._zentorch = _zentorch_linear()

    def rates(self, num_passes: int = 3) -> GemmRates:
        """The best pass of each implementation."""
        by_shape = {}
        for shape in self._shapes:
            x = torch.randn(self._num_rows, shape.num_cols).bfloat16()
            weights, packed = self._weights[shape.name], self._packed[shape.name]
            runs = {
                "oneDNN": _bound(functional.linear, x, weights),
                "ours": _bound(ops.linear, x, packed),
            }
            if self._zentorch is not None:
                runs["zentorch"] = _bound(self._zentorch, x, weights)
            flops = shape.flops(self._num_rows) / shape.count * len(weights)
            by_shape[shape.name] = {
                name: flops / min(_seconds(run) for _ in range(num_passes))
                for name, run in runs.items()
            }
        return GemmRates(by_shape)

    def best_rate(self, rates: GemmRates) -> float:
        """FLOP/s over all the model's linears when each runs at its best."""
        flops = {shape.name: float(shape.flops(self._num_rows)) for shape in self._shapes}
        return combined_rate(flops, rates.best)


def _copies(shape: LinearShape) -> list[Tensor]:
    num_bytes = shape.num_rows * shape.num_cols * 2
    count = min(shape.count, max(1, _ROTATED_BYTES // num_bytes))
    return [torch.randn(shape.num_rows, shape.num_cols).bfloat16() * 0.02 for _ in range(count)]


def _bound(
    linear: Callable[..., Tensor], x: Tensor, weights: Sequence[object]
) -> Callable[[], None]:
    def run() -> None:
        for weight in weights:
            linear(x, weight)

    return run


def _zentorch_linear() -> Callable[..., Tensor] | None:
    if importlib.util.find_spec("zentorch") is None:
        return None
    importlib.import_module("zentorch")
    linear: Callable[..., Tensor] = torch.ops.zentorch.zentorch_linear_unary
    return linear


def _seconds(run: Callable[[], None]) -> float:
    started_s = time.perf_counter()
    run()
    return time.perf_counter() - started_s
