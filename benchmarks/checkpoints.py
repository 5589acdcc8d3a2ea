"""The random checkpoint of Qwen3-0.6B's shape, for Hugging Face readers and for llama.cpp.

Weights are the same bits in both files and in every run. The tokenizer is SmolLM2's; ids beyond it
are given words of their own, so that every server has text to send for every token.
"""

import json
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.report import say
from rtp_serve.config.engine import EngineConfig
from rtp_serve.loader.gguf.reader import read_gguf
from rtp_serve.loader.hub import resolve
from rtp_serve.loader.safetensors_writer import write_bfloat16

QWEN3_0_6B: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_act": "silu",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "rope_scaling": None,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
    "tie_word_embeddings": True,
    "attention_bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "bfloat16",
    "dtype": "bfloat16",
}
"""As published, but for the ids of SmolLM2's tokenizer; rope in both spellings."""

SMOLLM2_GGUF = "SmolLM2-135M-Instruct-bf16.gguf"
"""Name of the file for llama.cpp."""

_STD = 0.02
_WORD, _NORMAL = "Ġw{}", gguf.TokenType.NORMAL
_COPIED = ("tokenizer_config.json", "generation_config.json")


def qwen_gguf(parent: Path) -> Path:
    """The GGUF file below `parent`; made in some seconds when missing, SmolLM2's being there."""
    path = parent / "Qwen3-0.6B-random-bf16.gguf"
    if not path.exists():
        say(f"writing {path}")
        work = path.with_suffix(".partial")
        write_gguf(work, QWEN3_0_6B, parent / SMOLLM2_GGUF)
        work.rename(path)
    return path


def qwen_directory(parent: Path) -> Path:
    """The directory below `parent`; made in half a minute when missing."""
    directory = parent / "Qwen3-0.6B-random"
    if not directory.exists():
        say(f"writing {directory}")
        work = directory.with_suffix(".partial")
        shutil.rmtree(work, ignore_errors=True)
        write_checkpoint(work, QWEN3_0_6B, resolve(EngineConfig().model))
        work.rename(directory)
    return directory


def write_checkpoint(directory: Path, config: dict[str, Any], tokenizer: Path) -> None:
    """A Hugging Face checkpoint with the tokenizer of the directory `tokenizer`."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    for name in _COPIED:
        shutil.copyfile(tokenizer / name, directory / name)
    backend = json.loads((tokenizer / "tokenizer.json").read_text())
    vocabulary = backend["model"]["vocab"]
    # An added token keeps its id only if the vocabulary has it too.
    vocabulary |= {token["content"]: token["id"] for token in backend["added_tokens"]}
    free = sorted(set(range(config["vocab_size"])) - set(vocabulary.values()))
    vocabulary |= {_WORD.format(token_id): token_id for token_id in free}
    (directory / "tokenizer.json").write_text(json.dumps(backend, ensure_ascii=False))
    shapes = tensor_shapes(config)
    pieces = (random_bits(name, shapes[name]) for name in sorted(shapes))
    write_bfloat16(directory / "model.safetensors", shapes, pieces)


def tensor_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor of a tied Qwen3 by its published name."""
    hidden, ffn, head_dim = (
        config[key] for key in ("hidden_size", "intermediate_size", "head_dim")
    )
    heads, kv_heads = (
        config[key] * head_dim for key in ("num_attention_heads", "num_key_value_heads")
    )
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
    }
    layer: dict[str, tuple[int, ...]] = {
        "self_attn.q_proj": (heads, hidden),
        "self_attn.k_proj": (kv_heads, hidden),
        "self_attn.v_proj": (kv_heads, hidden),
        "self_attn.o_proj": (hidden, heads),
        "self_attn.q_norm": (head_dim,),
        "self_attn.k_norm": (head_dim,),
        "mlp.gate_proj": (ffn, hidden),
        "mlp.up_proj": (ffn, hidden),
        "mlp.down_proj": (hidden, ffn),
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
    }
    for index in range(config["num_hidden_layers"]):
        shapes |= {f"model.layers.{index}.{name}.weight": shape for name, shape in layer.items()}
    return shapes


def random_bits(name: str, shape: tuple[int, ...]) -> NDArray[np.uint16]:
    """A tensor's bfloat16 bits, a function of its name and shape: matrices normal with a standard
    deviation of 0.02, vectors 1."""
    if len(shape) == 1:
        values = torch.ones(shape)
    else:
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        values = torch.randn(shape, generator=generator) * _STD
    bits: NDArray[np.uint16] = values.bfloat16().view(torch.int16).numpy().view(np.uint16)
    return bits


def write_gguf(path: Path, config: dict[str, Any], tokenizer: Path) -> None:
    """The same weights for llama.cpp, matrices in bfloat16 and vectors in float32, with the
    tokenizer of the GGUF file `tokenizer`."""
    writer = gguf.GGUFWriter(path, config["model_type"])
    _add_shape(writer, config)
    _add_tokenizer(writer, read_gguf(tokenizer).metadata, config["vocab_size"])
    tensors = list(_gguf_tensors(config))
    for name, target in tensors:
        shape = tensor_shapes(config)[name]
        kind = gguf.GGMLQuantizationType.BF16 if len(shape) > 1 else gguf.GGMLQuantizationType.F32
        itemsize = 2 if len(shape) > 1 else 4
        num_bytes = int(np.prod(shape)) * itemsize
        writer.add_tensor_info(target, shape, np.dtype(np.float32), num_bytes, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, _ in tensors:
        bits = random_bits(name, tensor_shapes(config)[name])
        is_vector = bits.ndim == 1
        data = (bits.astype(np.uint32) << 16).view(np.float32) if is_vector else bits
        writer.write_tensor_data(data)
    writer.close()


def _gguf_tensors(config: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(published name, GGUF name). The rows of q and k stay as they are: rope turns halves."""
    architecture = gguf.MODEL_ARCH[config["model_type"].upper()]
    names = gguf.get_tensor_name_map(architecture, config["num_hidden_layers"])
    for name in sorted(tensor_shapes(config)):
        target = names.get_name(name, try_suffixes=(".weight",))
        assert target is not None, f"GGUF has no name for {name}"
        yield name, target


def _add_shape(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    writer.add_name("random")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)


def _add_tokenizer(writer: gguf.GGUFWriter, source: dict[str, Any], vocab_size: int) -> None:
    tokens = list(source["tokenizer.ggml.tokens"])
    kinds = list(source["tokenizer.ggml.token_type"])
    added = range(len(tokens), vocab_size)
    writer.add_tokenizer_model(source["tokenizer.ggml.model"])
    writer.add_tokenizer_pre(source["tokenizer.ggml.pre"])
    writer.add_token_list(tokens + [_WORD.format(token_id) for token_id in added])
    writer.add_token_types(kinds + [_NORMAL] * len(added))
    writer.add_token_merges(source["tokenizer.ggml.merges"])
    writer.add_bos_token_id(source["tokenizer.ggml.bos_token_id"])
    writer.add_eos_token_id(source["tokenizer.ggml.eos_token_id"])
    writer.add_add_bos_token(False)
