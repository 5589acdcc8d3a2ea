"""What a model's step must move and compute, from its shape alone. Knows no engine."""

from dataclasses import dataclass
from math import prod

from rtp_serve import ops
from rtp_serve.config.model import ModelConfig
from rtp_serve.models.weight_forms import WeightForms, fitting_forms


@dataclass(frozen=True, slots=True)
class LinearShape:
    """The matrices [num_rows, num_cols] that a forward pass multiplies by."""

    name: str
    num_rows: int
    num_cols: int
    count: int
    """How many of this shape the model has."""

    @property
    def num_weights(self) -> int:
        return self.num_rows * self.num_cols * self.count

    def flops(self, num_tokens: int) -> int:
        """Of all `count` products with [num_tokens, num_cols]."""
        return 2 * num_tokens * self.num_weights


def layer_shapes(model: ModelConfig) -> tuple[LinearShape, ...]:
    """The linears of the layers, as the engine fuses them."""
    heads, kv_heads = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    hidden, ffn, count = model.hidden_size, model.intermediate_size, model.num_layers
    return (
        LinearShape("qkv", heads + 2 * kv_heads, hidden, count),
        LinearShape("o", hidden, heads, count),
        LinearShape("gate_up", 2 * ffn, hidden, count),
        LinearShape("down", hidden, ffn, count),
    )


def head_shape(model: ModelConfig) -> LinearShape:
    """The output head."""
    return LinearShape("lm_head", model.vocab_size, model.hidden_size, 1)


@dataclass(frozen=True, slots=True)
class DecodeBytes:
    """What a decode step of one sequence must read."""

    weights: int
    """All but a gathered row of the embedding; a tied embedding counts once, as the head, and one
    with a screen as that. Coded weights count as they are held."""

    kv: float

    @property
    def total(self) -> float:
        return self.weights + self.kv


def decode_bytes(model: ModelConfig, context_tokens: float) -> DecodeBytes:
    """Of a greedy step whose sequence is `context_tokens` long with the step's own token."""
    itemsize = {"bfloat16": 2, "float32": 4}[model.dtype]
    forms = fitting_forms(model, model.dtype)
    weights = sum(_weight_bytes(shape, itemsize, forms) for shape in layer_shapes(model))
    if forms.has_screened_head:
        weights += prod(ops.screen_shape(model.vocab_size, model.hidden_size))
    else:
        weights += _weight_bytes(head_shape(model), itemsize, forms)
    kv_elements = 2 * model.num_layers * model.num_kv_heads * model.head_dim
    return DecodeBytes(weights, kv_elements * itemsize * context_tokens)


def _weight_bytes(shape: LinearShape, itemsize: int, forms: WeightForms) -> int:
    """Of coded ones without escapes, which are some in ten thousand."""
    if forms.has_coded_weights:
        return shape.count * prod(ops.coded_shape(shape.num_rows, shape.num_cols))
    return itemsize * shape.num_weights


def active_decode_bytes(
    model: ModelConfig, active_experts: float, num_seqs: int, context_tokens: float
) -> float:
    """Of a step of `num_seqs` sequences of a model with experts in all layers, each of which needs
    so many of them."""
    moe = model.moe
    assert moe is not None, f"{model.architecture} has no experts"
    itemsize = {"bfloat16": 2, "float32": 4}[model.dtype]
    hidden = model.hidden_size
    attention = [shape for shape in layer_shapes(model) if shape.name in ("qkv", "o")]
    weights = sum(shape.num_weights for shape in (*attention, head_shape(model)))
    expert = 3 * hidden * moe.intermediate_size
    weights += model.num_layers * moe.num_experts * hidden
    kv_elements = 2 * model.num_layers * model.num_kv_heads * model.head_dim
    experts = model.num_layers * active_experts * expert
    return itemsize * (weights + experts + num_seqs * context_tokens * kv_elements)


@dataclass(frozen=True, slots=True)
class PrefillFlops:
    """What the prompt of one sequence must compute, products and sums counted apart."""

    linear: int
    """The layers' linears, all tokens."""

    attention: int
    """Scores and weighted values, the causal half: token i sees i + 1 keys."""

    head: int
    """The output head for the last token."""

    @property
    def total(self) -> int:
        return self.linear + self.attention + self.head


def prefill_flops(model: ModelConfig, num_tokens: int) -> PrefillFlops:
    """Of a prompt of `num_tokens` with nothing cached."""
    seen_keys = num_tokens * (num_tokens + 1) // 2
    return PrefillFlops(
        sum(shape.flops(num_tokens) for shape in layer_shapes(model)),
        4 * model.num_layers * model.num_heads * model.head_dim * seen_keys,
        head_shape(model).flops(1),
    )


def combined_rate(flops: dict[str, float], rates: dict[str, float]) -> float:
    """The rate at which all of `flops` are done when each kind runs at its own of `rates`: the
    harmonic mean weighted by flops."""
    return sum(flops.values()) / sum(flops[name] / rates[name] for name in flops)
