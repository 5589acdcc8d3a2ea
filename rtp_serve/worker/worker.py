"""One rank: KV memory, and a runner for each version of the model that has sequences.

Nearly always that is one version. While the sequences of an older one finish, a step is shared out:
each version computes its own sequences, over the one cache, as if they were a batch by themselves;
rows do not depend on their batch, so nobody's tokens change.
"""

from collections.abc import Callable
from dataclasses import dataclass

from rtp_serve.engine.output import ModelOutput, SchedulerOutput
from rtp_serve.kv_cache.tensors import KVCacheTensors
from rtp_serve.loader.store.guard import WeightGuard
from rtp_serve.models.model import LayerReport
from rtp_serve.worker.loading import LoadedModel
from rtp_serve.worker.model_runner import ModelRunner
from rtp_serve.worker.shares import Share, join, share_of


@dataclass(frozen=True, slots=True)
class _Version:
    runner: ModelRunner
    # knows whether the weights still are what was loaded
    guard: WeightGuard


class Worker:
    """Runs steps in the thread that asks; versions may be added from another one meanwhile."""

    def __init__(self, cache: KVCacheTensors, max_num_seqs: int, max_model_len: int) -> None:
        self._cache = cache
        self._max_num_seqs = max_num_seqs
        self._max_model_len = max_model_len
        self._versions: dict[int, _Version] = {}
        self._tell_layers: Callable[[int], None] | None = None

    def report_layers(self, tell: Callable[[int], None]) -> None:
        """Call it within steps that want that, with how many layers have written their keys and
        values. A step of two model versions does not."""
        self._tell_layers = tell

    def add(self, number: int, loaded: LoadedModel) -> None:
        """Make a version ready for sequences."""
        runner = ModelRunner(loaded.model, self._cache, self._max_num_seqs, self._max_model_len)
        self._versions[number] = _Version(runner, loaded.guard)

    def drop(self, number: int) -> None:
        """Free a version's weights. Its sequences have ended."""
        del self._versions[number]

    def execute(self, scheduled: SchedulerOutput) -> ModelOutput:
        """Compute the step. A sequence whose logits are no numbers gets an error, others go on.

        Raises CorruptWeights in place of a result that wrong weights may have made.
        """
        for source, target in scheduled.block_copies:
            self._cache.copy_block(source, target)
        versions = dict(self._versions)
        if len(versions) == 1:
            (version,) = versions.values()
            return _run(version, scheduled, self._report(scheduled))
        shares: list[Share] = []
        outputs: list[ModelOutput] = []
        for number, version in versions.items():
            share = share_of(number, version.runner.seq_ids, scheduled)
            if share.scheduled.seq_ids or share.scheduled.finished_seq_ids:
                shares.append(share)
                outputs.append(_run(version, share.scheduled))
        return join(scheduled, shares, outputs)

    def _report(self, scheduled: SchedulerOutput) -> LayerReport | None:
        if self._tell_layers is None or not scheduled.layers_per_report:
            return None
        return LayerReport(scheduled.layers_per_report, self._tell_layers)

    def check_invariants(self) -> None:
        """Recompute the books from scratch."""
        for version in self._versions.values():
            version.runner.check_invariants()


def _run(
    version: _Version, scheduled: SchedulerOutput, report: LayerReport | None = None
) -> ModelOutput:
    output = version.runner.execute(scheduled, report)
    version.guard.check()
    return output
