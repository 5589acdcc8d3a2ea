"""Which GGUF tensor is which checkpoint tensor, and in which order its rows stand.

Knows names and layouts only; the values pass through `GGUFTensor.dequantize`.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtp_serve.errors import CheckpointError
from rtp_serve.loader.gguf.reader import GGUFFile, GGUFTensor

EMBEDDING = "token_embd.weight"
LM_HEAD = "output.weight"
ROPE_FACTORS = "rope_freqs.weight"

_OUTER = {
    EMBEDDING: "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
}
_LAYER = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}
_LAYER_EXTRA = {
    "llama": {},
    "qwen2": {
        "attn_q.bias": "self_attn.q_proj.bias",
        "attn_k.bias": "self_attn.k_proj.bias",
        "attn_v.bias": "self_attn.v_proj.bias",
    },
    "qwen3": {
        "attn_q_norm.weight": "self_attn.q_norm.weight",
        "attn_k_norm.weight": "self_attn.k_norm.weight",
    },
}
_CHUNK_ELEMENTS = 1 << 22


def checkpoint_tensors(source: GGUFFile, config: dict[str, Any]) -> dict[str, GGUFTensor]:
    """Checkpoint name → GGUF tensor, rows in the checkpoint's order.

    Raises CheckpointError if a tensor is missing, unknown or of an impossible shape.
    """
    architecture = str(config["model_type"])
    if config["num_hidden_layers"] * len(_LAYER) > len(source.tensors):
        raise CheckpointError(
            f"{source.path}: {len(source.tensors)} tensors are too few for "
            f"{config['num_hidden_layers']} layers"
        )
    names = _names(architecture, config["num_hidden_layers"], config["tie_word_embeddings"])
    _check_names(source, set(names))
    found = {target: source.tensors[name] for name, target in names.items()}
    if architecture != "llama":
        return found
    heads = {
        "self_attn.q_proj.weight": config["num_attention_heads"],
        "self_attn.k_proj.weight": config["num_key_value_heads"],
    }
    for target, tensor in found.items():
        num_heads = heads.get(target.split(".", 3)[-1])
        if num_heads is not None:
            found[target] = _unpermute(tensor, num_heads)
    return found


def dequantized_chunks(tensor: GGUFTensor) -> Iterator[NDArray[np.float32]]:
    """The tensor's rows, a few million elements at a time."""
    step = max(1, _CHUNK_ELEMENTS // tensor.shape[-1])
    for start in range(0, len(tensor.rows), step):
        yield tensor.dequantize(start, start + step)


def _names(architecture: str, num_layers: int, is_tied: bool) -> dict[str, str]:
    """GGUF name → checkpoint name, of every tensor the model has."""
    names = dict(_OUTER)
    if not is_tied:
        names[LM_HEAD] = "lm_head.weight"
    for layer in range(num_layers):
        for name, target in (_LAYER | _LAYER_EXTRA[architecture]).items():
            names[f"blk.{layer}.{name}"] = f"model.layers.{layer}.{target}"
    return names


def _check_names(source: GGUFFile, expected: set[str]) -> None:
    missing = sorted(expected - source.tensors.keys())
    if missing:
        raise CheckpointError(
            f"{source.path}: {len(missing)} tensors are missing, first {missing[0]!r}"
        )
    unknown = sorted(source.tensors.keys() - expected - {ROPE_FACTORS})
    if unknown:
        raise CheckpointError(
            f"{source.path}: {len(unknown)} tensors do not belong to the architecture, "
            f"first {unknown[0]!r}"
        )


def _unpermute(tensor: GGUFTensor, num_heads: int) -> GGUFTensor:
    """Undo the row order of GGUF's llama q and k.

    There the two rotary halves of a head are interleaved, row by row; a checkpoint keeps them
    apart:  (head, pair, half) → (head, half, pair).
    """
    num_rows = len(tensor.rows)
    if num_rows % (2 * num_heads):
        raise CheckpointError(
            f"GGUF tensor {tensor.name!r}: {num_rows} rows are not {num_heads} heads of even size"
        )
    order = np.arange(num_rows).reshape(num_heads, -1, 2).swapaxes(1, 2).ravel()
    return GGUFTensor(tensor.name, tensor.shape, tensor.kind, tensor.rows[order])
