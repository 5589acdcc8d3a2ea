"""Random prompts, never the same twice in a run, so that no prefix cache has seen them."""

import numpy as np

_FIRST_ORDINARY_ID = 64
"""Lower ids are often control tokens."""


class PromptSource:
    """Prompts of token ids below `vocab_size`."""

    def __init__(self, vocab_size: int, seed: int) -> None:
        self._low = min(_FIRST_ORDINARY_ID, vocab_size // 2)
        self._vocab_size = vocab_size
        self._random = np.random.default_rng(seed)

    def prompt(self, num_tokens: int) -> tuple[int, ...]:
        return tuple(self._random.integers(self._low, self._vocab_size, num_tokens).tolist())

    def prompts(self, count: int, num_tokens: int) -> list[tuple[int, ...]]:
        return [self.prompt(num_tokens) for _ in range(count)]
