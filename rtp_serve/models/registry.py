"""Architecture name → model class. Several checkpoints' names share one family."""

from rtp_serve.models.model import ModelFactory
from rtp_serve.registry import Registry

_DECODER = "rtp_serve.models.llama:Decoder"

MODELS = Registry[ModelFactory](
    "architecture",
    {
        "LlamaForCausalLM": _DECODER,
        "Qwen2ForCausalLM": _DECODER,
        "Qwen3ForCausalLM": _DECODER,
        "Qwen2MoeForCausalLM": _DECODER,
        "Qwen3MoeForCausalLM": _DECODER,
    },
)
