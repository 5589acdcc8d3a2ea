"""Engines whose checkpoint is exchanged while they run."""

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rtp_serve.build import build_core, build_engine
from rtp_serve.config.engine import EngineConfig, ModelSource
from rtp_serve.engine.async_engine import AsyncEngine
from rtp_serve.engine.request import Request
from rtp_serve.errors import CheckpointError, ModelNotFound, ReloadRefused
from rtp_serve.ops.dispatch import Backend, backend
from tests.checkpoints import tiny_config, write_checkpoint
from tests.factories import make_request, run_to_end

OFF = {"enable": False}
CONFIG = tiny_config("Qwen3ForCausalLM")


def write(directory: Path, seed: int, config: dict[str, Any] = CONFIG) -> Path:
    return write_checkpoint(directory, config, seed=seed)


def settings(model: Path, **options: Any) -> EngineConfig:
    values = {"model": str(model), "cache": {"num_blocks": 512}, "weight_store": OFF, **options}
    return EngineConfig.model_validate(values)


def requests(name: str, count: int, **sampling: Any) -> list[Request]:
    return [
        make_request(f"{name}{i}", range(3 + i, 12 + 2 * i), seed=i, temperature=i % 2, **sampling)
        for i in range(count)
    ]


def alone(model: Path, wanted: list[Request]) -> list[list[int]]:
    return [tokens for (tokens,) in run_to_end(build_core(settings(model)), wanted).values()]


async def tokens_of(engine: AsyncEngine, request: Request) -> list[int]:
    return [token async for delta in engine.generate(request) for token in delta.token_ids]


@pytest.fixture
def first(tmp_path: Path) -> Path:
    return write(tmp_path / "first", seed=1)


@pytest.fixture
def engine(first: Path) -> Iterator[AsyncEngine]:
    engine = build_engine(settings(first))
    yield engine
    engine.shutdown()


def test_a_reload_under_fifty_streams_costs_no_token(engine: AsyncEngine, first: Path):
    early = requests("early", 50, max_tokens=60, ignore_eos=True)
    late = requests("late", 50, max_tokens=60, ignore_eos=True)
    before = alone(first, early)
    write(first, seed=2)
    after = alone(first, late)

    async def scenario() -> None:
        streams = [asyncio.create_task(tokens_of(engine, request)) for request in early]
        await asyncio.sleep(0)
        (reloaded,) = await engine.reload()
        assert reloaded.is_changed
        assert await asyncio.gather(*(tokens_of(engine, request) for request in late)) == after
        assert await asyncio.gather(*streams) == before

    asyncio.run(scenario())


def test_what_a_prefix_hit_gives_is_of_the_same_weights(first: Path, tmp_path: Path):
    other = write(tmp_path / "other", seed=2)
    core = build_core(settings(first))
    prompts = [make_request(f"p{i}", range(3, 60), max_tokens=8) for i in range(3)]
    (expected,) = alone(first, prompts[:1])
    assert run_to_end(core, prompts[:1]) == {"p0": [expected]}
    core.switch(core.load(ModelSource(model=str(other))))
    assert run_to_end(core, prompts[1:2]) == {"p1": alone(other, prompts[1:2])}
    core.switch(core.load(ModelSource(model=str(first))))
    hits = core.counters.prefix_hits
    assert run_to_end(core, prompts[2:]) == {"p2": [expected]}
    assert core.counters.prefix_hits == hits + 56


def test_a_link_can_be_set_to_another_checkpoint(first: Path, tmp_path: Path):
    link = tmp_path / "current"
    link.symlink_to(first)
    core = build_core(settings(link))
    assert core.load() is core.version
    link.unlink()
    link.symlink_to(write(tmp_path / "other", seed=2))
    assert core.load().model.fingerprint != core.model.fingerprint


@pytest.mark.skipif(backend() is Backend.REFERENCE, reason="weights are not packed")
def test_weights_of_the_store_are_exchanged_and_unmapped(first: Path, tmp_path: Path):
    store = {"directory": str(tmp_path / "store")}
    core = build_core(settings(first, weight_store=store))
    wanted = requests("r", 4)
    write(first, seed=2)
    core.switch(core.load())
    assert [*run_to_end(core, wanted).values()] == [[tokens] for tokens in alone(first, wanted)]
    mapped = {
        line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()
        if str(tmp_path / "store") in line
    }  # fmt: skip
    assert len(mapped) == 1


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        ({"vocab_size": 300}, "vocab_size is 300, not 256"),
        ({"num_hidden_layers": 1}, "its KV blocks are"),
        ({"max_position_embeddings": 128}, "max_model_len would be 128, less than the"),
    ],
)
def test_another_kind_of_model_is_refused_and_nothing_changes(
    first: Path, tmp_path: Path, overrides: dict[str, Any], problem: str
):
    core = build_core(settings(first))
    other = write(tmp_path / "other", 1, CONFIG | overrides)
    with pytest.raises(ReloadRefused, match=problem):
        core.load(ModelSource(model=str(other)))
    assert core.load() is core.version


def test_another_tokenizer_is_refused_and_none_is_taken(first: Path, tmp_path: Path):
    (first / "tokenizer.json").write_text("{}")
    core = build_core(settings(first))
    other = write(tmp_path / "other", 2)
    assert core.load(ModelSource(model=str(other))) is not core.version
    (other / "tokenizer.json").write_text('{"other": 1}')
    with pytest.raises(ReloadRefused, match=r"tokenizer\.json has other content"):
        core.load(ModelSource(model=str(other)))


def test_a_damaged_checkpoint_changes_nothing(first: Path):
    core = build_core(settings(first))
    wanted = requests("r", 4)
    expected = alone(first, wanted)
    weights = first / "model.safetensors"
    shutil.copy(weights, first / "kept")
    with weights.open("r+b") as file:
        file.truncate(weights.stat().st_size - 1)
    with pytest.raises(CheckpointError):
        core.load()
    with pytest.raises(ModelNotFound):
        core.load(ModelSource(model="nothing/has/this/name"))
    assert [*run_to_end(core, wanted).values()] == [[tokens] for tokens in expected]
    (first / "kept").replace(weights)
    assert core.load() is core.version
    write(first, seed=2)
    assert core.load() is not core.version


def test_files_that_change_while_they_are_read_are_not_taken(
    first: Path, monkeypatch: pytest.MonkeyPatch
):
    core = build_core(settings(first))
    write(first, seed=2)
    module = "rtp_serve.worker.loading"
    load = __import__(module, fromlist=["load_model"]).load_model

    def load_slowly(*args: Any, **options: Any) -> Any:
        model = load(*args, **options)
        write(first, seed=3)
        return model

    with monkeypatch.context() as patched:
        patched.setattr(f"{module}.load_model", load_slowly)
        with pytest.raises(CheckpointError, match="changed while they were read"):
            core.load()
    assert core.load() is not core.version


def test_figures_tell_where_the_time_of_loading_went(first: Path):
    engine = build_engine(settings(first))
    num_bytes = (first / "model.safetensors").stat().st_size
    try:
        write(first, seed=2)
        engine.load()
        text = asyncio.run(engine.metrics_text())
    finally:
        engine.shutdown()
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if "weight_load" in line)
    assert float(values["rtp_serve:weight_load_bytes_total"]) == pytest.approx(2 * num_bytes, 0.05)
    for phase in ("whole", "read", "transform"):
        assert float(values[f'rtp_serve:weight_load_seconds_total{{phase="{phase}"}}']) > 0
