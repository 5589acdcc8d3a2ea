"""Applications of one engine and of a prefill and a decode engine, on the same cores."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.plans import PATIENT_S, application, shipped_config
from benchmarks.servers import SERVED_NAME, ServerPlan
from rtp_serve.config.model import ModelConfig

_DECODE_CHUNK = 256
"""Tokens a step of a decode replica: what the file says."""

_MAX_SEQS = 128
"""A decode replica that is left alone has room for the streams of two."""


@dataclass(frozen=True, slots=True)
class Model:
    """What all of them serve."""

    directory: Path
    shape: ModelConfig
    max_model_len: int
    kv_bytes: int


def aggregated(model: Model, work: Path, num_threads: int, chunk: int) -> ServerPlan:
    """One engine that computes at most `chunk` tokens a step."""
    config = shipped_config("quickstart.yaml")
    arguments = config["applications"][0]["args"]
    arguments["engine"] |= _engine(model, num_threads, chunk)
    arguments["replica"] |= {"health_check_timeout_s": PATIENT_S}
    return application(f"chunks-{chunk}", config, work, model.kv_bytes)


def disaggregated(
    model: Model,
    work: Path,
    num_threads: int,
    *,
    layer_groups: int = 16,
    chunk: int = 1024,
    num_decode: int = 1,
) -> ServerPlan:
    """Half of the threads for prompts, half for answers. `chunk` is the prefill replica's."""
    config = shipped_config("disaggregated.yaml")
    arguments = config["applications"][0]["args"]
    arguments["engine"] |= _engine(model, max(1, num_threads // 2), _DECODE_CHUNK)
    arguments["transfer"] = {
        "choice": "always",
        "timeout_s": PATIENT_S,
        "layer_groups": layer_groups,
    }
    arguments["prefill"]["engine"] = {"scheduler": _budget(chunk)}
    arguments["replica"] |= {"num_replicas": num_decode, "num_cpus": 0.25}
    if num_decode == 1:  # else one of them is killed, and is to be missed soon
        del arguments["engine"]["kv_store"]  # the one engine that it is compared with has none
        for replica in (arguments["replica"], arguments["prefill"]["replica"]):
            replica |= {"health_check_timeout_s": PATIENT_S}
    name = f"disaggregated-{layer_groups}-{chunk}-{num_decode}"
    return application(name, config, work, model.kv_bytes)


def _engine(model: Model, num_threads: int, chunk: int) -> dict[str, Any]:
    return {
        "model": str(model.directory),
        "served_model_name": SERVED_NAME,
        "max_model_len": model.max_model_len,
        "num_threads": num_threads,
        "cache": {"memory": model.kv_bytes},
        "scheduler": _budget(chunk),
    }


def _budget(chunk: int) -> dict[str, int]:
    return {"max_num_batched_tokens": chunk, "max_num_seqs": min(_MAX_SEQS, chunk)}
