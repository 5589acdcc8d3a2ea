"""Where the time of a load went. Several threads read and transform; what counts is the clock."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rtp_serve.clock import Clock


@dataclass(frozen=True, slots=True)
class LoadFigures:
    """Of one load."""

    num_bytes: int
    """Of the tensors that were wanted."""

    num_reads: int
    seconds: float
    """First read begun → last weight complete."""

    read_s: float
    """While at least one read was under way."""

    transform_s: float
    """While at least one thread converted and packed."""

    overlap_s: float
    """While both were."""

    @property
    def bytes_per_s(self) -> float:
        return self.num_bytes / self.seconds if self.seconds else 0.0

    @property
    def overlap_ratio(self) -> float:
        """1: the shorter of reading and transforming was hidden behind the other; 0: nothing."""
        shorter = min(self.read_s, self.transform_s)
        return self.overlap_s / shorter if shorter else 0.0

    @property
    def phases(self) -> dict[str, float]:
        """Seconds by what went on."""
        return {
            "whole": self.seconds,
            "read": self.read_s,
            "transform": self.transform_s,
            "overlap": self.overlap_s,
        }

    @property
    def shares(self) -> str:
        """What the time went into, for the progress bar."""
        seconds = self.seconds or 1.0
        return f"read {self.read_s / seconds:.0%}, transform {self.transform_s / seconds:.0%}"

    def __str__(self) -> str:
        return (
            f"{self.num_bytes / 1e9:.2f} GB in {self.seconds:.2f} s "
            f"({self.bytes_per_s / 1e9:.2f} GB/s), {self.num_reads} reads: read {self.read_s:.2f} "
            f"s, transform {self.transform_s:.2f} s, overlap {self.overlap_ratio:.0%}"
        )


class LoadTimer:
    """Adds up times in which anybody reads, transforms, or both. For any number of threads."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._started_s = self._seen_s = clock.monotonic()
        self._num_reading = self._num_transforming = 0
        self._read_s = self._transform_s = self._overlap_s = 0.0
        self._num_bytes = self._num_reads = 0

    @contextmanager
    def reading(self) -> Iterator[None]:
        self._enter(reading=1)
        try:
            yield
        finally:
            self._enter(reading=-1)

    @contextmanager
    def transforming(self) -> Iterator[None]:
        self._enter(transforming=1)
        try:
            yield
        finally:
            self._enter(transforming=-1)

    def count(self, num_bytes: int) -> None:
        """A read is done that had as many wanted bytes."""
        with self._lock:
            self._num_bytes += num_bytes
            self._num_reads += 1

    def figures(self) -> LoadFigures:
        """So far."""
        with self._lock:
            self._advance()
            return LoadFigures(
                self._num_bytes,
                self._num_reads,
                self._seen_s - self._started_s,
                self._read_s,
                self._transform_s,
                self._overlap_s,
            )

    def _enter(self, reading: int = 0, transforming: int = 0) -> None:
        with self._lock:
            self._advance()
            self._num_reading += reading
            self._num_transforming += transforming

    def _advance(self) -> None:
        now_s = self._clock.monotonic()
        passed_s, self._seen_s = now_s - self._seen_s, now_s
        if self._num_reading:
            self._read_s += passed_s
        if self._num_transforming:
            self._transform_s += passed_s
        if self._num_reading and self._num_transforming:
            self._overlap_s += passed_s
