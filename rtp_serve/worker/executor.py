"""The executor of one rank in this process: a step runs in the thread that submits it."""

import threading

from rtp_serve.config.engine import ModelSource
from rtp_serve.engine.executor import CompletedStep
from rtp_serve.engine.output import SchedulerOutput
from rtp_serve.engine.version import ModelVersion
from rtp_serve.worker.model_versions import ModelVersions
from rtp_serve.worker.threads import use_compute_threads
from rtp_serve.worker.worker import Worker


class InProcessExecutor:
    """Runs each step at once. `num_threads` of None takes the cores this process may use."""

    def __init__(
        self, worker: Worker, versions: ModelVersions, num_threads: int | None = None
    ) -> None:
        """`versions` has loaded what `worker` has."""
        self._worker = worker
        self._versions = versions
        self._num_threads = num_threads
        self._prepared_thread: int | None = None

    def submit(self, scheduled: SchedulerOutput) -> CompletedStep:
        """Run the step. Thread counts belong to a thread, so the first step of one sets its own.

        Raises CorruptWeights in place of a result that wrong weights may have made.
        """
        thread = threading.get_ident()
        if thread != self._prepared_thread:
            use_compute_threads(self._num_threads)
            self._prepared_thread = thread
        return CompletedStep(self._worker.execute(scheduled))

    def load(self, source: ModelSource | None = None) -> ModelVersion:
        version, loaded = self._versions.load(source)
        if loaded is not None:
            self._worker.add(version.number, loaded)
        return version

    def drop(self, version: int) -> None:
        self._worker.drop(version)

    def shutdown(self) -> None:
        """Nothing runs between steps."""
