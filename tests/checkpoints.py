"""Random-weight checkpoints with real architectures: safetensors and config.json, no network."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LINEAR_ROPE = {"rope_type": "linear", "factor": 2.0}

_TINY = {
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 256,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "eos_token_id": 2,
    "torch_dtype": "float32",
}


_TINY_MOE = {
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 32,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}


def tiny_config(architecture: str = "LlamaForCausalLM", **overrides: Any) -> dict[str, Any]:
    """A published-style config.json of a model of some 200 thousand weights."""
    model_type = architecture.removesuffix("ForCausalLM").lower()
    config = {"architectures": [architecture], "model_type": model_type, **_TINY}
    if "Moe" in architecture:
        config |= {"model_type": model_type.replace("moe", "_moe"), **_TINY_MOE}
    if architecture == "Qwen2MoeForCausalLM":
        config["shared_expert_intermediate_size"] = 64
    return config | overrides


def random_tensors(config: dict[str, Any], seed: int = 0) -> dict[str, torch.Tensor]:
    """Every tensor that a checkpoint of this config has, fp32, by its published name."""
    generator = torch.Generator().manual_seed(seed)
    hidden = config["hidden_size"]
    head_dim = config["head_dim"]
    heads, kv_heads = (
        config[key] * head_dim for key in ("num_attention_heads", "num_key_value_heads")
    )
    matrices = {"model.embed_tokens": (config["vocab_size"], hidden)}
    norms = {"model.norm": hidden}
    biases = {}
    for index in range(config["num_hidden_layers"]):
        layer = f"model.layers.{index}"
        attention = f"{layer}.self_attn"
        matrices[f"{attention}.q_proj"] = (heads, hidden)
        matrices[f"{attention}.k_proj"] = (kv_heads, hidden)
        matrices[f"{attention}.v_proj"] = (kv_heads, hidden)
        matrices[f"{attention}.o_proj"] = (hidden, heads)
        matrices |= _mlp_matrices(config, index)
        norms[f"{layer}.input_layernorm"] = hidden
        norms[f"{layer}.post_attention_layernorm"] = hidden
        architecture = config["architectures"][0]
        if architecture.startswith("Qwen3"):
            norms |= dict.fromkeys((f"{attention}.q_norm", f"{attention}.k_norm"), head_dim)
        is_qwen2 = architecture.startswith("Qwen2")
        if (is_qwen2 and config.get("qkv_bias", True)) or config.get("attention_bias"):
            biases |= {f"{attention}.q_proj": heads}
            biases |= dict.fromkeys((f"{attention}.k_proj", f"{attention}.v_proj"), kv_heads)
        if not is_qwen2 and config.get("attention_bias"):
            biases[f"{attention}.o_proj"] = hidden
    if not config["tie_word_embeddings"]:
        matrices["lm_head"] = matrices["model.embed_tokens"]

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    tensors = {
        f"{name}.weight": normal(*shape) * shape[1] ** -0.5 for name, shape in matrices.items()
    }
    tensors |= {f"{name}.weight": 1 + 0.1 * normal(size) for name, size in norms.items()}
    tensors |= {f"{name}.bias": 0.1 * normal(size) for name, size in biases.items()}
    # A layer's output must outweigh the embedding, or a tied model only repeats its last token. A
    # mean of experts is smaller than one of them.
    tensors["model.embed_tokens.weight"] *= 0.5
    for name in tensors:
        if ".experts." in name and "down_proj" in name:
            tensors[name] *= 6
    return tensors


def _mlp_matrices(config: dict[str, Any], index: int) -> dict[str, tuple[int, int]]:
    hidden, mlp = config["hidden_size"], f"model.layers.{index}.mlp"
    is_sparse = (
        "num_experts" in config
        and index not in config["mlp_only_layers"]
        and (index + 1) % config["decoder_sparse_step"] == 0
    )
    if not is_sparse:
        return _gated_matrices(mlp, hidden, config["intermediate_size"])
    matrices = {f"{mlp}.gate": (config["num_experts"], hidden)}
    for expert in range(config["num_experts"]):
        path = f"{mlp}.experts.{expert}"
        matrices |= _gated_matrices(path, hidden, config["moe_intermediate_size"])
    if "shared_expert_intermediate_size" in config:
        size = config["shared_expert_intermediate_size"]
        matrices |= _gated_matrices(f"{mlp}.shared_expert", hidden, size)
        matrices[f"{mlp}.shared_expert_gate"] = (1, hidden)
    return matrices


def _gated_matrices(path: str, hidden: int, size: int) -> dict[str, tuple[int, int]]:
    return {
        f"{path}.gate_proj": (size, hidden),
        f"{path}.up_proj": (size, hidden),
        f"{path}.down_proj": (hidden, size),
    }


def write_checkpoint(
    directory: Path,
    config: dict[str, Any] | None = None,
    tensors: dict[str, torch.Tensor] | None = None,
    *,
    num_shards: int = 1,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Path:
    """Write config.json and weights, as one file or as shards with an index; the directory."""
    config = config or tiny_config()
    tensors = random_tensors(config, seed) if tensors is None else tensors
    tensors = {name: tensor.to(dtype).contiguous() for name, tensor in tensors.items()}
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    if num_shards == 1:
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
        return directory
    weight_map = {}
    for shard in range(num_shards):
        file = f"model-{shard + 1:05}-of-{num_shards:05}.safetensors"
        names = sorted(tensors)[shard::num_shards]
        save_file({name: tensors[name] for name in names}, directory / file, {"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    index = json.dumps({"metadata": {}, "weight_map": weight_map})
    (directory / "model.safetensors.index.json").write_text(index, encoding="utf-8")
    return directory
