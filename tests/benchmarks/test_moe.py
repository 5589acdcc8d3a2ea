"""The benchmark of experts, on a model that takes no time."""

from pathlib import Path

from benchmarks.moe import FIGURES, MOE_1B, Effort, measure, tensor_shapes, write_checkpoint
from benchmarks.report import Report
from benchmarks.traffic import active_decode_bytes
from rtp_serve.config.model import parse_model_config

TINY = MOE_1B | {
    "hidden_size": 64,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 256,
    "num_experts": 8,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
}


def test_every_figure_is_measured(tmp_path: Path):
    write_checkpoint(tmp_path / "model", TINY)
    report = Report()
    effort = Effort(batch=3, repetitions=1, steps=4, probe_bytes=1 << 20, patience_s=0)
    measure(tmp_path / "model", effort, report)
    assert set(FIGURES) <= report.figures.keys()
    assert all(spread.num_samples == 1 for spread in report.figures.values())
    assert 2 <= report.figures["active_experts"].median <= 6


def test_the_model_has_a_billion_weights_of_64_experts():
    shapes = tensor_shapes(MOE_1B)
    num_weights = sum(shape[0] * (shape[1] if len(shape) == 2 else 1) for shape in shapes.values())
    assert 0.95e9 < num_weights < 1.1e9
    assert sum("experts" in name for name in shapes) == 10 * 64 * 3


def test_a_step_reads_what_is_active_and_no_more():
    model = parse_model_config(MOE_1B, {})
    fewer, more = (active_decode_bytes(model, active, 8, 100) for active in (8, 9))
    assert more - fewer == 10 * 3 * 1024 * 512 * 2
    attention = 10 * (1024 * (16 + 2 * 4) * 64 + 16 * 64 * 1024)
    rest = attention + 32768 * 1024 + 10 * 64 * 1024
    kv = 8 * 100 * 2 * 10 * 4 * 64
    assert fewer == 2 * (rest + kv + 10 * 8 * 3 * 1024 * 512)
