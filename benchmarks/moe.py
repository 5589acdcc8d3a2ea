"""A mixture of experts, eight sequences decoding: the engine against transformers.

Both have the same random weights in bfloat16, the same prompts and the same threads, each in a
process of its own (`benchmarks/moe_sides.py`), started anew for each repetition: where memory comes
to lie, and whose threads are still about, is then neither side's luck for a whole run.

moe_x_transformers           our tokens per second over theirs, by each repetition's median step
moe_bandwidth_fraction       bytes that our step must read, experts without tokens left out, per
                             second, over the rate of plain reads beside it
moe_tokens_per_s, transformers_tokens_per_s
active_experts               of a layer, how many of the sequences' tokens go to in a step, by the
                             router's logits in transformers
others_share                 of the CPU time beside the steps, what other processes used: above 0.06
                             the machine was not quiet, and the figures are not to be relied on

transformers runs with what is fastest on this machine: of its implementations of experts, and of
small and huge pages for its weights.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from benchmarks.checkpoints import QWEN3_0_6B, random_bits
from benchmarks.command import run
from benchmarks.moe_sides import (
    PROMPT_TOKENS,
    Settings,
    Side,
    measure_side,
)
from benchmarks.report import Report, say
from benchmarks.samples import short
from benchmarks.traffic import active_decode_bytes
from rtp_serve.config.model import read_model_config
from rtp_serve.loader.safetensors_writer import write_bfloat16

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


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured."""

    batch: int = 8
    repetitions: int = 7
    steps: int = 24
    """Of each, in a repetition."""

    threads: int = 2
    probe_bytes: int = 1 << 30
    patience_s: float = 30.0
    """Before each, to wait at most until nobody else uses the machine."""


def measure(directory: Path, effort: Effort, report: Report) -> None:
    """Every figure of the module's list, into `report`."""
    whole = Settings(
        batch=effort.batch,
        steps=effort.steps,
        threads=effort.threads,
        seed=0,
        probe_bytes=effort.probe_bytes,
        patience_s=effort.patience_s,
    )
    settings, active = choose(directory, whole)
    model = read_model_config(directory)
    read = active_decode_bytes(model, active, effort.batch, PROMPT_TOKENS + effort.steps / 2)
    found: dict[str, list[float]] = {}
    for number in range(effort.repetitions):
        own = msgspec.structs.replace(settings, seed=number + 1)
        # Neither always has the machine as the other leaves it.
        order: list[Side] = ["engine", "transformers"]
        if number % 2:
            order.reverse()
        sides = {side: measure_side(side, directory, own) for side in order}
        ours, theirs = sides["engine"], sides["transformers"]
        figures = {
            "moe_x_transformers": theirs.step_s / ours.step_s,
            "moe_bandwidth_fraction": read / ours.step_s / ours.read_bytes_per_s,
            "moe_tokens_per_s": effort.batch / ours.step_s,
            "transformers_tokens_per_s": effort.batch / theirs.step_s,
            "active_experts": theirs.active_experts,
            "step_megabytes": read / 1e6,
            "read_gigabytes_per_s": ours.read_bytes_per_s / 1e9,
            "others_share": max(ours.others_share, theirs.others_share),
        }
        report.run(repetition=number, implementation=settings.implementation, **figures)
        say("  ".join(f"{key} {short(value)}" for key, value in figures.items()))
        for key, value in figures.items():
            found.setdefault(key, []).append(value)
    for key, values in found.items():
        report.add(key, values)


def choose(directory: Path, settings: Settings) -> tuple[Settings, float]:
    """With what transformers decodes fastest here, and the experts that a step then needs."""
    found = {}
    for has_huge_pages in (False, True):
        tried = msgspec.structs.replace(settings, has_huge_pages=has_huge_pages)
        found[has_huge_pages] = measured = measure_side("transformers", directory, tried)
        pages = "huge" if has_huge_pages else "small"
        say(f"{measured.implementation}, {pages} pages: {short(measured.step_s * 1e3)} ms a step")
    has_huge_pages = found[True].step_s < found[False].step_s
    best = found[has_huge_pages]
    chosen = msgspec.structs.replace(
        settings, implementation=best.implementation, has_huge_pages=has_huge_pages
    )
    return chosen, best.active_experts


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
    effort = Effort(batch=batch, repetitions=repetitions, threads=threads)
    measure(directory, effort, report)
    report.show(as_json=as_json)


if __name__ == "__main__":
    run(main)
