"""Tiny GGUF files of the supported architectures, and the checkpoint each must become."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray
from tokenizers import pre_tokenizers

HIDDEN, FFN, HEADS, KV_HEADS, HEAD_DIM, LAYERS = 64, 96, 4, 2, 16, 2
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5

Tensors = dict[str, NDArray[np.float32]]

TOKENS = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "he", "ll", "hell"]
START, END, TOOL, PAD = range(len(TOKENS), len(TOKENS) + 4)
VOCAB = len(TOKENS) + 4


def tokenizer_fields(pre: str = "llama-bpe") -> dict[str, Any]:
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": [*TOKENS, "<|start|>", "<|end|>", "<tool>", f"[PAD{PAD}]"],
        "tokenizer.ggml.token_type": [NORMAL] * len(TOKENS)
        + [CONTROL, CONTROL, USER_DEFINED, UNUSED],
        "tokenizer.ggml.merges": ["h e", "l l", "he ll"],
        "tokenizer.ggml.bos_token_id": START,
        "tokenizer.ggml.eos_token_id": END,
        "tokenizer.chat_template": "{{ messages[0].content }}",
    }


def model_fields(architecture: str) -> dict[str, Any]:
    values = {
        "block_count": LAYERS,
        "context_length": 512,
        "embedding_length": HIDDEN,
        "feed_forward_length": FFN,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KV_HEADS,
        "attention.key_length": HEAD_DIM,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": 500000.0,
    }
    named = {f"{architecture}.{key}": value for key, value in values.items()}
    return {"general.architecture": architecture, **named}


def checkpoint_tensors(architecture: str, *, is_tied: bool = False) -> Tensors:
    """Random float32 tensors by their published names."""
    random = np.random.default_rng(5)
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCAB, HIDDEN),
        "model.norm.weight": (HIDDEN,),
    }
    if not is_tied:
        shapes["lm_head.weight"] = (VOCAB, HIDDEN)
    for layer in range(LAYERS):
        shapes |= {
            f"model.layers.{layer}.{name}": shape
            for name, shape in _layer_shapes(architecture).items()
        }
    return {
        name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()
    }


def _layer_shapes(architecture: str) -> dict[str, tuple[int, ...]]:
    heads, kv_heads = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    shapes: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (HIDDEN,),
        "self_attn.q_proj.weight": (heads, HIDDEN),
        "self_attn.k_proj.weight": (kv_heads, HIDDEN),
        "self_attn.v_proj.weight": (kv_heads, HIDDEN),
        "self_attn.o_proj.weight": (HIDDEN, heads),
        "post_attention_layernorm.weight": (HIDDEN,),
        "mlp.gate_proj.weight": (FFN, HIDDEN),
        "mlp.up_proj.weight": (FFN, HIDDEN),
        "mlp.down_proj.weight": (HIDDEN, FFN),
    }
    if architecture == "qwen2":
        sizes = {"q": heads, "k": kv_heads, "v": kv_heads}
        shapes |= {f"self_attn.{name}_proj.bias": (size,) for name, size in sizes.items()}
    if architecture == "qwen3":
        shapes |= {f"self_attn.{name}_norm.weight": (HEAD_DIM,) for name in "qk"}
    return shapes


def gguf_tensors(architecture: str, tensors: Tensors) -> Tensors:
    """The same tensors as llama.cpp's converter names and orders them."""
    kind = getattr(gguf.MODEL_ARCH, architecture.upper())
    names = gguf.get_tensor_name_map(kind, LAYERS)
    found: Tensors = {}
    for name, values in tensors.items():
        if architecture == "llama" and ".q_proj." in name:
            values = _permute(values, HEADS)
        if architecture == "llama" and ".k_proj." in name:
            values = _permute(values, KV_HEADS)
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert target is not None, name
        found[target] = values
    return found


def _permute(values: NDArray[np.float32], num_heads: int) -> NDArray[np.float32]:
    """llama.cpp's order: the halves of a head interleaved."""
    halves = values.reshape(num_heads, 2, HEAD_DIM // 2, -1)
    return halves.swapaxes(1, 2).reshape(values.shape)


def write_gguf(
    path: Path,
    fields: dict[str, Any],
    tensors: Tensors,
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
) -> Path:
    """Write a file with the `gguf` library. Matrices are quantised to `kind`, vectors are not."""
    writer = gguf.GGUFWriter(path, fields["general.architecture"])
    for key, value in fields.items():
        if key != "general.architecture":
            _add_field(writer, key, value)
    for name, values in tensors.items():
        if values.ndim > 1:
            writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_field(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    adders = {
        str: writer.add_string,
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        list: writer.add_array,
    }
    adders[type(value)](key, value)


def tiny_gguf(
    path: Path,
    architecture: str = "llama",
    *,
    is_tied: bool = False,
    pre: str = "llama-bpe",
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    fields: dict[str, Any] | None = None,
    tensors: Tensors | None = None,
) -> Path:
    """A whole model. `fields` and `tensors` (by GGUF name) are added to or replace the usual."""
    written = gguf_tensors(architecture, checkpoint_tensors(architecture, is_tied=is_tied))
    return write_gguf(
        path,
        model_fields(architecture) | tokenizer_fields(pre) | (fields or {}),
        written | (tensors or {}),
        kind,
    )
