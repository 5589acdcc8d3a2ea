"""GGUF hyperparameters → config.json and generation_config.json.

Writes them in the form checkpoints are published in, so that any reader of those understands them.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtp_serve.errors import CheckpointError
from rtp_serve.loader.gguf.reader import GGUFFile
from rtp_serve.loader.gguf.tensors import EMBEDDING, LM_HEAD, ROPE_FACTORS

_CLASSES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
_LLAMA3_LOW_FREQ_FACTOR = 1.0
_LLAMA3_HIGH_FREQ_FACTOR = 4.0
_LLAMA3_ORIGINAL_MAX_LEN = 8192


def checkpoint_config(source: GGUFFile) -> dict[str, Any]:
    """The content of config.json. Raises CheckpointError for what is not supported."""
    architecture = source.get("general.architecture", str)
    if architecture not in _CLASSES:
        raise CheckpointError(
            f"{source.path}: GGUF architecture {architecture!r} is not supported; "
            f"supported: {', '.join(_CLASSES)}"
        )
    _refuse_unsupported(source, architecture)
    num_heads = source.get(f"{architecture}.attention.head_count", int)
    hidden_size = source.get(f"{architecture}.embedding_length", int)
    head_dim = _head_dim(source, architecture, hidden_size // max(num_heads, 1))
    theta = _shortest(source.get(f"{architecture}.rope.freq_base", float, 10000.0))
    return {
        "architectures": [_CLASSES[architecture]],
        "model_type": architecture,
        "vocab_size": _vocab_size(source),
        "hidden_size": hidden_size,
        "intermediate_size": source.get(f"{architecture}.feed_forward_length", int),
        "num_hidden_layers": source.get(f"{architecture}.block_count", int),
        "num_attention_heads": num_heads,
        "num_key_value_heads": source.get(
            f"{architecture}.attention.head_count_kv", int, num_heads
        ),
        "head_dim": head_dim,
        "max_position_embeddings": source.get(f"{architecture}.context_length", int),
        "rms_norm_eps": _shortest(
            source.get(f"{architecture}.attention.layer_norm_rms_epsilon", float)
        ),
        "rope_theta": theta,
        "rope_scaling": _rope_scaling(source, architecture, theta, head_dim),
        "hidden_act": "silu",
        "tie_word_embeddings": LM_HEAD not in source.tensors,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        **_special_ids(source),
    }


def generation_config(source: GGUFFile) -> dict[str, Any]:
    """The content of generation_config.json: where a sequence starts and ends."""
    ids = _special_ids(source)
    ends = [ids["eos_token_id"]] if "eos_token_id" in ids else []
    for name in ("eot", "eom"):
        token_id = source.metadata.get(f"tokenizer.ggml.{name}_token_id")
        if isinstance(token_id, int) and token_id not in ends:
            ends.append(token_id)
    if len(ends) > 1:
        ids["eos_token_id"] = ends
    return ids


def _refuse_unsupported(source: GGUFFile, architecture: str) -> None:
    """Refuse what would silently compute something else."""
    if source.get("split.count", int, 1) > 1:
        raise CheckpointError(
            f"{source.path} is one of {source.metadata['split.count']} parts of a split GGUF; "
            "merge them with llama-gguf-split first"
        )
    if source.get(f"{architecture}.expert_count", int, 0):
        raise CheckpointError(f"{source.path}: mixture-of-experts GGUF files are not supported")


def _head_dim(source: GGUFFile, architecture: str, default: int) -> int:
    head_dim = source.get(f"{architecture}.attention.key_length", int, default)
    for key in ("attention.value_length", "rope.dimension_count"):
        size = source.get(f"{architecture}.{key}", int, head_dim)
        if size != head_dim:
            raise CheckpointError(
                f"{source.path}: {architecture}.{key} is {size}, a head is {head_dim} wide; "
                "only equal sizes are supported"
            )
    return head_dim


def _vocab_size(source: GGUFFile) -> int:
    """Rows of the embedding, which may be padded beyond the tokenizer."""
    embedding = source.tensors.get(EMBEDDING)
    if embedding is None:
        raise CheckpointError(f"{source.path}: tensor {EMBEDDING!r} is missing")
    return embedding.shape[0]


def _special_ids(source: GGUFFile) -> dict[str, Any]:
    fields = {"bos": "bos", "eos": "eos", "pad": "padding"}
    ids: dict[str, Any] = {}
    for name, field in fields.items():
        token_id = source.metadata.get(f"tokenizer.ggml.{field}_token_id")
        if isinstance(token_id, int):
            ids[f"{name}_token_id"] = token_id
    return ids


def _rope_scaling(
    source: GGUFFile, architecture: str, theta: float, head_dim: int
) -> dict[str, Any] | None:
    if ROPE_FACTORS in source.tensors:
        return _llama3_scaling(source, architecture, theta, head_dim)
    kind = source.get(f"{architecture}.rope.scaling.type", str, "none")
    if kind == "none":
        return None
    scaling = {
        "rope_type": kind,
        "factor": _shortest(source.get(f"{architecture}.rope.scaling.factor", float)),
    }
    original = source.get(f"{architecture}.rope.scaling.original_context_length", int, 0)
    return scaling | ({"original_max_position_embeddings": original} if original else {})


def _llama3_scaling(
    source: GGUFFile, architecture: str, theta: float, head_dim: int
) -> dict[str, Any]:
    """GGUF keeps llama3 scaling as one divisor per frequency: find the rule that gives them."""
    tensor = source.tensors[ROPE_FACTORS]
    stored = tensor.dequantize(0, len(tensor.rows)).ravel()
    original = source.get(
        f"{architecture}.rope.scaling.original_context_length", int, _LLAMA3_ORIGINAL_MAX_LEN
    )
    factor = _shortest(float(stored.max()))
    expected = _llama3_factors(theta, head_dim, factor, original)
    if stored.shape != expected.shape or not np.allclose(stored, expected, rtol=1e-3):
        raise CheckpointError(
            f"{source.path}: {ROPE_FACTORS} is not llama3 scaling with low_freq_factor 1, "
            f"high_freq_factor 4 and original context {original}"
        )
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": _LLAMA3_LOW_FREQ_FACTOR,
        "high_freq_factor": _LLAMA3_HIGH_FREQ_FACTOR,
        "original_max_position_embeddings": original,
    }


def _llama3_factors(
    theta: float, head_dim: int, factor: float, original: int
) -> NDArray[np.float64]:
    """[head_dim / 2]: 1 for short wavelengths, `factor` for long ones, blended in between."""
    wavelength = 2 * math.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    share = (original / wavelength - _LLAMA3_LOW_FREQ_FACTOR) / (
        _LLAMA3_HIGH_FREQ_FACTOR - _LLAMA3_LOW_FREQ_FACTOR
    )
    unscaled = np.clip(share, 0.0, 1.0)
    return np.asarray(1.0 / ((1.0 - unscaled) / factor + unscaled))


def _shortest(value: float) -> float:
    """The decimal a float32 was made from: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))
