"""Architecture name → model class. Several checkpoints' names share one family."""

from rtp_serve.models.model import ModelFactory
from rtp_serve.registry import Registry

_DENSE = "rtp_serve.models.llama:DenseDecoder"

MODELS = Registry[ModelFactory](
    "architecture",
    {
        "LlamaForCausalLM": _DENSE,
        "Qwen2ForCausalLM": _DENSE,
        "Qwen3ForCausalLM": _DENSE,
    },
)
