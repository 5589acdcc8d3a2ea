"""Whether a model's output head has a screen, by which greedy steps read half of it."""

from collections.abc import Iterable
from dataclasses import replace

from rtp_serve import ops
from rtp_serve.config.model import ModelConfig
from rtp_serve.models.weights import WeightSpec

_MIN_HEAD_BYTES = 64 << 20
"""A smaller head takes about as long as a step's other overheads: not worth another half of it."""


def has_screened_head(config: ModelConfig, dtype: str, wanted: bool | None = None) -> bool:
    """Of a model of one rank that computes in `dtype`; `wanted` is what its settings say."""
    if wanted is False or not ops.has_fast_screen(dtype):
        return False
    return bool(wanted) or 2 * config.vocab_size * config.hidden_size >= _MIN_HEAD_BYTES


def screen_head(specs: Iterable[WeightSpec], config: ModelConfig) -> tuple[WeightSpec, ...]:
    """The same weights, the one that makes the logits with a screen."""
    head = "embedding" if config.tie_word_embeddings else "lm_head"
    return tuple(replace(spec, has_screen=spec.path == head) for spec in specs)
