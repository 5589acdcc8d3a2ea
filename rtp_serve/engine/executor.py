"""How the engine drives workers, whatever and wherever they are."""

from typing import Protocol

from rtp_serve.engine.output import ModelOutput, SchedulerOutput


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

    def shutdown(self) -> None:
        """Release the workers; the executor is not used again."""
        ...


class CompletedStep:
    """The handle of an executor that runs each step where it is submitted."""

    def __init__(self, output: ModelOutput) -> None:
        self._output = output

    def result(self) -> ModelOutput:
        return self._output
