"""Random checkpoints of several files: Qwen3's shape, tensors in the order that publishers use."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.checkpoints import QWEN3_0_6B, tensor_shapes
from benchmarks.report import say
from rtp_serve.loader.safetensors_writer import num_bytes, write_bfloat16

SHAPES: dict[str, dict[str, Any]] = {
    "2gb": QWEN3_0_6B | {"hidden_size": 1536, "intermediate_size": 4096},
    "100mb": QWEN3_0_6B
    | {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 6, "vocab_size": 32768},
    "small": QWEN3_0_6B
    | {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "vocab_size": 1024},
}
"""The last has some megabytes."""


def sharded_checkpoint(parent: Path, shape: str, num_files: int) -> Path:
    """The directory below `parent`; made when missing."""
    directory = parent / f"loading-{shape}-{num_files}"
    if not directory.exists():
        say(f"writing {directory}")
        work = directory.with_suffix(".partial")
        shutil.rmtree(work, ignore_errors=True)
        write_shards(work, SHAPES[shape], num_files)
        work.rename(directory)
    return directory


def write_shards(directory: Path, config: dict[str, Any], num_files: int) -> None:
    """config.json and `num_files` files of near-equal size with an index."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    shapes = tensor_shapes(config)
    weight_map: dict[str, str] = {}
    for number, names in enumerate(split(shapes, num_files), 1):
        file = f"model-{number:05}-of-{num_files:05}.safetensors"
        random = np.random.default_rng(number)
        part = {name: shapes[name] for name in names}
        pieces = (_finite_bits(random, part[name]) for name in sorted(part))
        write_bfloat16(directory / file, part, pieces)
        weight_map |= dict.fromkeys(names, file)
    index = json.dumps({"metadata": {}, "weight_map": weight_map})
    (directory / "model.safetensors.index.json").write_text(index)


def _finite_bits(random: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.uint16]:
    """Of any bfloat16 whose exponent's second bit is not set."""
    bits: NDArray[np.uint16] = random.integers(0, 1 << 16, shape, dtype=np.uint16)
    return bits & np.uint16(0xDFFF)


def split(shapes: dict[str, tuple[int, ...]], num_files: int) -> list[list[str]]:
    """The names in order, in as many runs of near-equal bytes."""
    total, seen = sum(map(num_bytes, shapes.values())), 0
    files: list[list[str]] = [[] for _ in range(num_files)]
    for name, shape in shapes.items():
        files[min(seen * num_files // total, num_files - 1)].append(name)
        seen += num_bytes(shape)
    return files
