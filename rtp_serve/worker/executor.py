"""The executor of one rank in this process: a step runs in the thread that submits it."""

import threading

from rtp_serve.engine.executor import CompletedStep
from rtp_serve.engine.output import SchedulerOutput
from rtp_serve.loader.store.guard import WeightGuard
from rtp_serve.worker.model_runner import ModelRunner
from rtp_serve.worker.threads import use_compute_threads


class InProcessExecutor:
    """Runs each step at once. `num_threads` of None takes the cores this process may use."""

    def __init__(
        self,
        runner: ModelRunner,
        num_threads: int | None = None,
        guard: WeightGuard | None = None,
    ) -> None:
        """`guard` knows of the runner's weights; without one they are trusted."""
        self._runner = runner
        self._guard = guard or WeightGuard()
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
        output = self._runner.execute(scheduled)
        self._guard.check()
        return CompletedStep(output)

    def shutdown(self) -> None:
        """Nothing runs between steps."""
