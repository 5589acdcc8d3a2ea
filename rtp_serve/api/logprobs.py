"""Log-probabilities in OpenAI's two forms and vLLM's third."""

from collections.abc import Sequence

from rtp_serve.api.responses import (
    ChatLogprobs,
    CompletionLogprobs,
    PromptLogprob,
    PromptLogprobs,
    TokenLogprob,
    TopLogprob,
)
from rtp_serve.engine.request import TokenLogprobs
from rtp_serve.text.tokenizer import Tokenizer

_LOWEST = -9999.0
"""What is reported for a probability of zero: JSON has no infinity."""


def chat_logprobs(tokens: Sequence[TokenLogprobs], tokenizer: Tokenizer) -> ChatLogprobs:
    """The chat form: one entry a token, with its bytes and the alternatives."""
    return {"content": [_token(each, tokenizer) for each in tokens], "refusal": None}


def _token(entry: TokenLogprobs, tokenizer: Tokenizer) -> TokenLogprob:
    top = [_candidate(token_id, logprob, tokenizer) for token_id, logprob in entry.top]
    return {**_candidate(entry.token_id, entry.logprob, tokenizer), "top_logprobs": top}


def _candidate(token_id: int, logprob: float, tokenizer: Tokenizer) -> TopLogprob:
    return {
        "token": tokenizer.token_text(token_id),
        "logprob": max(logprob, _LOWEST),
        "bytes": list(tokenizer.token_bytes(token_id)),
    }


def prompt_logprobs(
    entries: Sequence[TokenLogprobs | None], tokenizer: Tokenizer
) -> PromptLogprobs:
    """vLLM's form: a dictionary a prompt token, the token itself and the alternatives."""
    return [None if entry is None else _prompt_entry(entry, tokenizer) for entry in entries]


def _prompt_entry(entry: TokenLogprobs, tokenizer: Tokenizer) -> dict[str, PromptLogprob]:
    ranked = [(token_id, logprob, rank) for rank, (token_id, logprob) in enumerate(entry.top, 1)]
    return {
        str(token_id): {
            "logprob": max(logprob, _LOWEST),
            "rank": rank,
            "decoded_token": tokenizer.token_text(token_id),
        }
        for token_id, logprob, rank in [*ranked, (entry.token_id, entry.logprob, entry.rank)]
    }


class LogprobColumns:
    """The completions form, cut into chunks: text offsets run on from one to the next."""

    def __init__(self, tokenizer: Tokenizer, num_top: int) -> None:
        self._tokenizer = tokenizer
        self._num_top = num_top
        self._offset = 0

    def take(self, tokens: Sequence[tuple[int, TokenLogprobs | None]]) -> CompletionLogprobs:
        """Columns for (token id, entry) pairs; the first prompt token has no entry."""
        columns: CompletionLogprobs = {
            "tokens": [],
            "token_logprobs": [],
            "top_logprobs": [],
            "text_offset": [],
        }
        for token_id, entry in tokens:
            text = self._tokenizer.token_text(token_id)
            columns["tokens"].append(text)
            columns["token_logprobs"].append(max(entry.logprob, _LOWEST) if entry else None)
            columns["top_logprobs"].append(self._top(entry) if entry else None)
            columns["text_offset"].append(self._offset)
            self._offset += len(text)
        return columns

    def _top(self, entry: TokenLogprobs) -> dict[str, float]:
        pairs = [*entry.top[: self._num_top], (entry.token_id, entry.logprob)]
        return {
            self._tokenizer.token_text(token_id): max(logprob, _LOWEST)
            for token_id, logprob in pairs
        }
