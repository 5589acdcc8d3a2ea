"""Reading checkpoints: every layout that is published, one clear error for every broken one."""

import json
import logging
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rtp_serve.config.model import read_model_config
from rtp_serve.errors import CheckpointError
from rtp_serve.loader.checkpoint import Checkpoint
from rtp_serve.models.model import Model
from rtp_serve.worker.loading import load_model
from tests.checkpoints import random_tensors, tiny_config, write_checkpoint
from tests.worker.engines import all_logits, make_cache, make_prompt, whole_prompt

CONFIG = tiny_config()


def load(directory: Path, dtype: torch.dtype = torch.float32) -> Model:
    return load_model(directory, read_model_config(directory), dtype, max_positions=64).model


def logits(model: Model, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    with torch.inference_mode():
        cache = make_cache(model.config, dtype)
        return all_logits(model, model.forward(whole_prompt(make_prompt(9)), cache).last)


@pytest.mark.parametrize("has_index", [True, False])
def test_shards_give_the_same_model_as_one_file(tmp_path: Path, has_index: bool):
    whole = write_checkpoint(tmp_path / "whole")
    sharded = write_checkpoint(tmp_path / "sharded", num_shards=3)
    if not has_index:
        (sharded / "model.safetensors.index.json").unlink()
    assert torch.equal(logits(load(whole)), logits(load(sharded)))


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("computed", [torch.float32, torch.bfloat16])
def test_weights_are_converted_to_the_compute_type(
    tmp_path: Path, stored: torch.dtype, computed: torch.dtype
):
    tensors = {
        name: tensor.to(stored).to(computed) for name, tensor in random_tensors(CONFIG).items()
    }
    plain = write_checkpoint(tmp_path / "plain", CONFIG, tensors, dtype=computed)
    converted = write_checkpoint(tmp_path / "stored", CONFIG, dtype=stored)
    assert torch.equal(
        logits(load(plain, computed), computed), logits(load(converted, computed), computed)
    )


def test_a_model_does_not_need_its_files_any_more(tmp_path: Path):
    directory = write_checkpoint(tmp_path)
    model = load(directory)
    before = logits(model)
    for path in directory.iterdir():
        path.unlink()
    assert torch.equal(logits(model), before)


def test_a_tied_head_and_derived_buffers_are_passed_over_silently(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    config = tiny_config(tie_word_embeddings=True)
    tensors = random_tensors(config)
    plain = load(write_checkpoint(tmp_path / "plain", config, tensors))
    tensors["lm_head.weight"] = torch.zeros_like(tensors["model.embed_tokens.weight"])
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(8)
    with caplog.at_level(logging.WARNING):
        model = load(write_checkpoint(tmp_path / "more", config, tensors))
    assert torch.equal(logits(model), logits(plain))
    assert not caplog.records


def test_tensors_that_nothing_asks_for_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    tensors = random_tensors(CONFIG) | {"vision.patch.weight": torch.zeros(3)}
    load(write_checkpoint(tmp_path, CONFIG, tensors))
    assert "vision.patch.weight" in caplog.text


def drop_tensors(directory: Path) -> None:
    tensors = random_tensors(CONFIG)
    del tensors["model.norm.weight"], tensors["model.layers.1.mlp.up_proj.weight"]
    write_checkpoint(directory, CONFIG, tensors)


def transpose_tensor(directory: Path) -> None:
    tensors = random_tensors(CONFIG)
    tensors["model.layers.2.mlp.down_proj.weight"] = torch.zeros(96, 64)
    write_checkpoint(directory, CONFIG, tensors)


def store_integers(directory: Path) -> None:
    tensors = random_tensors(CONFIG)
    name = "model.layers.0.self_attn.q_proj.weight"
    save_file(tensors | {name: tensors[name].to(torch.int8)}, directory / "model.safetensors")


def truncate(directory: Path) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def empty(directory: Path) -> None:
    (directory / "model.safetensors").write_bytes(b"")


def scramble_header(directory: Path) -> None:
    (directory / "model.safetensors").write_bytes(struct.pack("<Q", 9) + b"not json!")


def lie_about_header_size(directory: Path) -> None:
    (directory / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 62) + b"{}")


def replace_by_directory(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    (directory / "model.safetensors").mkdir()


def leave_pickle_only(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")


def leave_nothing(directory: Path) -> None:
    (directory / "model.safetensors").unlink()


def lose_shard(directory: Path) -> None:
    shard(directory)
    (directory / "model-00002-of-00003.safetensors").unlink()


def repeat_tensor(directory: Path) -> None:
    shard(directory)
    save_file({"model.norm.weight": torch.ones(64)}, directory / "model-00009-of-00009.safetensors")
    (directory / "model.safetensors.index.json").unlink()


def point_outside(directory: Path) -> None:
    write_index(directory, {"weight_map": {"model.norm.weight": "../model.safetensors"}})


def write_list_index(directory: Path) -> None:
    write_index(directory, ["model.safetensors"])


def write_numeric_index(directory: Path) -> None:
    write_index(directory, {"weight_map": {"model.norm.weight": 3}})


def shard(directory: Path) -> None:
    leave_nothing(directory)
    write_checkpoint(directory, CONFIG, num_shards=3)


def write_index(directory: Path, values: object) -> None:
    leave_nothing(directory)
    (directory / "model.safetensors.index.json").write_text(json.dumps(values), encoding="utf-8")


@pytest.mark.parametrize(
    ("break_it", "expected"),
    [
        (drop_tensors, "missing model.layers.1.mlp.up_proj.weight, model.norm.weight"),
        (transpose_tensor, r"down_proj.weight has shape \[96, 64\], expected \[64, 96\]"),
        (store_integers, "q_proj.weight is I8, supported: BF16, F16, F32"),
        (truncate, "model.safetensors is not a safetensors file"),
        (empty, "model.safetensors is not a safetensors file"),
        (scramble_header, "model.safetensors is not a safetensors file"),
        (lie_about_header_size, "model.safetensors is not a safetensors file"),
        (replace_by_directory, "model.safetensors is not a safetensors file"),
        (leave_pickle_only, r"pytorch_model.bin would have to be unpickled.*save_file"),
        (leave_nothing, r"no \*.safetensors file$"),
        (lose_shard, "names files that are not there: model-00002-of-00003.safetensors"),
        (repeat_tensor, "tensor model.norm.weight is in model-0000.* and model-00009-of-00009"),
        (point_outside, "files outside its directory: ../model.safetensors"),
        (write_list_index, "is not an index of tensors"),
        (write_numeric_index, "is not an index of tensors"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_broken_checkpoint_is_one_clear_error(
    tmp_path: Path, break_it: Callable[[Path], None], expected: str
):
    write_checkpoint(tmp_path, CONFIG)
    break_it(tmp_path)
    with pytest.raises(CheckpointError, match=expected):
        load(tmp_path)


def test_many_missing_tensors_are_counted(tmp_path: Path):
    save_file({"something": torch.ones(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"missing model.embed_tokens.weight, .* and 22 more"):
        load(tmp_path)


def test_opening_reads_no_weights(tmp_path: Path):
    directory = write_checkpoint(tmp_path, tiny_config("Qwen2ForCausalLM"))
    assert "model.layers.2.self_attn.v_proj.bias" in Checkpoint(directory).names
