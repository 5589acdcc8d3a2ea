"""What a checkpoint's config.json says, in our words."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rtp_serve.errors import CheckpointError

RopeKind = Literal["default", "linear", "llama3"]

_MOE_ARCHITECTURES = ("Qwen2MoeForCausalLM", "Qwen3MoeForCausalLM")
_ARCHITECTURES = ("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", *_MOE_ARCHITECTURES)

_EXPERT_GRAIN = 32
"""Sizes of experts are multiples of it: the kernels read weights in strips of so many outputs."""

_MAX_EXPERTS, _MAX_EXPERTS_PER_TOKEN = 1024, 64


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary embedding and its length scaling."""

    theta: float = 10000.0
    """Base of the frequencies."""

    kind: RopeKind = "default"
    """Scaling rule."""

    factor: float = 1.0
    """Context extension factor ("linear", "llama3")."""

    low_freq_factor: float = 1.0
    """llama3: wavelengths above original_max_len / this are fully scaled."""

    high_freq_factor: float = 4.0
    """llama3: wavelengths below original_max_len / this are left alone."""

    original_max_len: int = 8192
    """llama3: context the base model was trained with, in tokens."""

    mrope_sections: tuple[int, ...] = ()
    """M-RoPE: how many of the head_dim/2 frequencies each of the three position rows drives."""


@dataclass(frozen=True, slots=True)
class MoEConfig:
    """Sparse layers: a router sends each token through some of many experts."""

    num_experts: int = 128
    """Experts of a layer."""

    num_experts_per_token: int = 8
    """Of these, how many a token goes through."""

    intermediate_size: int = 768
    """Width of an expert."""

    norm_topk_prob: bool = False
    """Whether a token's weights add up to 1, or only those of all experts do."""

    shared_expert_intermediate_size: int = 0
    """Width of the expert that every token goes through, behind a gate; 0 is none."""

    decoder_sparse_step: int = 1
    """Every how many layers is sparse, the last of each such group."""

    mlp_only_layers: tuple[int, ...] = ()
    """Layers that are dense all the same."""

    def is_sparse(self, layer: int) -> bool:
        """Whether the layer has experts in place of its MLP."""
        return layer not in self.mlp_only_layers and (layer + 1) % self.decoder_sparse_step == 0


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A decoder's shape."""

    architecture: str = "LlamaForCausalLM"
    """The class name under `architectures` in config.json."""

    vocab_size: int = 32000
    """Rows of the embedding."""

    hidden_size: int = 4096
    """Width of the residual stream."""

    intermediate_size: int = 11008
    """Width of the gated MLP; of a sparse model, in the layers without experts."""

    num_layers: int = 32
    """Decoder layers."""

    num_heads: int = 32
    """Query heads."""

    num_kv_heads: int = 32
    """Key/value heads; divides num_heads."""

    head_dim: int = 128
    """Elements of one head."""

    max_model_len: int = 2048
    """Positions the checkpoint was made for, in tokens."""

    rms_norm_eps: float = 1e-6
    """Epsilon of every RMSNorm."""

    tie_word_embeddings: bool = False
    """Whether the output head is the embedding matrix."""

    qkv_bias: bool = False
    """Whether q, k and v projections carry a bias."""

    o_bias: bool = False
    """Whether attention's output projection carries a bias."""

    qk_norm: bool = False
    """Whether q and k heads are RMS-normalised before rope (Qwen3)."""

    rope: RopeConfig = RopeConfig()
    """Rotary embedding."""

    moe: MoEConfig | None = None
    """Sparse layers; None is a dense model."""

    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Type the weights are stored in (float16 checkpoints are computed in float32)."""

    eos_token_ids: tuple[int, ...] = ()
    """Tokens that end a sequence, from config.json and generation_config.json; all in the
    vocabulary."""

    def is_sparse(self, layer: int) -> bool:
        """Whether the layer has experts in place of its MLP."""
        return self.moe is not None and self.moe.is_sparse(layer)


def read_model_config(directory: Path) -> ModelConfig:
    """Read `config.json` (and generation_config.json). Raises CheckpointError naming the field."""
    raw = _read_json(directory / "config.json")
    generation_path = directory / "generation_config.json"
    generation = _read_json(generation_path) if generation_path.exists() else {}
    return parse_model_config(raw, generation)


def parse_model_config(raw: dict[str, Any], generation: dict[str, Any]) -> ModelConfig:
    """The mapping of a Hugging Face config.json → ModelConfig."""
    architecture, vocab_size = _architecture(raw), _positive(raw, "vocab_size")
    is_qwen2 = architecture.startswith("Qwen2")
    is_biased = bool(raw.get("attention_bias"))
    _refuse_unsupported(raw)
    hidden_size, num_heads = _positive(raw, "hidden_size"), _positive(raw, "num_attention_heads")
    num_kv_heads = _positive(raw, "num_key_value_heads", num_heads)
    if num_heads % num_kv_heads:
        raise CheckpointError(
            f"config.json: num_attention_heads ({num_heads}) is not a multiple of "
            f"num_key_value_heads ({num_kv_heads})"
        )
    head_dim = _positive(raw, "head_dim", hidden_size // num_heads)
    if head_dim % 2:
        raise CheckpointError(f"config.json: head_dim must be even, got {head_dim}")
    rope = _rope(raw)
    return ModelConfig(
        architecture=architecture,
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=_positive(raw, "intermediate_size"),
        num_layers=_positive(raw, "num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        max_model_len=_max_model_len(raw, rope),
        rms_norm_eps=_number(raw, "rms_norm_eps", 1e-6),
        tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
        qkv_bias=_has_qwen2_bias(raw, architecture) if is_qwen2 else is_biased,
        o_bias=is_biased and not is_qwen2,
        qk_norm=architecture.startswith("Qwen3"),
        rope=rope,
        moe=_moe(raw, architecture, hidden_size) if architecture in _MOE_ARCHITECTURES else None,
        dtype=_dtype(raw),
        eos_token_ids=_eos_token_ids(raw, generation, vocab_size),
    )


def _architecture(raw: dict[str, Any]) -> str:
    named = _list(raw, "architectures")
    for architecture in named:
        if architecture in _ARCHITECTURES:
            return str(architecture)
    raise CheckpointError(
        f"config.json: unsupported architecture {named}; supported: {', '.join(_ARCHITECTURES)}"
    )


def _refuse_unsupported(raw: dict[str, Any]) -> None:
    """Refuse what would silently compute something else."""
    if raw.get("hidden_act", "silu") != "silu":
        raise CheckpointError(f"config.json: hidden_act {raw['hidden_act']!r}; supported: 'silu'")
    if raw.get("mlp_bias"):
        raise CheckpointError("config.json: mlp_bias true is not supported")
    if raw.get("use_sliding_window"):
        raise CheckpointError("config.json: use_sliding_window true is not supported")
    other_types = [kind for kind in _list(raw, "layer_types") if kind != "full_attention"]
    if other_types:
        raise CheckpointError(
            f"config.json: layer_types {other_types[0]!r}; supported: 'full_attention'"
        )
    if raw.get("quantization_config"):
        raise CheckpointError("config.json: quantization_config is not supported yet")


def _has_qwen2_bias(raw: dict[str, Any], architecture: str) -> bool:
    """Only the sparse ones can go without."""
    return architecture == "Qwen2ForCausalLM" or bool(raw.get("qkv_bias", True))


def _moe(raw: dict[str, Any], architecture: str, hidden_size: int) -> MoEConfig:
    """Both spellings: `num_experts` as published, `num_local_experts` since 5.x."""
    has_shared_expert = architecture == "Qwen2MoeForCausalLM"
    num_experts = _positive(raw, "num_experts", raw.get("num_local_experts"))
    moe = MoEConfig(
        num_experts=num_experts,
        num_experts_per_token=_positive(raw, "num_experts_per_tok"),
        intermediate_size=_positive(raw, "moe_intermediate_size"),
        norm_topk_prob=bool(raw.get("norm_topk_prob", False)),
        shared_expert_intermediate_size=(
            _positive(raw, "shared_expert_intermediate_size") if has_shared_expert else 0
        ),
        decoder_sparse_step=_positive(raw, "decoder_sparse_step", 1),
        mlp_only_layers=_layers(raw, "mlp_only_layers"),
    )
    if num_experts > _MAX_EXPERTS:
        raise CheckpointError(f"config.json: num_experts ({num_experts}) is above {_MAX_EXPERTS}")
    limit = min(num_experts, _MAX_EXPERTS_PER_TOKEN)
    if moe.num_experts_per_token > limit:
        raise CheckpointError(
            f"config.json: num_experts_per_tok ({moe.num_experts_per_token}) is above {limit}"
        )
    for key, size in {
        "hidden_size": hidden_size,
        "moe_intermediate_size": moe.intermediate_size,
        "shared_expert_intermediate_size": moe.shared_expert_intermediate_size,
    }.items():
        if size % _EXPERT_GRAIN:
            raise CheckpointError(
                f"config.json: {key} must be a multiple of {_EXPERT_GRAIN} in a model with "
                f"experts, got {size}"
            )
    return moe


def _layers(raw: dict[str, Any], key: str) -> tuple[int, ...]:
    layers = _list(raw, key)
    if not all(type(layer) is int and layer >= 0 for layer in layers):
        raise CheckpointError(f"config.json: {key} must list numbers of layers, got {layers!r}")
    return tuple(layers)


def _rope(raw: dict[str, Any]) -> RopeConfig:
    """Both spellings: `rope_theta` + `rope_scaling` as published, `rope_parameters` since 5.x."""
    parameters = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if not isinstance(parameters, dict):
        raise CheckpointError(f"config.json: rope parameters must be an object, got {parameters!r}")
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind not in ("default", "linear", "llama3"):
        raise CheckpointError(
            f"config.json: rope type {kind!r} is not supported; supported: default, linear, llama3"
        )
    if parameters.get("partial_rotary_factor", raw.get("partial_rotary_factor", 1)) != 1:
        raise CheckpointError("config.json: partial_rotary_factor other than 1 is not supported")
    rope = RopeConfig(
        theta=_number(parameters, "rope_theta", _number(raw, "rope_theta", 10000.0)),
        kind=kind,
        factor=_number(parameters, "factor", 1.0),
        low_freq_factor=_number(parameters, "low_freq_factor", 1.0),
        high_freq_factor=_number(parameters, "high_freq_factor", 4.0),
        original_max_len=_positive(parameters, "original_max_position_embeddings", 8192),
        mrope_sections=tuple(_list(parameters, "mrope_section")),
    )
    if rope.high_freq_factor <= rope.low_freq_factor:
        raise CheckpointError(
            f"config.json: rope high_freq_factor ({rope.high_freq_factor}) must be above "
            f"low_freq_factor ({rope.low_freq_factor})"
        )
    return rope


def _max_model_len(raw: dict[str, Any], rope: RopeConfig) -> int:
    """Linear scaling stretches the context that max_position_embeddings was written for."""
    max_positions = _positive(raw, "max_position_embeddings", 2048)
    return int(max_positions * rope.factor) if rope.kind == "linear" else max_positions


def _dtype(raw: dict[str, Any]) -> Literal["bfloat16", "float32"]:
    return "bfloat16" if raw.get("dtype", raw.get("torch_dtype")) == "bfloat16" else "float32"


def _eos_token_ids(
    raw: dict[str, Any], generation: dict[str, Any], vocab_size: int
) -> tuple[int, ...]:
    """Of both files. What is no id of the vocabulary cannot be sampled, and is left out."""
    found: list[int] = []
    for source in (generation, raw):
        value = source.get("eos_token_id")
        for token_id in value if isinstance(value, list) else [value]:
            if type(token_id) is int and 0 <= token_id < vocab_size and token_id not in found:
                found.append(token_id)
    return tuple(found)


def _positive(raw: dict[str, Any], key: str, default: int | None = None) -> int:
    value = raw.get(key)
    if value is None:
        value = default
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise CheckpointError(f"config.json: {key} must be a positive integer, got {value!r}")
    return value


def _list(raw: dict[str, Any], key: str) -> list[Any]:
    """A missing key or null is an empty list."""
    value = raw.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        raise CheckpointError(f"config.json: {key} must be a list, got {value!r}")
    return value


def _number(raw: dict[str, Any], key: str, default: float) -> float:
    """A finite number above 0; a missing key or null is the default."""
    value = raw.get(key)
    if value is None:
        return default
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (number and 0 < value <= sys.float_info.max):
        raise CheckpointError(f"config.json: {key} must be a number above 0, got {value!r}")
    return float(value)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: expected an object, got {type(values).__name__}")
    return values
