"""A beginning of prompts that the configuration names → its tokens, as requests have them."""

from rtp_serve.config.kv_store import PinnedPrefix
from rtp_serve.text.chat_template import ChatTemplate
from rtp_serve.text.tokenizer import Tokenizer


def prefix_tokens(
    prefix: PinnedPrefix, tokenizer: Tokenizer, template: ChatTemplate
) -> tuple[int, ...]:
    """Raises InvalidRequest where the model has no chat template, or it objects."""
    if prefix.prompt is not None:
        return tuple(tokenizer.encode(prefix.prompt, True))
    messages = [message.model_dump() for message in prefix.messages]
    text = template.render(messages, None, add_generation_prompt=False)
    return tuple(tokenizer.encode(text, False))
