"""What the machine can do: memory reads and matrix products, measured beside the engine's runs."""

import importlib.util
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter

import numpy as np
import torch
from numpy.typing import NDArray
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

_ReadSetting = tuple[NDArray[np.int64], PrefetchHint, int]
"""Memory, prefetch hint and distance."""

_SLICE_BYTES = 64 << 20
"""Read at a time between blocks of steps: some milliseconds, so that a start weighs nothing."""

_ROTATED_BYTES = 16 << 20
"""Weights of one shape are rotated through as many copies as this holds, as layers would be."""


class ReadProbe:
    """Reads plain memory with the calling thread's team and the kernels' vector loads."""

    def __init__(self, num_bytes: int = 1 << 30) -> None:
        self._regions = {
            "huge pages": probe.memory(num_bytes, has_huge_pages=True),
            "small pages": probe.memory(num_bytes, has_huge_pages=False),
        }
        self._chosen: _ReadSetting = (self._regions["huge pages"], *_SETTINGS[0])
        self._next_word = 0

    def choose(self, num_passes: int = 2) -> float:
        """Keep from now on to what reads the whole region fastest; its best pass in bytes/s."""
        rates: list[tuple[float, _ReadSetting]] = []
        for words in self._regions.values():
            for hint, ahead in _SETTINGS:
                run = partial(probe.read, words, ahead, hint)
                seconds = min(_seconds(run) for _ in range(num_passes))
                rates.append((words.nbytes / seconds, (words, hint, ahead)))
        best, self._chosen = max(rates, key=itemgetter(0))
        return best

    def bytes_per_s(self) -> float:
        """Of one slice as chosen. Slices go through the whole region in turn."""
        words, hint, ahead = self._chosen
        part = words[self._next_word : self._next_word + _SLICE_BYTES // words.itemsize]
        self._next_word = (self._next_word + len(part)) % len(words)
        return part.nbytes / _seconds(partial(probe.read, part, ahead, hint))


@dataclass(frozen=True, slots=True)
class GemmRates:
    """FLOP/s by shape, then by implementation."""

    by_shape: dict[str, dict[str, float]]

    @property
    def fastest(self) -> dict[str, str]:
        """The fastest implementation of each shape."""
        return {name: max(rates, key=rates.__getitem__) for name, rates in self.by_shape.items()}


class GemmProbe:
    """Multiplies [num_rows, K] by a model's own weight shapes: oneDNN, zentorch and ours."""

    def __init__(self, shapes: tuple[LinearShape, ...], num_rows: int) -> None:
        self._shapes = shapes
        self._num_rows = num_rows
        self._weights = {shape.name: _copies(shape) for shape in shapes}
        zentorch = _zentorch_linear()
        self._runs = {shape.name: self._bind(shape, zentorch) for shape in shapes}
        self._chosen = dict.fromkeys(self._runs, "ours")

    def choose(self, num_passes: int = 3) -> GemmRates:
        """Keep from now on to the fastest implementation of each shape; the best pass of each."""
        rates = GemmRates(
            {
                shape.name: {
                    who: max(self._rate(shape, who) for _ in range(num_passes))
                    for who in self._runs[shape.name]
                }
                for shape in self._shapes
            }
        )
        self._chosen = rates.fastest
        return rates

    def flops_per_s(self) -> float:
        """Of one pass as chosen: over all the model's linears, each at its own rate."""
        flops = {shape.name: float(shape.flops(self._num_rows)) for shape in self._shapes}
        rates = {shape.name: self._rate(shape, self._chosen[shape.name]) for shape in self._shapes}
        return combined_rate(flops, rates)

    def _bind(
        self, shape: LinearShape, zentorch: Callable[..., Tensor] | None
    ) -> dict[str, Callable[[], None]]:
        x = torch.randn(self._num_rows, shape.num_cols).bfloat16()
        weights = self._weights[shape.name]
        runs = {
            "oneDNN": _bound(functional.linear, x, weights),
            "ours": _bound(ops.linear, x, [ops.pack_weight(weight) for weight in weights]),
        }
        if zentorch is not None:
            runs["zentorch"] = _bound(zentorch, x, weights)
        return runs

    def _rate(self, shape: LinearShape, who: str) -> float:
        seconds = _seconds(self._runs[shape.name][who])
        per_weight = shape.flops(self._num_rows) / shape.count
        return per_weight * len(self._weights[shape.name]) / seconds


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
