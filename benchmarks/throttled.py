"""A store far away: ranks that share its rate load one checkpoint, together or each in its way.

The store gives 200 MB/s to all of its readers together, and takes 5 ms for a request. A rank in
model order asks for its tensors one by one and whole, as a mapped file does it: in windows of
128 KiB, or, which is kinder than any mapping, in one request a tensor. It is not charged for
slicing or packing. Ours ends with packed shards.
"""

import mmap
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.loaders import Loader, Stored
from rtp_serve.config.model import read_model_config
from rtp_serve.config.parallel import ParallelConfig
from rtp_serve.loader.checkpoint import Checkpoint
from rtp_serve.loader.local_files import LocalFiles, ReadInto
from rtp_serve.loader.rank_group import RankGroup
from rtp_serve.loader.read_plan import ALIGNMENT
from rtp_serve.loader.weights import LoadSettings, load_weights
from rtp_serve.models.registry import MODELS
from rtp_serve.models.shards import shard_specs
from rtp_serve.parallel.partition import partition

FIGURES = ("throttled_tp4_x_model_order", "throttled_tp8_over_tp4")

_WINDOW_BYTES = 128 << 10
"""Linux's default read-ahead."""


@dataclass(frozen=True, slots=True)
class Rate:
    """Of a store."""

    bytes_per_s: float = 200e6
    request_s: float = 5e-3


class ThrottledStore:
    """Local files behind one slow line: requests queue for the line, and wait out their delay
    beside each other."""

    def __init__(
        self,
        read_into: ReadInto,
        rate: Rate,
        clock_s: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._read_into, self._rate = read_into, rate
        self._clock_s, self._sleep = clock_s, sleep
        self._lock = threading.Lock()
        self._free_s = 0.0

    def __call__(self, file: Path, offset: int, into: memoryview) -> int:
        """See `ReadInto`."""
        begun_s = self._clock_s()
        count = self._read_into(file, offset, into)
        with self._lock:
            self._free_s = max(self._free_s, begun_s) + count / self._rate.bytes_per_s
            ends_s = self._free_s + self._rate.request_s
        self._sleep(max(0.0, ends_s - self._clock_s()))
        return count


def throttled_loaders(rate: Rate) -> dict[str, Loader]:
    """By name: ours with 1 to 8 ranks, model order with 1 to 4."""
    found = {f"throttled_tp{ranks}": _together(ranks, rate) for ranks in (1, 2, 4, 8)}
    for ranks in (1, 2, 4):
        found[f"throttled_model_order_tp{ranks}"] = _model_order(ranks, rate, _WINDOW_BYTES)
    found["throttled_tensor_order_tp4"] = _model_order(4, rate, None)
    return found


def throttled_ratios(seconds: Mapping[str, float]) -> dict[str, float]:
    """Of one repetition of `throttled_loaders`."""
    tp4 = seconds["throttled_tp4"]
    return {
        "throttled_tp4_x_model_order": seconds["throttled_model_order_tp4"] / tp4,
        "throttled_tp4_x_tensor_order": seconds["throttled_tensor_order_tp4"] / tp4,
        "throttled_tp8_over_tp4": seconds["throttled_tp8"] / tp4,
    }


def _together(world_size: int, rate: Rate) -> Loader:
    def load(stored: Stored) -> object:
        config = read_model_config(stored.directory)
        specs = MODELS.load(config.architecture).weight_specs(config)
        parts = partition(config, ParallelConfig(tp=world_size))
        group = RankGroup(world_size)
        with LocalFiles() as files:
            store = ThrottledStore(files, rate)

            def load_rank(rank: int) -> object:
                settings = LoadSettings(read_into=store, member=group.member(rank))
                shards = shard_specs(specs, config, parts[rank])
                checkpoint = Checkpoint(stored.directory)
                return load_weights(checkpoint, shards, config, torch.bfloat16, settings=settings)

            return _on_ranks(world_size, load_rank)

    return load


def _model_order(world_size: int, rate: Rate, window_bytes: int | None) -> Loader:
    def load(stored: Stored) -> object:
        checkpoint = Checkpoint(stored.directory)
        tensors = [checkpoint.tensor(name) for name in stored.file_by_name]
        largest = max(tensor.num_bytes for tensor in tensors) + 2 * ALIGNMENT
        with LocalFiles() as files:
            store = ThrottledStore(files, rate)

            def load_rank(rank: int) -> object:
                memory = memoryview(mmap.mmap(-1, -(-largest // ALIGNMENT) * ALIGNMENT))
                for tensor in tensors:
                    begin = tensor.offset // ALIGNMENT * ALIGNMENT
                    end = -(-(tensor.offset + tensor.num_bytes) // ALIGNMENT) * ALIGNMENT
                    step = window_bytes or end - begin
                    for offset in range(begin, end, step):
                        store(tensor.file, offset, memory[: min(step, end - offset)])
                return memory

            return _on_ranks(world_size, load_rank)

    return load


def _on_ranks(world_size: int, work: Callable[[int], object]) -> list[object]:
    with ThreadPoolExecutor(world_size) as pool:
        return list(pool.map(work, range(world_size)))
