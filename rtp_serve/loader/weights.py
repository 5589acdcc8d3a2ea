"""Checkpoint → the model's weights: converted, stacked and packed one at a time.

At any moment there is the packed model so far and one weight on its way; the files themselves are
page cache, which the system takes back when it must.
"""

import logging
import re
from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from rtp_serve import ops
from rtp_serve.config.model import ModelConfig
from rtp_serve.loader.checkpoint import Checkpoint, listed
from rtp_serve.models.weights import TensorSpec, Weights, WeightSpec

_log = logging.getLogger(__name__)
_DERIVED = re.compile(r"rotary_emb\.inv_freq$|\.masked_bias$|\.attention\.bias$")


def load_weights(
    checkpoint: Checkpoint,
    specs: Sequence[WeightSpec],
    config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device | None = None,
) -> Weights:
    """Everything in `specs`, as `dtype`. Raises CheckpointError before reading any tensor.

    Shows a progress bar when standard error is a terminal. Tensors that nothing asks for are
    logged, unless they are known to be derived from others.
    """
    wanted = [tensor for spec in specs for tensor in spec.tensors]
    checkpoint.check(wanted)
    _warn_of_surplus(checkpoint, {tensor.name for tensor in wanted}, config)
    matrices: dict[str, ops.PackedWeight] = {}
    vectors: dict[str, Tensor] = {}
    with tqdm(total=len(wanted), desc="Loading weights", unit="tensor", disable=None) as progress:
        for spec in specs:
            weight = _stack(checkpoint, spec.parts, dtype).to(device)
            if spec.is_matrix:
                bias = _stack(checkpoint, spec.biases, dtype).to(device) if spec.biases else None
                matrices[spec.path] = ops.pack_weight(weight, bias)
            else:
                vectors[spec.path] = weight
            progress.update(len(spec.tensors))
    return Weights(matrices, vectors)


def _stack(checkpoint: Checkpoint, tensors: Sequence[TensorSpec], dtype: torch.dtype) -> Tensor:
    """The tensors one below the other, in memory of their own; a lone matrix may be a view."""
    first = tensors[0]
    if len(tensors) == 1 and len(first.shape) == 2:
        return checkpoint.read(first.name, dtype)
    return torch.cat([checkpoint.read(tensor.name, dtype) for tensor in tensors])


def _warn_of_surplus(checkpoint: Checkpoint, wanted: set[str], config: ModelConfig) -> None:
    surplus = {name for name in checkpoint.names - wanted if not _DERIVED.search(name)}
    if config.tie_word_embeddings:
        surplus.discard("lm_head.weight")
    if surplus:
        _log.warning("%s: not used: %s", checkpoint.directory, listed(sorted(surplus)))
