"""Applications of one engine and of a prefill and a decode engine, on the same cores."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.plans import PATIENT_RAY, PATIENT_S
from benchmarks.servers import SERVED_NAME, ServerPlan, free_port
from rtp_serve.config.model import ModelConfig

_CONFIGS = Path(__file__).parents[1] / "configs"


@dataclass(frozen=True, slots=True)
class Model:
    """What all of them serve."""

    directory: Path
    shape: ModelConfig
    max_model_len: int
    kv_bytes: int


def aggregated(model: Model, work: Path, num_threads: int, chunk: int) -> ServerPlan:
    """One engine that computes at most `chunk` tokens a step."""
    config: dict[str, Any] = _read("quickstart.yaml")
    arguments = config["applications"][0]["args"]
    arguments["engine"] |= _engine(model, num_threads, chunk)
    arguments["replica"] |= {"health_check_timeout_s": PATIENT_S}
    return _plan(f"chunks-{chunk}", config, work, model)


def disaggregated(
    model: Model,
    work: Path,
    num_threads: int,
    *,
    layer_groups: int = 16,
    chunk: int = 1024,
    num_decode: int = 1,
) -> ServerPlan:
    """Half of the threads for prompts, half for answers."""
    config: dict[str, Any] = _read("disaggregated.yaml")
    arguments = config["applications"][0]["args"]
    arguments["engine"] |= _engine(model, max(1, num_threads // 2), chunk)
    arguments["transfer"] = {"choice": "always", "layer_groups": layer_groups}
    arguments["prefill"]["engine"] = {"scheduler": {"max_num_batched_tokens": chunk}}
    arguments["replica"] |= {"num_replicas": num_decode, "num_cpus": 0.25}
    if num_decode == 1:  # else one of them is killed, and is to be missed soon
        for replica in (arguments["replica"], arguments["prefill"]["replica"]):
            replica |= {"health_check_timeout_s": PATIENT_S}
    return _plan(f"disaggregated-{layer_groups}-{chunk}-{num_decode}", config, work, model)


def _engine(model: Model, num_threads: int, chunk: int) -> dict[str, Any]:
    return {
        "model": str(model.directory),
        "served_model_name": SERVED_NAME,
        "max_model_len": model.max_model_len,
        "num_threads": num_threads,
        "cache": {"memory": model.kv_bytes},
        "scheduler": {"max_num_batched_tokens": chunk, "max_num_seqs": min(64, chunk)},
    }


def _read(name: str) -> Any:
    return yaml.safe_load((_CONFIGS / name).read_text(encoding="utf-8"))


def _plan(name: str, config: dict[str, Any], work: Path, model: Model) -> ServerPlan:
    port = free_port()
    config["http_options"]["port"] = port
    path = work / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return ServerPlan(
        name=name,
        command=(sys.executable, "-m", "rtp_serve.cli.main", "serve", str(path)),
        port=port,
        kv_bytes=model.kv_bytes,
        environment=PATIENT_RAY,
        replica_marker="Replica",
    )
