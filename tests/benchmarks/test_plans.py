import json
import os
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from benchmarks import peers as peers_benchmark
from benchmarks import plans
from benchmarks.checkpoints import QWEN3_0_6B
from benchmarks.peers import chosen
from benchmarks.plans import Settings
from rtp_serve.config.model import parse_model_config
from rtp_serve.config.serve_file import read_serve_file
from rtp_serve.errors import ConfigError
from tests.checkpoints import tiny_config

THREE_GIB = 3 << 30


def settings_of(config: dict) -> Settings:
    model = parse_model_config(config, {})
    return Settings(Path("/model"), Path("/model.gguf"), model, THREE_GIB, num_threads=2)


def peers_at(directory: Path) -> Path:
    for name in ("deb/libtcmalloc_minimal.so.4", "venv-vllm/lib/libiomp5.so"):
        (directory / name).parent.mkdir(parents=True)
        (directory / name).touch()
    return directory


def options_of(command: tuple[str, ...]) -> dict[str, str]:
    return {name: value for name, value in pairwise(command) if "--" in name}


def test_our_file_is_a_valid_one_with_the_common_settings(tmp_path: Path):
    plan = plans.ours(settings_of(tiny_config()), tmp_path)
    file = read_serve_file(plan.command[-1])
    engine = file.applications[0].config.engine
    assert file.http_options.port == plan.port
    assert (engine.model_name, engine.cache.memory, engine.num_threads) == ("m", THREE_GIB, 2)
    assert yaml.safe_load(Path(plan.command[-1]).read_text())["http_options"]["host"] == "127.0.0.1"


def test_vllm_gets_the_same_memory_and_threads(tmp_path: Path):
    plan = plans.vllm(settings_of(tiny_config()), peers_at(tmp_path))
    cores = sorted(os.sched_getaffinity(0))[:2]
    assert plan.environment["VLLM_CPU_KVCACHE_SPACE"] == "3"
    assert plan.environment["VLLM_CPU_OMP_THREADS_BIND"] == ",".join(map(str, cores))
    assert options_of(plan.command)["--dtype"] == "bfloat16"


def test_a_missing_peer_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"no libtcmalloc_minimal\.so\.4 below"):
        plans.vllm(settings_of(tiny_config()), tmp_path)


def test_only_llamacpp_needs_a_gguf_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(tiny_config()))
    monkeypatch.setattr(peers_benchmark, "resolve", lambda _: model)
    settings = peers_benchmark.settings_of(
        "smollm2", ("rtp-serve", "vllm"), tmp_path, THREE_GIB, threads=2
    )
    assert settings.gguf is None
    for server in ("llamacpp", "llamacpp-flash"):
        with pytest.raises(ConfigError, match=r"SmolLM2-135M-Instruct-bf16\.gguf is missing"):
            peers_benchmark.settings_of("smollm2", ("vllm", server), tmp_path, THREE_GIB, 2)


@pytest.mark.parametrize(
    ("config", "slot_tokens"),
    [(tiny_config(max_position_embeddings=8192), 8192), (QWEN3_0_6B, 2304)],
)
def test_llamacpp_divides_the_memory_among_slots_that_hold_every_workload(
    config: dict, slot_tokens: int
):
    plan = plans.llamacpp(
        "llamacpp",
        settings_of(config),
        Path("/peers"),
        prompt_cache_mib=64,
        has_flash_attention=False,
    )
    options = options_of(plan.command)
    assert int(options["--ctx-size"]) == 16 * slot_tokens
    assert options["--threads"] == options["--threads-batch"] == "2"
    per_token = 4 * config["num_hidden_layers"] * config["num_key_value_heads"] * config["head_dim"]
    assert plan.kv_bytes == 16 * slot_tokens * per_token


def test_a_wrong_name_is_refused_with_those_there_are():
    assert chosen("c8,c16", ("c8", "c16"), "--workloads") == ("c8", "c16")
    with pytest.raises(ConfigError, match=r"--workloads: 'c9' is not one of c8, c16"):
        chosen("c9", ("c8", "c16"), "--workloads")
