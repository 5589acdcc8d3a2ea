"""A machine with a checkpoint and a weight store, for tests."""

import os
from pathlib import Path

import torch

from rtp_serve.clock import VirtualClock
from rtp_serve.config.model import read_model_config
from rtp_serve.loader.checkpoint import Checkpoint
from rtp_serve.loader.store.directory import StoreDirectory
from rtp_serve.loader.store.payload import FileIO
from rtp_serve.loader.store.store import Wanted, WeightStore
from rtp_serve.loader.weights import LoadedWeights, load_weights
from rtp_serve.models.registry import MODELS
from rtp_serve.models.weights import Weights
from rtp_serve.ops import as_tensor, dtype_name
from tests.checkpoints import tiny_config, write_checkpoint
from tests.unit.loader.store_files import flip

LARGE = 1 << 30


class Node:
    """A checkpoint and the store of the machine it is on."""

    def __init__(self, checkpoint: Path, root: Path) -> None:
        self.checkpoint = checkpoint
        self.root = root
        self.num_reads = 0

    def store(
        self,
        io: FileIO | None = None,
        max_bytes: int = LARGE,
        boot_id: str = "boot",
        now_s: float = 0,
    ) -> WeightStore:
        directory = StoreDirectory(self.root, boot_id)
        return WeightStore(directory, max_bytes, VirtualClock(now_s), io)

    def wanted(self, dtype: torch.dtype = torch.bfloat16) -> Wanted:
        config = read_model_config(self.checkpoint)
        specs = MODELS.load(config.architecture).weight_specs(config)
        return Wanted(self.checkpoint, config.architecture, specs, dtype_name(dtype))

    def read(self, dtype: torch.dtype = torch.bfloat16) -> LoadedWeights:
        self.num_reads += 1
        config = read_model_config(self.checkpoint)
        return load_weights(Checkpoint(self.checkpoint), self.wanted().specs, config, dtype)

    def start(
        self, store: WeightStore | None = None, dtype: torch.dtype = torch.bfloat16
    ) -> Weights:
        """What a replica does; it is given time to finish its work on the store."""
        store = store or self.store()
        loaded = store.get(self.wanted(dtype), lambda: self.read(dtype))
        store.guard.wait()
        return loaded.weights

    def file(self) -> Path:
        (path,) = self.root.glob("*.weights")
        return path

    def suffixes(self) -> list[str]:
        """Of all but locks and notes."""
        kinds = {path: path.suffix for path in self.root.iterdir()}
        return sorted(kind for kind in kinds.values() if kind not in (".lock", ".source"))


def make_node(tmp_path: Path, architecture: str = "Qwen2ForCausalLM", seed: int = 0) -> Node:
    checkpoint = write_checkpoint(tmp_path / "model", tiny_config(architecture), seed=seed)
    return Node(checkpoint, tmp_path / "store")


def assert_equal(first: Weights, second: Weights, node: Node) -> None:
    for spec in node.wanted().specs:
        if not spec.is_matrix:
            vectors = [as_tensor(weights.vector(spec.path)) for weights in (first, second)]
            assert torch.equal(*vectors)
            continue
        left, right = first.matrix(spec.path), second.matrix(spec.path)
        assert torch.equal(left.data, right.data)
        assert (left.num_rows, left.num_cols) == (right.num_rows, right.num_cols)
        assert (left.bias is None) == (right.bias is None) == (not spec.biases)
        if left.bias is not None and right.bias is not None:
            assert torch.equal(as_tensor(left.bias), as_tensor(right.bias))


def damage_payload(node: Node) -> None:
    """As a disk would: nothing tells that the file has changed."""
    before = node.file().stat()
    flip(node.file(), before.st_size // 2)
    os.utime(node.file(), ns=(before.st_atime_ns, before.st_mtime_ns))
