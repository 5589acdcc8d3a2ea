"""Weights that are mapped and not read: the weight store's file beside a mapped checkpoint.

What a mapping costs shows with the first touch of its pages, so each method ends by touching all.
"""

from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file

from benchmarks.loaders import Loader, Stored, ours
from rtp_serve.clock import WallClock
from rtp_serve.config.engine import WeightStoreConfig
from rtp_serve.config.model import read_model_config
from rtp_serve.loader.store.store import Wanted
from rtp_serve.loader.weights import LoadedWeights
from rtp_serve.models.registry import MODELS
from rtp_serve.ops import as_tensor
from rtp_serve.worker.loading import open_store

_PAGE_BYTES = 4096
STORE, MAPPED = "mapped_store", "mapped_load_file"


def mappings(store: Path) -> dict[str, Loader]:
    """By name. The first call of the store's writes its file."""

    def from_store(stored: Stored) -> object:
        return mapped_store(store, stored)

    return {STORE: from_store, MAPPED: mapped_load_file}


def mapped_store(directory: Path, stored: Stored) -> object:
    """Packed, ready for the kernels."""
    config = read_model_config(stored.directory)
    specs = MODELS.load(config.architecture).weight_specs(config)
    store = open_store(WeightStoreConfig(directory=str(directory)), WallClock())
    assert store is not None, "it is enabled"
    wanted = Wanted(stored.directory, config.architecture, specs, "bfloat16")
    weights = store.get(wanted, partial(_packed, stored)).weights
    for spec in specs:
        path = spec.path
        _touch(as_tensor(weights.matrix(path).stored if spec.is_matrix else weights.vector(path)))
    store.guard.wait()
    return weights


def mapped_load_file(stored: Stored) -> object:
    """As they lie in the checkpoint."""
    tensors = [load_file(file) for file in stored.files]
    for named in tensors:
        for tensor in named.values():
            _touch(tensor)
    return tensors


def _packed(stored: Stored) -> LoadedWeights:
    loaded = ours(stored)
    assert isinstance(loaded, LoadedWeights)
    return loaded


def _touch(tensor: torch.Tensor) -> None:
    tensor.view(-1).view(torch.uint8)[::_PAGE_BYTES].sum()
