"""What every model takes and gives: the boundary between the runner and the architectures."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rtp_serve.config.model import ModelConfig
from rtp_serve.kv_cache.tensors import KVCacheTensors
from rtp_serve.models.layers.linear import Linear
from rtp_serve.models.rank import Rank
from rtp_serve.models.weights import Weights, WeightSpec
from rtp_serve.ops import Array, AttentionMetadata
from rtp_serve.ops.tensor import Tensor


@dataclass(frozen=True, slots=True)
class ModelInputs:
    """One step's tokens, all sequences one behind the other. On the host, embeddings apart."""

    # [num_tokens]
    token_ids: NDArray[np.int64]
    # [num_tokens], or [3, num_tokens] under M-RoPE
    positions: NDArray[np.int64]
    attention: AttentionMetadata[NDArray[Any]]
    # [num_tokens, hidden_size], on the model's device: embeddings in place of tokens
    embeds: Tensor | None = None
    # [num_tokens], bool, on the model's device: which rows of `embeds` count; None is all
    is_embedded: Tensor | None = None


@dataclass(frozen=True, slots=True)
class HiddenStates:
    """What a forward pass leaves."""

    # [num_tokens, hidden_size]: the residual stream after the last layer, before the final norm
    last: Array
    # the residual stream after each layer asked for, in the order asked
    taps: tuple[Tensor, ...] = ()


@dataclass(frozen=True, slots=True)
class LayerReport:
    """Somebody wants to know how far a forward pass is."""

    every: int
    """So many layers apart, and after the last one."""

    # gets how many layers have written their keys and values
    tell: Callable[[int], None]


class Model(Protocol):
    """A causal decoder. Rows never depend on which other sequences are in the step."""

    config: ModelConfig
    rank: Rank

    def forward(
        self,
        inputs: ModelInputs,
        cache: KVCacheTensors,
        taps: tuple[int, ...] = (),
        report: LayerReport | None = None,
    ) -> HiddenStates:
        """Compute the step's tokens and write their KV. `taps` are layers whose output to give."""
        ...

    def logits(self, hidden: Array, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Of the rows [n] of `HiddenStates.last`: [n, vocab_size], on the host."""
        ...

    def greedy(self, hidden: Array, rows: NDArray[np.int64]) -> NDArray[np.int32]:
        """The ids [n] of the largest of these logits, or NO_TOKEN; of several ranks, none needs
        all logits for it."""
        ...

    def next_logits(
        self, inputs: ModelInputs, cache: KVCacheTensors, rows: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """`logits` of what `forward` gives, where nothing else of the step is wanted but its KV.
        What no wanted row depends on need not be computed."""
        ...

    def next_greedy(
        self, inputs: ModelInputs, cache: KVCacheTensors, rows: NDArray[np.int64]
    ) -> NDArray[np.int32]:
        """As `next_logits`, the ids of the largest."""
        ...

    def expert_counts(self) -> Mapping[int, NDArray[np.int64]]:
        """By sparse layer, the tokens that each expert got since the start; counted on in place."""
        ...

    def linear(self, path: str) -> Linear:
        """The linear at a path such as `layers.0.qkv_proj`."""
        ...

    def replace_linear(self, path: str, linear: Linear) -> None:
        """Put another linear, of the same shape, in its place."""
        ...


class ModelFactory(Protocol):
    """A model class, as the registry gives it."""

    @staticmethod
    def weight_specs(config: ModelConfig) -> tuple[WeightSpec, ...]:
        """Everything the model wants, in model order."""
        ...

    def __call__(
        self,
        config: ModelConfig,
        weights: Weights,
        max_positions: int,
        rank: Rank | None = None,
    ) -> Model:
        """Assemble the model from the rank's part of the weights, None being all of them;
        positions are below `max_positions`."""
        ...
