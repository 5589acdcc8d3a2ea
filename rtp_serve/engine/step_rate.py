"""What a prompt's token costs, as steps show."""

_MIN_TOKENS = 32
"""Steps of fewer tokens say little of that."""

_WEIGHT = 0.2
"""Of the newest step."""


class StepRate:
    """A running mean; written by one thread, read by any."""

    def __init__(self) -> None:
        self.token_s = 0.0
        """Seconds of a token; 0 while nothing is known."""

    def observe(self, num_tokens: int, elapsed_s: float) -> None:
        """A step of so many tokens took so long."""
        if num_tokens >= _MIN_TOKENS:
            weight = _WEIGHT if self.token_s else 1.0
            self.token_s += weight * (elapsed_s / num_tokens - self.token_s)
