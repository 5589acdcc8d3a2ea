"""A GGUF file → an ordinary Hugging Face checkpoint directory, weights in bfloat16."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from rtp_serve.config.model import parse_model_config
from rtp_serve.errors import CheckpointError
from rtp_serve.loader.gguf.config import checkpoint_config, generation_config
from rtp_serve.loader.gguf.reader import GGUFFile, GGUFTensor, read_gguf
from rtp_serve.loader.gguf.tensors import checkpoint_tensors, dequantized_chunks
from rtp_serve.loader.gguf.tokenizer import tokenizer_config, tokenizer_json
from rtp_serve.loader.safetensors_writer import bfloat16_bits, num_bytes, write_bfloat16
from rtp_serve.text.tokenizer import Tokenizer


def convert_gguf(
    path: Path, directory: Path, *, with_weights: bool = True, is_quiet: bool | None = None
) -> None:
    """Write config, tokenizer and (unless told otherwise) weights into `directory`.

    `is_quiet` None draws progress on a terminal only. Holds a few million elements at a time.
    Raises CheckpointError if the file is malformed or of an unsupported kind.
    """
    source = read_gguf(path)
    config = checkpoint_config(source)
    generation = generation_config(source)
    parse_model_config(config, generation)
    _write_json(directory / "config.json", config)
    _write_json(directory / "generation_config.json", generation)
    _write_tokenizer(source, config, directory)
    if with_weights:
        tensors = checkpoint_tensors(source, config)
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        pieces = _bfloat16_pieces(tensors, is_quiet)
        write_bfloat16(directory / "model.safetensors", shapes, pieces)


def _write_tokenizer(source: GGUFFile, config: dict[str, Any], directory: Path) -> None:
    settings = tokenizer_config(source)
    settings["model_max_length"] = config["max_position_embeddings"]
    _write_json(directory / "tokenizer.json", tokenizer_json(source), indent=None)
    _write_json(directory / "tokenizer_config.json", settings)
    tokenizer = Tokenizer.from_directory(directory)
    if tokenizer.vocab_size > config["vocab_size"]:
        raise CheckpointError(
            f"{source.path}: {tokenizer.vocab_size} tokens, but the embedding has "
            f"{config['vocab_size']} rows"
        )


def _bfloat16_pieces(
    tensors: dict[str, GGUFTensor], is_quiet: bool | None
) -> Iterator[NDArray[np.uint16]]:
    total = sum(num_bytes(tensor.shape) for tensor in tensors.values())
    with tqdm(
        total=total, desc="converting", unit="B", unit_scale=True, disable=is_quiet
    ) as progress:
        for name in sorted(tensors):
            for chunk in dequantized_chunks(tensors[name]):
                piece = bfloat16_bits(chunk)
                yield piece
                progress.update(piece.nbytes)


def _write_json(path: Path, content: dict[str, Any], indent: int | None = 2) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=indent) + "\n", encoding="utf-8")
