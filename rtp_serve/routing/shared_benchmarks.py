"""Workers' first predictions, from what all of their role have measured.

A self-benchmark that had to share its machine says too much, never too little. Its worker would
look slow, get no request, and so never show that it is not. So workers begin with the least that
one of their role has measured; one that is really slower shows it with its first prefills.
"""

from collections.abc import Sequence

from rtp_serve.routing.predictor import PrefillPredictor
from rtp_serve.routing.types import PrefillPoint, Role

_Size = tuple[Role, int, int]


class SharedBenchmarks:
    """Starts a predictor's slots."""

    def __init__(self, predictor: PrefillPredictor) -> None:
        self._predictor = predictor
        self._least: dict[_Size, PrefillPoint] = {}
        self._fresh: dict[int, tuple[_Size, ...]] = {}

    def start(self, slot: int, role: Role, points: Sequence[PrefillPoint]) -> None:
        """A worker begins, with these measurements or with none."""
        sizes = tuple((role, each.num_new_tokens, each.num_context_tokens) for each in points)
        better = set()
        for size, point in zip(sizes, points, strict=True):
            least = self._least.get(size)
            if least is None or point.duration_s < least.duration_s:
                self._least[size] = point
                better.add(size)
        self._fresh[slot] = sizes
        for each, measured in (self._fresh if better else {slot: sizes}).items():
            if each == slot or better.intersection(measured):
                self._predictor.start(each, [self._least[size] for size in measured])

    def learned(self, slot: int) -> None:
        """The worker has done a prefill: from now on it is taken for what it does."""
        self._fresh.pop(slot, None)
