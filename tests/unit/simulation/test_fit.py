import json
from dataclasses import replace
from pathlib import Path

import pytest

from rtp_serve.errors import ConfigError
from rtp_serve.simulation.engine_model import EngineModel
from rtp_serve.simulation.fit import fitted, read_fit

MEASURED = EngineModel(
    prefill_base_s=0.004,
    prefill_token_s=2e-4,
    prefill_attention_s=3e-9,
    step_s=0.02,
    step_sequence_s=3e-3,
    step_kv_token_s=5e-8,
)
PREFILLS = {f"prefill_s_n{n}": MEASURED.prefill_s(n, 0) for n in (32, 256, 1024, 2048)}
STEPS = {
    f"decode_step_s_b{n}_c{c}": MEASURED.decode_step_s(n, n * c)
    for n in (1, 4, 16)
    for c in (81, 1041)
}


def test_an_engine_that_follows_the_curves_is_found_again():
    found = fitted(PREFILLS | STEPS | {"decode_tokens_per_s": 50.0}, EngineModel(num_blocks=7))
    for name in ("prefill_base_s", "prefill_token_s", "prefill_attention_s"):
        assert getattr(found.model, name) == pytest.approx(getattr(MEASURED, name), rel=1e-6)
    for name in ("step_s", "step_sequence_s", "step_kv_token_s"):
        assert getattr(found.model, name) == pytest.approx(getattr(MEASURED, name), rel=1e-6)
    assert (found.num_prefills, found.num_steps, found.model.num_blocks) == (4, 6, 7)
    assert max(found.prefill_error, found.step_error) < 1e-6


def test_no_term_is_negative():
    faster = replace(MEASURED, prefill_attention_s=0.0)
    bent = {name: s * (0.9 if name.endswith("2048") else 1) for name, s in PREFILLS.items()}
    found = fitted(bent | STEPS, faster)
    assert found.model.prefill_attention_s == 0.0
    assert found.model.prefill_token_s == pytest.approx(2e-4, rel=0.1)
    assert 0.01 < found.prefill_error < 0.1


@pytest.mark.parametrize(
    ("figures", "expected"),
    [
        (STEPS, "prefill_s_n"),
        (PREFILLS | {"decode_step_s_b1_c81": 0.02}, "decode_step_s_b"),
        (PREFILLS | {k: v for k, v in STEPS.items() if k.endswith("c81")}, "decode_step_s_b"),
    ],
)
def test_too_few_points_are_an_error(figures: dict[str, float], expected: str):
    with pytest.raises(ConfigError, match=expected):
        fitted(figures, EngineModel())


def test_what_is_no_report_is_an_error_that_names_the_file(tmp_path: Path):
    path = tmp_path / "engine.json"
    for text in ("{", "[]", json.dumps({"figures": {"prefill_s_n32": "slow"}})):
        path.write_text(text)
        with pytest.raises(ConfigError, match=r"engine\.json: not what"):
            read_fit(path, EngineModel())
    path.write_text(json.dumps({"figures": STEPS}))
    with pytest.raises(ConfigError, match=r"engine\.json: figures prefill_s_n"):
        read_fit(path, EngineModel())
    path.write_text(json.dumps({"figures": PREFILLS | STEPS}))
    assert read_fit(path, EngineModel()).model.step_s == pytest.approx(MEASURED.step_s)
