"""Weights that are coded: a model computes the same with them, and the store keeps them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from rtp_serve.config.engine import EngineConfig
from rtp_serve.config.model import read_model_config
from rtp_serve.loader.checkpoint import Checkpoint
from rtp_serve.loader.store.store import Wanted
from rtp_serve.loader.weights import load_weights
from rtp_serve.models.registry import MODELS
from rtp_serve.models.weight_forms import WeightForms, fitting_forms
from rtp_serve.models.weights import WeightSpec
from rtp_serve.ops import array_bytes
from rtp_serve.ops.dispatch import Backend, backend
from rtp_serve.worker.loading import load_model, load_planned, plan_model
from tests.checkpoints import tiny_config, write_checkpoint
from tests.kernels.levels import bits, using
from tests.worker.store_node import Node
from tests.worker.test_decoder import CONFIGS, ROWS, begun, decode

pytestmark = pytest.mark.skipif(backend() is Backend.REFERENCE, reason="it has plain weights")

CODED = WeightForms(has_coded_weights=True)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_computes_the_same(name: str, tmp_path: Path):
    directory = write_checkpoint(tmp_path, CONFIGS[name])
    config = read_model_config(directory)
    plain = load_model(directory, config, "bfloat16", 512).model
    coded = load_model(directory, config, "bfloat16", 512, forms=CODED).model
    assert coded.layers[0].attention.qkv_proj.weight.escapes is not None
    caches = begun(plain), begun(coded)
    expected = plain.next_logits(decode(), caches[0], ROWS)
    assert np.array_equal(coded.next_logits(decode(), caches[1], ROWS), expected)
    assert torch.equal(bits(caches[0].data), bits(caches[1].data))


def test_the_store_keeps_them_coded(tmp_path: Path):
    node = Node(write_checkpoint(tmp_path / "model", tiny_config()), tmp_path / "store")
    config = read_model_config(node.checkpoint)
    specs = CODED.of(MODELS.load(config.architecture).weight_specs(config), config)
    wanted = Wanted(node.checkpoint, config.architecture, specs, "bfloat16")
    loaded = load_weights(Checkpoint(node.checkpoint), specs, config, torch.bfloat16)
    path = "layers.0.mlp.down_proj"
    for _ in range(2):  # written, mapped
        store = node.store()
        mapped = store.get(wanted, lambda: loaded).weights.matrix(path)
        store.guard.wait()
        expected = loaded.weights.matrix(path)
        for array, other in ((mapped.stored, expected.stored), (mapped.escapes, expected.escapes)):
            assert array is not None
            assert other is not None
            assert array_bytes(array) == array_bytes(other)
    coded_bytes = node.file().stat().st_size
    node.start()
    sizes = {path.stat().st_size for path in node.root.glob("*.weights")}
    assert len(sizes) == 2  # plain ones are another file
    assert coded_bytes == min(sizes)


def test_all_matrices_but_those_of_experts_are_coded(tmp_path: Path):
    checkpoint = tiny_config("Qwen2MoeForCausalLM", mlp_only_layers=[1])
    config = read_model_config(write_checkpoint(tmp_path, checkpoint))
    specs = CODED.of(MODELS.load(config.architecture).weight_specs(config), config)

    def is_expected(spec: WeightSpec) -> bool:
        return spec.is_matrix and "expert" not in spec.path

    assert [spec.has_codes for spec in specs] == [is_expected(spec) for spec in specs]
    assert {"layers.0.mlp.router", "layers.1.mlp.down_proj", "embedding"} <= {
        spec.path for spec in specs if spec.has_codes
    }


@pytest.mark.parametrize("wanted", [True, False])
def test_the_settings_have_the_last_word(wanted: bool, tmp_path: Path):
    directory = write_checkpoint(tmp_path / "model", tiny_config())
    config = EngineConfig.model_validate(
        {
            "model": str(directory),
            "code_weights": wanted,
            "dtype": "bfloat16",
            "weight_store": {"directory": str(tmp_path / "store")},
        }
    )
    model_config = read_model_config(directory)
    is_fast = fitting_forms(model_config, "bfloat16").has_coded_weights
    model = load_planned(plan_model(directory, config), config).model
    is_coded = model.layers[0].mlp.down_proj.weight.escapes is not None
    assert is_coded == (wanted and is_fast)
    assert not fitting_forms(model_config, "float32").has_coded_weights
    with using("portable"):
        assert not fitting_forms(model_config, "bfloat16").has_coded_weights
