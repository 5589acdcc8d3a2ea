"""A checkpoint directory: which safetensors files it has, and which tensors lie in them.

Opening reads headers only, so every problem of names, shapes and types is known before any weight
is. It does not know what the tensors are for (`loader.weights` does), and holds no file open.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from rtp_serve.errors import CheckpointError
from rtp_serve.loader.safetensors_header import StoredTensor, read_header, shown

if TYPE_CHECKING:
    from rtp_serve.models.weights import TensorSpec

_DTYPES = ("BF16", "F16", "F32")
_PICKLES = ("*.bin", "*.pt", "*.pth")
_INDEX = "model.safetensors.index.json"
_MAX_NAMED = 8
"""Offenders spelled out in one message; the rest are counted."""


class Checkpoint:
    """The tensors of one directory by name."""

    def __init__(self, directory: Path) -> None:
        """Raises CheckpointError: no file, a malformed one, a name in two files."""
        self._tensors: dict[str, StoredTensor] = {}
        for path in _weight_files(directory):
            for tensor in read_header(path):
                other = self._tensors.setdefault(tensor.name, tensor)
                if other is not tensor:
                    raise CheckpointError(
                        f"{directory}: tensor {shown(tensor.name)} is in {other.file.name} and "
                        f"{path.name}"
                    )
        self.directory = directory

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self._tensors)

    def tensor(self, name: str) -> StoredTensor:
        """Where a tensor of `names` lies."""
        return self._tensors[name]

    def check(self, wanted: "Iterable[TensorSpec]") -> None:
        """Raise CheckpointError naming every tensor that is missing, misshapen or mistyped."""
        missing, wrong = [], []
        for spec in wanted:
            stored = self._tensors.get(spec.name)
            if stored is None:
                missing.append(spec.name)
            elif stored.shape != spec.shape:
                wrong.append(
                    f"{spec.name} has shape {shown(list(stored.shape))}, "
                    f"expected {list(spec.shape)}"
                )
            elif stored.dtype not in _DTYPES:
                wrong.append(f"{spec.name} is {stored.dtype}, supported: {', '.join(_DTYPES)}")
        problems = [f"missing {listed(missing)}"] if missing else []
        problems += [listed(wrong)] if wrong else []
        if problems:
            raise CheckpointError(f"{self.directory}: {'; '.join(problems)}")


def listed(names: list[str]) -> str:
    """The first few, and how many more."""
    rest = len(names) - _MAX_NAMED
    return ", ".join(names[:_MAX_NAMED]) + (f" and {rest} more" if rest > 0 else "")


def _weight_files(directory: Path) -> list[Path]:
    """model.safetensors, or what the index names, or every safetensors file there is."""
    single = directory / "model.safetensors"
    if single.exists():
        return [single]
    if (directory / _INDEX).exists():
        return _indexed_files(directory)
    found = sorted(directory.glob("*.safetensors"))
    if found:
        return found
    pickles = sorted(path.name for pattern in _PICKLES for path in directory.glob(pattern))
    hint = (
        f"; {listed(pickles)} would have to be unpickled, which can run any code: convert it with "
        "safetensors.torch.save_file, or take a revision that has safetensors"
        if pickles
        else ""
    )
    raise CheckpointError(f"{directory}: no *.safetensors file{hint}")


def _indexed_files(directory: Path) -> list[Path]:
    index = directory / _INDEX
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(weight_map.values()))
        is_plain = all(Path(name).name == name for name in names)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{index} is not an index of tensors: {error!r}") from error
    if not is_plain:
        raise CheckpointError(f"{index} names files outside its directory: {listed(names)}")
    absent = [name for name in names if not (directory / name).exists()]
    if absent or not names:
        raise CheckpointError(f"{index} names files that are not there: {listed(absent)}")
    return [directory / name for name in names]
