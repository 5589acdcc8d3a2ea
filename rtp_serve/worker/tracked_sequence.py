"""What the worker knows of a sequence for as long as it runs."""

from dataclasses import dataclass

from rtp_serve.engine.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True)
class TrackedSequence:
    """What stays the same while a sequence runs."""

    seq_id: int
    num_prompt_tokens: int
    sampling: SamplingParams
    seed: int
    barred_token_ids: tuple[int, ...]

    @property
    def has_adjustments(self) -> bool:
        """Whether its logits may ever be changed before a token is chosen."""
        return bool(
            self.sampling.has_penalties
            or self.sampling.logit_bias
            or self.sampling.bad_words
            or (self.sampling.min_tokens and self.barred_token_ids)
        )
