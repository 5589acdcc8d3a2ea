"""How the engine drives workers, whatever and wherever they are."""

from typing import Protocol

from rtp_serve.config.engine import ModelSource
from rtp_serve.engine.output import ModelOutput, SchedulerOutput
from rtp_serve.engine.version import ModelVersion


class StepHandle(Protocol):
    """A step under way."""

    def result(self) -> ModelOutput:
        """Wait for the step. Raises what the worker raised."""
        ...


class Executor(Protocol):
    """One or several workers that run the same model. Steps complete in the order submitted."""

    def submit(self, scheduled: SchedulerOutput) -> StepHandle:
        """Start a step and return at once or when it is done, as the executor likes."""
        ...

    def load(self, source: ModelSource | None = None) -> ModelVersion:
        """Bring the version of the model that is at `source` to the workers; None is where the last
        one came from. Another thread's work: steps go on meanwhile.

        Where the weights are those of the last version, that version, and nothing is loaded. Raises
        ReloadRefused for weights that cannot follow those that run, ConfigError, ModelNotFound or
        CheckpointError; nothing has changed then.
        """
        ...

    def drop(self, version: int) -> None:
        """Release a model version that no sequence runs on any more."""
        ...

    def check(self) -> None:
        """Raise RankError if a worker is gone. From any thread."""
        ...

    def shutdown(self) -> None:
        """Release the workers; the executor is not used again."""
        ...


class CompletedStep:
    """The handle of an executor that runs each step where it is submitted."""

    def __init__(self, output: ModelOutput) -> None:
        self._output = output

    def result(self) -> ModelOutput:
        return self._output
