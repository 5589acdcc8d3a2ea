"""Ways to bring a checkpoint's bytes into memory of one's own. Each is run in a fresh process.

A library that is not installed is no method. What all of them return is kept until their time has
been taken; the raw reads keep nothing, and so are the limit of what a disk gives.
"""

import gc
import json
import mmap
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from rtp_serve.config.model import read_model_config
from rtp_serve.loader.checkpoint import Checkpoint
from rtp_serve.loader.weights import load_weights
from rtp_serve.models.registry import MODELS
from rtp_serve.ops.dispatch import backend

_PIECE_BYTES = 8 << 20
US, SAFE_OPEN = "ours", "safe_open"
RAW, HUGE_RAW = "raw_", "huge_raw_"
"""What the names of raw reads begin with."""

Loader = Callable[["Stored"], object]


@dataclass(frozen=True, slots=True)
class Stored:
    """A checkpoint on disk."""

    directory: Path
    files: tuple[Path, ...]
    file_by_name: dict[str, Path]
    """In model order."""

    @classmethod
    def of(cls, directory: Path) -> "Stored":
        index = json.loads((directory / "model.safetensors.index.json").read_text())
        file_by_name = {name: directory / file for name, file in index["weight_map"].items()}
        return cls(directory, tuple(sorted(set(file_by_name.values()))), file_by_name)

    def drop_from_cache(self) -> None:
        """The next read comes from the disk, as far as this system knows."""
        for file in self.files:
            descriptor = os.open(file, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)

    def bring_to_cache(self) -> None:
        buffer = bytearray(_PIECE_BYTES)
        for file in self.files:
            with file.open("rb", buffering=0) as opened:
                while opened.readinto(buffer):
                    pass


def loaders() -> dict[str, Loader]:
    """Those that are installed, by name: ours and its peers. What they import is imported here, so
    that it is no part of their time."""
    found: dict[str, Loader] = {US: ours, "load_file": copied_load_file, SAFE_OPEN: model_order}
    if find_spec("fastsafetensors"):
        import_module("fastsafetensors")
        found["fastsafetensors"] = fast
    if find_spec("runai_model_streamer"):
        import_module("runai_model_streamer")
        found["runai"] = runai
    for architecture in MODELS:
        MODELS.load(architecture)
    backend()
    gc.collect()  # the first look at all that was imported would fall into whichever load is first
    return found


def raw_loaders() -> dict[str, Loader]:
    """Direct reads of every byte, by the number of threads and the pages of the memory."""
    found = {f"{RAW}{count}": _raw(count, has_huge_pages=False) for count in (2, 4, 8)}
    return found | {f"{HUGE_RAW}{count}": _raw(count, has_huge_pages=True) for count in (2, 4)}


def ours(stored: Stored) -> object:
    """Converted and packed, ready for the kernels."""
    config = read_model_config(stored.directory)
    specs = MODELS.load(config.architecture).weight_specs(config)
    return load_weights(Checkpoint(stored.directory), specs, config, torch.bfloat16)


def copied_load_file(stored: Stored) -> object:
    return [
        {name: tensor.clone() for name, tensor in load_file(file).items()} for file in stored.files
    ]


def model_order(stored: Stored) -> object:
    """As a model that asks for its tensors one by one."""
    handles = {file: safe_open(file, framework="pt", device="cpu") for file in stored.files}
    return [handles[file].get_tensor(name).clone() for name, file in stored.file_by_name.items()]


def fast(stored: Stored) -> object:
    from fastsafetensors import SafeTensorsFileLoader, SingleGroup

    loader = SafeTensorsFileLoader(SingleGroup(), torch.device("cpu"), nogds=True)
    loader.add_filenames({0: [str(file) for file in stored.files]})
    buffers = loader.copy_files_to_device()
    return loader, buffers, [buffers.get_tensor(name) for name in stored.file_by_name]


def runai(stored: Stored) -> object:
    from runai_model_streamer import SafetensorsStreamer

    with SafetensorsStreamer() as streamer:
        streamer.stream_files([str(file) for file in stored.files])
        return [(name, tensor.clone()) for name, tensor in streamer.get_tensors()]


def _raw(num_threads: int, *, has_huge_pages: bool) -> Loader:
    def read_all(stored: Stored) -> object:
        pieces = list(_pieces(stored.files))
        shares = [pieces[first::num_threads] for first in range(num_threads)]
        with ThreadPoolExecutor(num_threads) as pool:
            return list(pool.map(partial(_read_pieces, has_huge_pages), shares))

    return read_all


def _pieces(files: tuple[Path, ...]) -> Iterator[tuple[Path, int]]:
    for file in files:
        for offset in range(0, file.stat().st_size, _PIECE_BYTES):
            yield file, offset


def _read_pieces(has_huge_pages: bool, pieces: list[tuple[Path, int]]) -> int:
    buffer = mmap.mmap(-1, _PIECE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    buffer.madvise(mmap.MADV_HUGEPAGE if has_huge_pages else mmap.MADV_NOHUGEPAGE)
    descriptors: dict[Path, int] = {}
    total = 0
    for file, offset in pieces:
        if file not in descriptors:
            descriptors[file] = os.open(file, os.O_RDONLY | os.O_DIRECT)
        total += os.preadv(descriptors[file], [buffer], offset)
    for descriptor in descriptors.values():
        os.close(descriptor)
    return total
