"""In what forms a model's weights are held, beside plainly packed: by model, type and CPU."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from rtp_serve import ops
from rtp_serve.config.model import ModelConfig
from rtp_serve.models.weights import WeightSpec

_MIN_SCREENED_BYTES = 64 << 20
"""Of a head: half as long as a smaller one takes is not worth another half of its memory."""


@dataclass(frozen=True, slots=True)
class WeightForms:
    """By default all are plain."""

    has_screened_head: bool = False
    """Of a rank that is alone: greedy steps rule out most outputs, see `ops.with_screen`."""

    has_coded_weights: bool = False
    """Matrices take three quarters of their memory, see `ops.with_codes`; but those of experts."""

    def of(self, specs: Iterable[WeightSpec], config: ModelConfig) -> tuple[WeightSpec, ...]:
        """The same weights in these forms."""
        head = "embedding" if config.tie_word_embeddings else "lm_head"
        return tuple(
            replace(
                spec,
                has_screen=self.has_screened_head and spec.path == head,
                has_codes=self.has_coded_weights and spec.is_matrix and "expert" not in spec.path,
            )
            for spec in specs
        )


def fitting_forms(
    config: ModelConfig, dtype: str, screen_head: bool | None = None, code_weights: bool = True
) -> WeightForms:
    """Those that make steps shorter, as far as the settings `screen_head` and `code_weights` go."""
    head_bytes = 2 * config.vocab_size * config.hidden_size
    wants_screen = head_bytes >= _MIN_SCREENED_BYTES if screen_head is None else screen_head
    return WeightForms(
        has_screened_head=wants_screen and ops.has_fast_screen(dtype),
        has_coded_weights=code_weights and ops.has_fast_codes(dtype),
    )
