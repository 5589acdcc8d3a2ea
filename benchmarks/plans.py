"""The command lines of the servers that are compared, each near its own best settings.

All have the same threads, the same bytes for keys and values, bfloat16 and prefix caching on.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.servers import SERVED_NAME, ServerPlan, free_port
from benchmarks.vllm_load import OFFLINE
from rtp_serve.config.model import ModelConfig
from rtp_serve.errors import ConfigError

_ROOT = Path(__file__).parents[1]
_MAX_MODEL_LEN = 4096
_SLOTS = 16
_MIN_SLOT_TOKENS = 2304
"""The longest request of a workload has 2,049."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What all servers have in common."""

    directory: Path
    """Hugging Face checkpoint."""

    gguf: Path | None
    """The same weights for llama.cpp; None where it does not run."""

    model: ModelConfig
    kv_bytes: int
    num_threads: int


# A server that was halted for a while must not be taken for dead: not by Serve, not by Ray.
PATIENT_S = 3600.0
PATIENT_RAY = {
    "RAY_health_check_timeout_ms": str(int(PATIENT_S * 1e3)),
    "RAY_health_check_failure_threshold": "1000",
}


def ours(settings: Settings, work: Path) -> ServerPlan:
    """The quickstart's application with the common settings; its file goes to `work`."""
    config = our_config(settings)
    return application("rtp-serve", config, work, settings.kv_bytes)


def application(name: str, config: dict[str, Any], work: Path, kv_bytes: int) -> ServerPlan:
    """Of ours, as `config` says, at a port of its own; its file goes to `work`."""
    config["http_options"]["port"] = port = free_port()
    path = work / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return ServerPlan(
        name=name,
        command=(sys.executable, "-m", "rtp_serve.cli.main", "serve", str(path)),
        port=port,
        kv_bytes=kv_bytes,
        environment=PATIENT_RAY,
        replica_marker="EngineReplica",
    )


def shipped_config(name: str) -> dict[str, Any]:
    """The content of a file of `configs/`."""
    content: dict[str, Any] = yaml.safe_load((_ROOT / "configs" / name).read_text("utf-8"))
    return content


def our_config(settings: Settings) -> dict[str, Any]:
    """The content of the file, but its port."""
    config = shipped_config("quickstart.yaml")
    arguments = config["applications"][0]["args"]
    arguments["engine"] |= {
        "model": str(settings.directory),
        "served_model_name": SERVED_NAME,
        "max_model_len": _MAX_MODEL_LEN,
        "num_threads": settings.num_threads,
        "cache": {"memory": settings.kv_bytes},
    }
    arguments["replica"] |= {"health_check_timeout_s": PATIENT_S}
    return config


def vllm(settings: Settings, peers: Path) -> ServerPlan:
    """vLLM's CPU build out of `peers/venv-vllm`."""
    port = free_port()
    libraries = [_find(peers, "libtcmalloc_minimal.so.4"), _find(peers, "libiomp5.so")]
    return ServerPlan(
        name="vllm",
        command=(
            *(str(peers / "venv-vllm/bin/vllm"), "serve", str(settings.directory)),
            *("--host", "127.0.0.1", "--port", str(port), "--served-model-name", SERVED_NAME),
            *("--dtype", "bfloat16", "--max-model-len", str(_MAX_MODEL_LEN)),
        ),
        port=port,
        kv_bytes=settings.kv_bytes,
        environment=OFFLINE
        | {
            "VLLM_CACHE_ROOT": str(peers / "cache"),
            "VLLM_CPU_KVCACHE_SPACE": f"{settings.kv_bytes / (1 << 30):g}",
            "VLLM_CPU_OMP_THREADS_BIND": _cores(settings.num_threads),
            "LD_PRELOAD": ":".join(map(str, libraries)),
        },
        replica_marker="EngineCore",
    )


def llamacpp(
    name: str, settings: Settings, peers: Path, prompt_cache_mib: int, *, has_flash_attention: bool
) -> ServerPlan:
    """llama-server out of `peers/llama-bin`. Its cache is fixed slots of one sequence each."""
    assert settings.gguf is not None, "llama.cpp reads a GGUF file"
    port = free_port()
    tokens = slot_tokens(settings) * _SLOTS
    threads = str(settings.num_threads)
    return ServerPlan(
        name=name,
        command=(
            *(str(peers / "llama-bin/llama-server"), "--model", str(settings.gguf)),
            *("--host", "127.0.0.1", "--port", str(port), "--alias", SERVED_NAME),
            *("--threads", threads, "--threads-batch", threads),
            *("--parallel", str(_SLOTS), "--ctx-size", str(tokens)),
            *("--batch-size", "2048", "--ubatch-size", "512"),
            # Only one of them maps the file: a mapping that two share counts half for each.
            *(
                ("--flash-attn", "on", "--load-mode", "none")
                if has_flash_attention
                else ("--flash-attn", "off")
            ),
            *("--cache-ram", str(prompt_cache_mib)),
        ),
        port=port,
        kv_bytes=tokens * kv_bytes_per_token(settings.model),
        environment={"LD_LIBRARY_PATH": str(peers / "llama-bin")},
    )


def slot_tokens(settings: Settings) -> int:
    """What a slot holds when the KV bytes are divided among the slots; the workloads must fit."""
    fitting = settings.kv_bytes // kv_bytes_per_token(settings.model) // _SLOTS
    longest = max(_MIN_SLOT_TOKENS, fitting - fitting % 256)
    return min(longest, settings.model.max_model_len)


def kv_bytes_per_token(model: ModelConfig) -> int:
    """Keys and values of all layers in bfloat16."""
    return 2 * 2 * model.num_layers * model.num_kv_heads * model.head_dim


def _cores(count: int) -> str:
    """The first cores this process may use, as vLLM wants them."""
    return ",".join(map(str, sorted(os.sched_getaffinity(0))[:count]))


def _find(peers: Path, name: str) -> Path:
    found = sorted(peers.rglob(name))
    if not found:
        raise ConfigError(
            f"$PEERS: no {name} below {peers}; docs/benchmarks.md says what is needed"
        )
    return found[0]
