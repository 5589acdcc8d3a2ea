"""The executor of one rank in this process: a step runs in the thread that submits it."""

from rtp_serve.config.engine import ModelSource
from rtp_serve.engine.executor import CompletedStep
from rtp_serve.engine.output import SchedulerOutput
from rtp_serve.engine.version import ModelVersion
from rtp_serve.worker.rank_worker import RankWorker


class InProcessExecutor:
    """Runs each step at once."""

    def __init__(self, worker: RankWorker) -> None:
        """The worker has loaded its first version."""
        self._worker = worker

    def submit(self, scheduled: SchedulerOutput) -> CompletedStep:
        """Run the step. Raises CorruptWeights in place of a result that wrong weights may have
        made."""
        return CompletedStep(self._worker.execute(scheduled))

    def load(self, source: ModelSource | None = None) -> ModelVersion:
        return self._worker.load(source)

    def drop(self, version: int) -> None:
        self._worker.drop(version)

    def check(self) -> None:
        """This process is all there is."""

    def shutdown(self) -> None:
        """Nothing runs between steps."""
