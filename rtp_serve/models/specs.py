"""The weights of a decoder by their published names, in model order."""

from rtp_serve.config.model import ModelConfig
from rtp_serve.models.weights import WeightSpec, matrix, vector


def decoder_specs(config: ModelConfig) -> tuple[WeightSpec, ...]:
    """Everything a decoder wants of its checkpoint."""
    vocabulary = {"model.embed_tokens": config.vocab_size}
    specs = [matrix("embedding", vocabulary, config.hidden_size)]
    for index in range(config.num_layers):
        specs += _layer_specs(config, index)
    specs.append(vector("norm", "model.norm", config.hidden_size))
    if not config.tie_word_embeddings:
        specs.append(matrix("lm_head", {"lm_head": config.vocab_size}, config.hidden_size))
    return tuple(specs)


def _layer_specs(config: ModelConfig, index: int) -> list[WeightSpec]:
    path, module = f"layers.{index}", f"model.layers.{index}"
    hidden, heads = config.hidden_size, config.num_heads * config.head_dim
    kv_heads = config.num_kv_heads * config.head_dim
    attention = f"{module}.self_attn"
    qkv = {
        f"{attention}.q_proj": heads,
        f"{attention}.k_proj": kv_heads,
        f"{attention}.v_proj": kv_heads,
    }
    specs = [
        vector(f"{path}.input_norm", f"{module}.input_layernorm", hidden),
        matrix(f"{path}.attention.qkv_proj", qkv, hidden, has_bias=config.qkv_bias),
        matrix(
            f"{path}.attention.o_proj",
            {f"{attention}.o_proj": hidden},
            heads,
            has_bias=config.o_bias,
        ),
        vector(f"{path}.mlp_norm", f"{module}.post_attention_layernorm", hidden),
        *_mlp_specs(config, index),
    ]
    if config.qk_norm:
        specs.append(vector(f"{path}.q_norm", f"{attention}.q_norm", config.head_dim))
        specs.append(vector(f"{path}.k_norm", f"{attention}.k_norm", config.head_dim))
    return specs


def _mlp_specs(config: ModelConfig, index: int) -> list[WeightSpec]:
    path, module, moe = f"layers.{index}.mlp", f"model.layers.{index}.mlp", config.moe
    if moe is None or not moe.is_sparse(index):
        return _gated_specs(path, [module], config.hidden_size, config.intermediate_size)
    shared_size = moe.shared_expert_intermediate_size
    gates = {f"{module}.gate": moe.num_experts}
    shared = []
    if shared_size:
        gates[f"{module}.shared_expert_gate"] = 1
        shared_path, shared_module = f"{path}.shared_expert", f"{module}.shared_expert"
        shared = _gated_specs(shared_path, [shared_module], config.hidden_size, shared_size)
    modules = [f"{module}.experts.{expert}" for expert in range(moe.num_experts)]
    return [
        matrix(f"{path}.router", gates, config.hidden_size),
        *_gated_specs(f"{path}.experts", modules, config.hidden_size, moe.intermediate_size),
        *shared,
    ]


def _gated_specs(path: str, modules: list[str], hidden_size: int, size: int) -> list[WeightSpec]:
    """Of one gated MLP, or of experts, stacked one behind the other."""
    halves = [f"{module}.{half}_proj" for module in modules for half in ("gate", "up")]
    downs = [f"{module}.down_proj" for module in modules]
    return [
        matrix(f"{path}.gate_up_proj", dict.fromkeys(halves, size), hidden_size),
        matrix(f"{path}.down_proj", dict.fromkeys(downs, hidden_size), size),
    ]
