"""A mixture of experts, eight sequences decoding: the engine against transformers.

Both have the same random weights in bfloat16 and the same threads, in one process, and take turns:
a repetition is some decode steps of each, between reads of memory.

moe_x_transformers           our tokens per second over theirs, by each repetition's median step
moe_bandwidth_fraction       bytes that our step must read, experts without tokens left out, per
                             second, over the rate of plain reads beside it
moe_tokens_per_s, transformers_tokens_per_s
active_experts               of a layer, how many of the sequences' tokens go to in a step, by the
                             router's logits in transformers

transformers runs with the fastest of its implementations of experts on this machine.
"""

import json
import shutil
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Annotated, Any

import torch
import typer

from benchmarks.ceilings import ReadProbe
from benchmarks.checkpoints import QWEN3_0_6B, random_bits
from benchmarks.command import run
from benchmarks.in_process import InProcessEngine
from benchmarks.prompts import PromptSource
from benchmarks.report import Report, say
from benchmarks.samples import short
from benchmarks.traffic import active_decode_bytes
from rtp_serve.config.engine import CacheConfig, EngineConfig, SchedulerConfig
from rtp_serve.config.model import read_model_config
from rtp_serve.loader.safetensors_writer import write_bfloat16
from rtp_serve.worker.threads import use_compute_threads

FIGURES = ("moe_x_transformers", "moe_bandwidth_fraction")

MOE_1B: dict[str, Any] = {
    **QWEN3_0_6B,
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "num_hidden_layers": 10,
    "head_dim": 64,
    "num_key_value_heads": 4,
    "vocab_size": 32768,
    "max_position_embeddings": 4096,
    "num_experts": 64,
    "num_local_experts": 64,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 512,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}
"""Of 1.07 billion weights, both spellings."""

# batched_mm copies an expert's weights for every pair: gigabytes a layer for the prompts.
_IMPLEMENTATIONS = ("grouped_mm", "eager")
_PROMPT_TOKENS = 32


def checkpoint(parent: Path) -> Path:
    """The directory below `parent`; made in half a minute when missing."""
    directory = parent / "Qwen3-MoE-1B-random"
    if not directory.exists():
        say(f"writing {directory}")
        work = directory.with_suffix(".partial")
        shutil.rmtree(work, ignore_errors=True)
        write_checkpoint(work, MOE_1B)
        work.rename(directory)
    return directory


def write_checkpoint(directory: Path, config: dict[str, Any]) -> None:
    """config.json and weights; no tokenizer."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    shapes = tensor_shapes(config)
    pieces = (random_bits(name, shapes[name]) for name in sorted(shapes))
    write_bfloat16(directory / "model.safetensors", shapes, pieces)


def tensor_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor of a tied Qwen3-MoE by its published name."""
    hidden, size, head_dim = (
        config[key] for key in ("hidden_size", "moe_intermediate_size", "head_dim")
    )
    heads, kv_heads = (
        config[key] * head_dim for key in ("num_attention_heads", "num_key_value_heads")
    )
    layer: dict[str, tuple[int, ...]] = {
        "self_attn.q_proj": (heads, hidden),
        "self_attn.k_proj": (kv_heads, hidden),
        "self_attn.v_proj": (kv_heads, hidden),
        "self_attn.o_proj": (hidden, heads),
        "self_attn.q_norm": (head_dim,),
        "self_attn.k_norm": (head_dim,),
        "mlp.gate": (config["num_experts"], hidden),
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
    }
    for expert in range(config["num_experts"]):
        layer |= {
            f"mlp.experts.{expert}.gate_proj": (size, hidden),
            f"mlp.experts.{expert}.up_proj": (size, hidden),
            f"mlp.experts.{expert}.down_proj": (hidden, size),
        }
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
    }
    for index in range(config["num_hidden_layers"]):
        shapes |= {f"model.layers.{index}.{name}.weight": shape for name, shape in layer.items()}
    return shapes


class Transformers:
    """Greedy decoding of a batch by transformers, step by step."""

    def __init__(self, directory: Path) -> None:
        # slow to import, and not needed to read this module's figures
        from transformers import AutoModelForCausalLM

        self._model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16).eval()

    def choose(self, prompts: list[tuple[int, ...]]) -> str:
        """Keep the implementation of experts whose steps are fastest; its name."""
        times: dict[str, float] = {}
        for name in _IMPLEMENTATIONS:
            self._model.set_experts_implementation(name)
            with closing(self.steps(prompts)) as steps:
                times[name] = median(timed_steps(steps, 1))
            say(f"transformers, {name}: {short(times[name] * 1e3)} ms a step")
        fastest = min(times, key=times.__getitem__)
        self._model.set_experts_implementation(fastest)
        return fastest

    @torch.inference_mode()
    def steps(self, prompts: list[tuple[int, ...]]) -> Generator[None, None, None]:
        """The prompts' step, then one token of each at a time, without end."""
        tokens, cache = torch.tensor(prompts), None
        while True:
            output = self._model(tokens, cache=cache, use_cache=True, logits_to_keep=1)
            tokens, cache = output.logits[:, -1].argmax(-1, keepdim=True), output.past_key_values
            yield

    @torch.inference_mode()
    def active_experts(self, prompts: list[tuple[int, ...]]) -> float:
        """Experts of a layer that a decode step of the batch needs, in the mean of some steps."""
        tokens, cache, counts = torch.tensor(prompts), None, []
        top_k = self._model.config.num_experts_per_tok
        for step in range(6):
            output = self._model(tokens, cache=cache, output_router_logits=True)
            tokens, cache = output.logits[:, -1].argmax(-1, keepdim=True), output.past_key_values
            if step:
                counts += [
                    len(logits.topk(top_k).indices.unique()) for logits in output.router_logits
                ]
        return fmean(counts)


def timed_steps(steps: Iterator[object], count: int) -> list[float]:
    """Seconds of `count` decode steps; the first ones, with the prompts, are left out."""
    next(steps)
    next(steps)
    times = []
    for _ in range(count):
        started_s = time.perf_counter()
        next(steps)
        times.append(time.perf_counter() - started_s)
    return times


@dataclass(frozen=True, slots=True)
class Settings:
    """How much is measured."""

    batch: int = 8
    repetitions: int = 7
    steps: int = 12
    """Of each, in a repetition."""

    threads: int = 2


def measure(
    directory: Path, settings: Settings, report: Report, probe_bytes: int = 1 << 30
) -> None:
    """Every figure of the module's list, into `report`."""
    config = EngineConfig(
        model=str(directory),
        num_threads=settings.threads,
        max_model_len=1024,
        cache=CacheConfig(num_blocks=64 * settings.batch),
        scheduler=SchedulerConfig(max_num_seqs=settings.batch),
    )
    use_compute_threads(settings.threads)
    torch.set_num_threads(settings.threads)
    model = read_model_config(directory)
    prompts = PromptSource(model.vocab_size, seed=1)
    memory = ReadProbe(probe_bytes)
    memory.choose()
    with closing(InProcessEngine(config)) as engine:
        theirs = Transformers(directory)
        name = theirs.choose(prompts.prompts(settings.batch, _PROMPT_TOKENS))
        active = theirs.active_experts(prompts.prompts(settings.batch, _PROMPT_TOKENS))
        read = active_decode_bytes(model, active, settings.batch, _PROMPT_TOKENS)
        found: dict[str, list[float]] = {}
        for number in range(settings.repetitions):
            batch = prompts.prompts(settings.batch, _PROMPT_TOKENS)
            before = memory.bytes_per_s()
            with closing(engine.steps(batch, settings.steps + 3)) as steps:
                our_s = median(timed_steps(steps, settings.steps))
                for _ in steps:
                    pass
            rate = fmean((before, memory.bytes_per_s()))
            with closing(theirs.steps(batch)) as steps:
                their_s = median(timed_steps(steps, settings.steps))
            figures = {
                "moe_x_transformers": their_s / our_s,
                "moe_bandwidth_fraction": read / our_s / rate,
                "moe_tokens_per_s": settings.batch / our_s,
                "transformers_tokens_per_s": settings.batch / their_s,
                "active_experts": active,
                "step_megabytes": read / 1e6,
                "read_gigabytes_per_s": rate / 1e9,
            }
            report.run(repetition=number, implementation=name, **figures)
            say("  ".join(f"{key} {short(value)}" for key, value in figures.items()))
            for key, value in figures.items():
                found.setdefault(key, []).append(value)
    for key, values in found.items():
        report.add(key, values)


def main(
    model: Annotated[
        Path | None, typer.Option(help="A checkpoint; by default one is made.")
    ] = None,
    repetitions: Annotated[int, typer.Option(min=1)] = 7,
    batch: Annotated[int, typer.Option(min=1)] = 8,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
    output: Annotated[Path | None, typer.Option(help="Append raw runs as JSON lines.")] = None,
) -> None:
    """Decode of a mixture of experts, against transformers and against memory."""
    directory = model or checkpoint(Path("build/models"))
    report = Report(output)
    settings = Settings(batch=batch, repetitions=repetitions, threads=threads)
    measure(directory, settings, report)
    report.show(as_json=as_json)


if __name__ == "__main__":
    run(main)
