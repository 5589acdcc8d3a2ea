"""How the tokens of a request are chosen, as the engine sees it: token ids, no text."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rtp_serve.errors import InvalidRequest

MAX_N = 16
MAX_LOGPROBS = 20
MAX_STOP = 16
MAX_LOGIT_BIAS = 1024
MAX_BAD_WORDS = 256


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Checked on construction: a wrong value raises InvalidRequest naming the field."""

    n: int = 1
    """Sequences to generate from one prompt."""

    temperature: float = 1.0
    """0 takes the most likely token; larger is flatter."""

    top_p: float = 1.0
    """Keep the smallest set of tokens whose probability reaches this."""

    top_k: int = 0
    """Keep this many most likely tokens; 0 keeps all."""

    min_p: float = 0.0
    """Drop tokens less likely than this times the most likely one."""

    presence_penalty: float = 0.0
    """Subtracted from the logit of every token already generated."""

    frequency_penalty: float = 0.0
    """Subtracted once per time a token was already generated."""

    repetition_penalty: float = 1.0
    """Divides positive and multiplies negative logits of tokens in prompt and output."""

    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Token id → added to its logit."""

    bad_words: tuple[tuple[int, ...], ...] = ()
    """Token sequences that must not appear: the last token is barred after the others."""

    stop: tuple[str, ...] = ()
    """Strings that end the text. The text layer finds them; the engine does not read them."""

    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end the sequence, beside the model's own end tokens."""

    include_stop: bool = False
    """Whether a matched stop string stays in the text."""

    ignore_eos: bool = False
    """Go on past the model's end tokens."""

    max_tokens: int | None = None
    """Tokens to generate at most; None is what the context leaves."""

    min_tokens: int = 0
    """No stop before this many generated tokens."""

    seed: int | None = None
    """Makes sampling reproducible; None draws one when the request is made."""

    logprobs: int | None = None
    """Report the log-probability of each token and of this many alternatives."""

    prompt_logprobs: int | None = None
    """The same for the prompt's tokens."""

    skip_special_tokens: bool = True
    """Leave special tokens out of the text."""

    def __post_init__(self) -> None:
        _in_range("n", self.n, 1, MAX_N)
        _in_range("temperature", self.temperature, 0.0, 100.0)
        _in_range("top_p", self.top_p, 0.0, 1.0, open_low=True)
        _in_range("top_k", self.top_k, 0, 1 << 30)
        _in_range("min_p", self.min_p, 0.0, 1.0)
        _in_range("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _in_range("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _in_range("repetition_penalty", self.repetition_penalty, 0.0, 10.0, open_low=True)
        if self.max_tokens is not None:
            _in_range("max_tokens", self.max_tokens, 1, 1 << 30)
        _in_range("min_tokens", self.min_tokens, 0, self.max_tokens or 1 << 30)
        if self.seed is not None:
            _in_range("seed", self.seed, -(1 << 63), (1 << 64) - 1)
        for name in ("logprobs", "prompt_logprobs"):
            count = getattr(self, name)
            if count is not None:
                _in_range(name, count, 0, MAX_LOGPROBS)
        for name in ("include_stop", "ignore_eos", "skip_special_tokens"):
            if not isinstance(getattr(self, name), bool):
                message = f"{name} must be true or false, got {getattr(self, name)!r}"
                raise InvalidRequest(message, name)
        self._check_collections()

    def _check_collections(self) -> None:
        _is_list("stop", self.stop, MAX_STOP)
        _is_list("stop_token_ids", self.stop_token_ids, MAX_LOGIT_BIAS)
        _is_list("bad_words", self.bad_words, MAX_BAD_WORDS)
        for text in self.stop:
            if not (isinstance(text, str) and text):
                raise InvalidRequest(f"stop must hold non-empty strings, got {text!r}", "stop")
        for word in self.bad_words:
            if not (isinstance(word, tuple | list) and word):
                raise InvalidRequest(
                    f"bad_words must hold non-empty lists of token ids, got {word!r}", "bad_words"
                )
        if not isinstance(self.logit_bias, Mapping):
            raise InvalidRequest(
                f"logit_bias must map token ids to numbers, got {self.logit_bias!r}", "logit_bias"
            )
        _at_most("logit_bias", len(self.logit_bias), MAX_LOGIT_BIAS)
        for token_id, bias in self.logit_bias.items():
            if not (isinstance(bias, int | float) and -100.0 <= bias <= 100.0):
                raise InvalidRequest(
                    f"logit_bias[{token_id}] must be a number from -100 to 100, got {bias!r}",
                    "logit_bias",
                )

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raise InvalidRequest if a token id is not one of the model's."""
        groups = {
            "logit_bias": list(self.logit_bias),
            "stop_token_ids": list(self.stop_token_ids),
            "bad_words": [token_id for word in self.bad_words for token_id in word],
        }
        for name, token_ids in groups.items():
            for token_id in token_ids:
                if type(token_id) is not int or not 0 <= token_id < vocab_size:
                    raise InvalidRequest(
                        f"{name}: token ids must be integers from 0 to {vocab_size - 1}, "
                        f"got {token_id!r}",
                        name,
                    )

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def has_penalties(self) -> bool:
        return (self.presence_penalty, self.frequency_penalty, self.repetition_penalty) != (0, 0, 1)


def _in_range(name: str, value: Any, low: float, high: float, open_low: bool = False) -> None:
    """Integer bounds ask for an integer, float bounds for any number."""
    kinds = int if isinstance(low, int) else int | float
    is_number = isinstance(value, kinds) and not isinstance(value, bool)
    # No comparison with a NaN holds.
    if not is_number or not low <= value <= high or (open_low and value == low):
        noun = "an integer" if kinds is int else "a number"
        bound = "above" if open_low else "from"
        raise InvalidRequest(f"{name} must be {noun} {bound} {low} to {high}, got {value!r}", name)


def _is_list(name: str, value: Any, limit: int) -> None:
    if not isinstance(value, tuple | list):
        raise InvalidRequest(f"{name} must be a list, got {value!r}", name)
    _at_most(name, len(value), limit)


def _at_most(name: str, count: int, limit: int) -> None:
    if count > limit:
        raise InvalidRequest(f"{name} has {count} entries; at most {limit} are allowed", name)
