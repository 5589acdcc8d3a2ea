"""Engines over mapped weights: the same tokens, and no tokens from a damaged file."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from rtp_serve.build import build_core, build_engine
from rtp_serve.config.engine import EngineConfig
from rtp_serve.engine.core import EngineCore
from rtp_serve.errors import CorruptWeights, EngineDead
from rtp_serve.ops.dispatch import Backend, backend
from tests.checkpoints import tiny_config, write_checkpoint
from tests.factories import make_request, run_to_end
from tests.unit.loader.store_files import flip

pytestmark = pytest.mark.skipif(backend() is Backend.REFERENCE, reason="weights are not packed")

OFF = {"enable": False}


def settings(checkpoint: Path, weight_store: dict[str, Any]) -> EngineConfig:
    values = {"model": str(checkpoint), "cache": {"num_blocks": 32}, "weight_store": weight_store}
    return EngineConfig.model_validate(values)


def generate(core: EngineCore) -> dict[str, list[list[int]]]:
    requests = [
        make_request(str(index), range(3, 9 + index), max_tokens=16, seed=index, temperature=heat)
        for index, heat in enumerate((0.0, 0.0, 0.8))
    ]
    return run_to_end(core, requests)


def test_tokens_are_the_same_from_checkpoint_draft_and_file(tmp_path: Path):
    checkpoint = write_checkpoint(tmp_path / "model", tiny_config("Qwen2ForCausalLM"))
    root = tmp_path / "store"
    loaded = generate(build_core(settings(checkpoint, OFF)))
    assert not root.exists()
    for _ in range(2):
        core = build_core(settings(checkpoint, {"directory": str(root)}))
        assert str(root) in Path("/proc/self/maps").read_text()
        assert generate(core) == loaded
        del core


def damaged_store(tmp_path: Path) -> EngineConfig:
    """With a file that passes everything but the check of its payload."""
    config = settings(write_checkpoint(tmp_path / "model"), {"directory": str(tmp_path / "store")})
    build_engine(config).shutdown()
    marks: list[Path] = []
    while not marks:  # the file is finished beside the first steps
        marks = list((tmp_path / "store").glob("*.verified"))
    marks[0].unlink()
    path = marks[0].with_suffix(".weights")
    flip(path, path.stat().st_size // 2)
    return config


def test_a_step_gives_nothing_once_the_weights_are_known_to_be_wrong(tmp_path: Path):
    config = damaged_store(tmp_path)

    def go_on_for_ever(core: EngineCore) -> None:
        while True:
            generate(core)

    with pytest.raises(CorruptWeights, match="has another digest"):
        go_on_for_ever(build_core(config))
    assert generate(build_core(config)) == generate(build_core(settings(tmp_path / "model", OFF)))


def test_an_engine_with_wrong_weights_dies_and_is_unhealthy(tmp_path: Path):
    engine = build_engine(damaged_store(tmp_path))

    async def use() -> None:
        while True:
            async for delta in engine.generate(make_request(max_tokens=4)):
                if delta.error:
                    assert delta.error == "the engine failed"
                    return

    asyncio.run(use())
    with pytest.raises(EngineDead):
        asyncio.run(engine.check_health())
    engine.shutdown()
