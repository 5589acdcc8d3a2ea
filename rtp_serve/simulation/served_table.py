"""What became of many requests: a column a figure.

A row takes 49 bytes. As objects that keep their prompts' hashes, a million requests would take
gigabytes.
"""

from array import array
from collections.abc import Iterable

import numpy as np

from rtp_serve.routing.types import Bools, Floats, Ints
from rtp_serve.simulation.requests import Served, TracedRequest


class ServedTable:
    """Rows are in the order of arrivals. Figures of a request that has not ended are zero."""

    def __init__(self) -> None:
        self._arrival_s = array("d")
        self._num_tokens = array("q")
        self._num_new_tokens = array("q")
        self._ttft_s = array("d")
        self._e2e_s = array("d")
        self._num_cached_tokens = array("q")
        self._is_rejected = bytearray()

    @classmethod
    def of(cls, served: Iterable[Served]) -> "ServedTable":
        """Of requests that have ended, by arrival."""
        table = cls()
        for number, each in enumerate(served):
            table.come(each.request)
            table.end(number, each)
        return table

    def __len__(self) -> int:
        return len(self._arrival_s)

    def come(self, request: TracedRequest) -> None:
        """The next row; its number is how many there were."""
        self._arrival_s.append(request.arrival_s)
        self._num_tokens.append(request.num_tokens)
        self._num_new_tokens.append(request.num_new_tokens)
        for column in (self._ttft_s, self._e2e_s):
            column.append(0.0)
        self._num_cached_tokens.append(0)
        self._is_rejected.append(0)

    def end(self, number: int, served: Served) -> None:
        """The request of that row has its last token, or was rejected."""
        self._ttft_s[number] = served.ttft_s
        self._e2e_s[number] = served.e2e_s
        self._num_cached_tokens[number] = served.num_cached_tokens
        self._is_rejected[number] = served.is_rejected

    @property
    def span_s(self) -> float:
        """From the first arrival to the end of the last answer. One at least has come."""
        return float((self.arrival_s + self.e2e_s).max() - self._arrival_s[0])

    # -- columns, [num_requests]; views of what is there now --

    @property
    def arrival_s(self) -> Floats:
        return np.frombuffer(self._arrival_s, np.float64)

    @property
    def num_tokens(self) -> Ints:
        """Of prompts."""
        return np.frombuffer(self._num_tokens, np.int64)

    @property
    def num_new_tokens(self) -> Ints:
        """Of answers."""
        return np.frombuffer(self._num_new_tokens, np.int64)

    @property
    def ttft_s(self) -> Floats:
        return np.frombuffer(self._ttft_s, np.float64)

    @property
    def e2e_s(self) -> Floats:
        return np.frombuffer(self._e2e_s, np.float64)

    @property
    def itl_s(self) -> Floats:
        """Mean gaps between a request's tokens; 0 of an answer of one."""
        gaps = self.num_new_tokens - 1
        found: Floats = (self.e2e_s - self.ttft_s) * (gaps > 0) / np.maximum(gaps, 1)
        return found

    @property
    def num_cached_tokens(self) -> Ints:
        return np.frombuffer(self._num_cached_tokens, np.int64)

    @property
    def is_rejected(self) -> Bools:
        return np.frombuffer(self._is_rejected, np.bool_)
