"""An engine as curves: what a prefill and a decode step take, and how many blocks fit."""

from collections.abc import Iterator
from dataclasses import dataclass

from rtp_serve.routing.types import PrefillPoint


@dataclass(frozen=True, slots=True)
class EngineModel:
    """One replica. A prefill takes `base + token · new + attention · new · (context + new / 2)`; a
    decode step takes `step + sequence · n + kv_token · (tokens of their contexts)`."""

    prefill_base_s: float = 0.020
    prefill_token_s: float = 1 / 9000
    prefill_attention_s: float = 1e-9
    step_s: float = 0.010
    step_sequence_s: float = 1e-4
    step_kv_token_s: float = 2e-8
    chunk_tokens: int = 2048
    """Tokens that a step prefills; those that decode get one token with each."""

    num_blocks: int = 2000
    """Of the KV cache: for running sequences, and for prefixes as far as they leave room."""

    transfer_base_s: float = 0.002
    """From the last layer computed to the last one copied to a decode replica, beside …"""
    transfer_token_s: float = 0.0
    """… for each token of the prompt, as far as that does not overlap with its prefill."""

    def prefill_s(self, num_new_tokens: int, num_context_tokens: int) -> float:
        """Alone on the engine."""
        work = num_context_tokens + num_new_tokens / 2
        return self.prefill_base_s + num_new_tokens * (
            self.prefill_token_s + self.prefill_attention_s * work
        )

    def transfer_s(self, num_tokens: int) -> float:
        """Of a prompt, after its prefill, to where it is decoded."""
        return self.transfer_base_s + self.transfer_token_s * num_tokens

    def decode_step_s(self, num_sequences: int, num_kv_tokens: float) -> float:
        return (
            self.step_s
            + self.step_sequence_s * num_sequences
            + self.step_kv_token_s * num_kv_tokens
        )

    def self_benchmark(self) -> Iterator[PrefillPoint]:
        """What a replica measures of itself before it takes requests."""
        for new in (64, 512, 2048, 8192):
            for context in (0, 8192):
                yield PrefillPoint(new, context, self.prefill_s(new, context))
