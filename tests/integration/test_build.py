"""The composition root."""

from pathlib import Path
from typing import Any

import pytest
import torch

from rtp_serve.build import build_core
from rtp_serve.config.engine import EngineConfig
from rtp_serve.errors import CheckpointError
from tests.checkpoints import tiny_config, write_checkpoint


def fingerprint(directory: Path, **options: Any) -> str:
    off = {"enable": False}
    config = EngineConfig(
        model=str(directory), cache={"num_blocks": 8}, weight_store=off, **options
    )
    return build_core(config).model.fingerprint


def test_the_fingerprint_tells_what_outputs_depend_on(tmp_path: Path):
    first = write_checkpoint(tmp_path / "first")
    other = write_checkpoint(tmp_path / "other", dtype=torch.bfloat16)
    assert fingerprint(first) == fingerprint(first, num_threads=1)
    assert fingerprint(first) != fingerprint(first, dtype="bfloat16")
    assert fingerprint(first) != fingerprint(other)


def test_an_unknown_architecture_is_refused_before_any_weight_is_read(tmp_path: Path):
    config = tiny_config() | {"architectures": ["MambaForCausalLM"]}
    directory = write_checkpoint(tmp_path / "mamba", config, tensors={"x": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"MambaForCausalLM.*LlamaForCausalLM"):
        build_core(EngineConfig(model=str(directory)))
