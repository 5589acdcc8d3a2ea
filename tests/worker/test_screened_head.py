"""An output head with a screen: who has one, where it is kept, that tokens are the same."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rtp_serve.config.engine import EngineConfig
from rtp_serve.config.model import ModelConfig, read_model_config
from rtp_serve.loader.checkpoint import Checkpoint
from rtp_serve.loader.store.store import Wanted
from rtp_serve.loader.weights import load_weights
from rtp_serve.models.registry import MODELS
from rtp_serve.models.weight_forms import WeightForms, fitting_forms
from rtp_serve.ops import array_bytes
from rtp_serve.ops.dispatch import Backend, backend
from rtp_serve.worker.loading import load_model, load_planned, plan_model
from tests.checkpoints import tiny_config, write_checkpoint
from tests.kernels.levels import using
from tests.worker.store_node import Node
from tests.worker.test_decoder import ROWS, begun, decode

SCREENED = WeightForms(has_screened_head=True)

pytestmark = pytest.mark.skipif(backend() is Backend.REFERENCE, reason="it has no screens")


def has_screened_head(config: ModelConfig, dtype: str, wanted: bool | None = None) -> bool:
    return fitting_forms(config, dtype, screen_head=wanted).has_screened_head


@pytest.mark.parametrize("is_tied", [False, True])
def test_greedy_tokens_are_the_same(is_tied: bool, tmp_path: Path):
    checkpoint = tiny_config(vocab_size=5000, tie_word_embeddings=is_tied)
    directory = write_checkpoint(tmp_path, checkpoint)
    config = read_model_config(directory)
    plain, screened = (
        load_model(directory, config, "bfloat16", 512, forms=WeightForms(is_screened)).model
        for is_screened in (False, True)
    )
    assert screened.lm_head.weight.screen is not None
    expected = plain.next_greedy(decode(), begun(plain), ROWS)
    cache = begun(screened)
    assert np.array_equal(screened.next_greedy(decode(), cache, ROWS), expected)
    hidden = screened.forward(decode(), cache).last
    assert np.array_equal(screened.greedy(hidden, ROWS), expected)


def test_the_store_keeps_the_screen(tmp_path: Path):
    node = Node(write_checkpoint(tmp_path / "model", tiny_config()), tmp_path / "store")
    config = read_model_config(node.checkpoint)
    specs = SCREENED.of(MODELS.load(config.architecture).weight_specs(config), config)
    wanted = Wanted(node.checkpoint, config.architecture, specs, "bfloat16")
    loaded = load_weights(Checkpoint(node.checkpoint), specs, config, torch.bfloat16)
    for _ in range(2):  # written, mapped
        store = node.store()
        mapped = store.get(wanted, lambda: loaded).weights.matrix("lm_head").screen
        store.guard.wait()
        expected = loaded.weights.matrix("lm_head").screen
        assert mapped is not None
        assert expected is not None
        assert array_bytes(mapped) == array_bytes(expected)
    node.start()
    assert node.suffixes().count(".weights") == 2  # one without a screen is another file


@pytest.mark.parametrize(("is_tied", "expected"), [(False, "lm_head"), (True, "embedding")])
def test_the_head_alone_has_one(is_tied: bool, expected: str, tmp_path: Path):
    checkpoint = tiny_config(tie_word_embeddings=is_tied)
    config = read_model_config(write_checkpoint(tmp_path, checkpoint))
    specs = SCREENED.of(MODELS.load(config.architecture).weight_specs(config), config)
    assert [spec.path for spec in specs if spec.has_screen] == [expected]


@pytest.mark.parametrize(("wanted", "expected"), [(None, False), (True, True), (False, False)])
def test_a_small_head_has_one_if_the_settings_say_so(
    wanted: bool | None, expected: bool, tmp_path: Path
):
    directory = write_checkpoint(tmp_path / "model", tiny_config())
    store = {"directory": str(tmp_path / "store")}
    config = EngineConfig.model_validate(
        {"model": str(directory), "screen_head": wanted, "weight_store": store, "dtype": "bfloat16"}
    )
    is_fast = has_screened_head(read_model_config(directory), "bfloat16", True)
    model = load_planned(plan_model(directory, config), config).model
    assert (model.lm_head.weight.screen is not None) == (expected and is_fast)


def test_only_large_heads_of_bfloat16_have_one_unasked(tmp_path: Path):
    small = read_model_config(write_checkpoint(tmp_path, tiny_config()))
    large = replace(small, vocab_size=1 << 20)
    is_fast = has_screened_head(large, "bfloat16", True)
    assert has_screened_head(large, "bfloat16") == is_fast
    assert not has_screened_head(small, "bfloat16")
    assert not has_screened_head(large, "bfloat16", False)
    assert not has_screened_head(large, "float32", True)
    with using("portable"):
        assert not has_screened_head(large, "bfloat16", True)
