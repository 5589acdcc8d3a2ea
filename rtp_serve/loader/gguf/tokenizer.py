"""The tokenizer inside a GGUF file → tokenizer.json and tokenizer_config.json.

Byte-level BPE only. GGUF names the pre-tokenizer (`tokenizer.ggml.pre`) instead of describing it;
the table below gives each name's published definition.
"""

import re
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from rtp_serve.errors import CheckpointError
from rtp_serve.loader.gguf.reader import GGUFFile

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CL100K = (
    _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class _TokenType(IntEnum):
    NORMAL = 1
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5


@dataclass(frozen=True, slots=True)
class _PreTokenizer:
    """How text is cut before BPE, and what else the name implies."""

    cuts: tuple[dict[str, Any], ...]
    """Applied one after the other to the pieces the one before left."""

    is_nfc: bool = False
    ignore_merges: bool = False
    adds_bos: bool = False


def _cut(pattern: str) -> dict[str, Any]:
    """Make every match, and what lies between two, a piece of its own."""
    return {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }


_EACH_DIGIT = {"type": "Digits", "individual_digits": True}
_PRE_TOKENIZERS = {
    "smollm": _PreTokenizer((_EACH_DIGIT, _cut(_GPT2))),
    "gpt-2": _PreTokenizer((_cut(_GPT2),)),
    "llama-bpe": _PreTokenizer((_cut(_CL100K % "{1,3}"),), ignore_merges=True, adds_bos=True),
    "qwen2": _PreTokenizer((_cut(_CL100K % ""),), is_nfc=True),
    "default": _PreTokenizer(
        (
            _cut(r"[\p{P}\$\+<=>\^~\|]+"),
            _cut(_GPT2.removesuffix(r"|\s+")),
            _cut(r"\p{N}+"),
            _cut(r"[0-9][0-9][0-9]"),
        )
    ),
}
_ALIASES = {"llama3": "llama-bpe", "llama-v3": "llama-bpe", "deepseek-r1-qwen": "qwen2"}


def tokenizer_json(source: GGUFFile) -> dict[str, Any]:
    """The content of tokenizer.json. Raises CheckpointError for another kind of tokenizer."""
    model = source.get("tokenizer.ggml.model", str)
    if model != "gpt2":
        raise CheckpointError(
            f"{source.path}: GGUF tokenizer {model!r} is not supported; supported: 'gpt2' "
            "(byte-level BPE)"
        )
    pre = _pre_tokenizer(source)
    tokens, types = _tokens(source)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(tokens, types),
        "normalizer": {"type": "NFC"} if pre.is_nfc else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*pre.cuts, _byte_level()]},
        "post_processor": _post_processor(source, tokens, pre),
        "decoder": _byte_level(),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": pre.ignore_merges,
            "vocab": _vocabulary(tokens, types),
            "merges": _merges(source),
        },
    }


def tokenizer_config(source: GGUFFile) -> dict[str, Any]:
    """The content of tokenizer_config.json: special tokens by role, and the chat template."""
    tokens, types = _tokens(source)
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "added_tokens_decoder": {
            str(token["id"]): {key: value for key, value in token.items() if key != "id"}
            for token in _added_tokens(tokens, types)
        },
    }
    roles = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    for role, field in roles.items():
        token_id = source.metadata.get(f"tokenizer.ggml.{field}_token_id")
        if isinstance(token_id, int):
            config[role] = _token(source, tokens, token_id)
    template = _chat_template(source)
    return config | ({"chat_template": template} if template else {})


def _pre_tokenizer(source: GGUFFile) -> _PreTokenizer:
    name = source.get("tokenizer.ggml.pre", str, "default")
    pre = _PRE_TOKENIZERS.get(_ALIASES.get(name, name))
    if pre is None:
        raise CheckpointError(
            f"{source.path}: GGUF pre-tokenizer {name!r} is not supported; "
            f"supported: {', '.join(_PRE_TOKENIZERS)}"
        )
    return pre


def _tokens(source: GGUFFile) -> tuple[list[str], list[int]]:
    """(text of each token in byte-level letters, type of each)."""
    tokens = source.get("tokenizer.ggml.tokens", list)
    types = source.get("tokenizer.ggml.token_type", list, [_TokenType.NORMAL] * len(tokens))
    if not tokens or not all(isinstance(token, str) for token in tokens):
        raise CheckpointError(f"{source.path}: tokenizer.ggml.tokens must be a list of strings")
    if len(types) != len(tokens):
        raise CheckpointError(f"{source.path}: {len(tokens)} tokens but {len(types)} token types")
    return tokens, types


def _token(source: GGUFFile, tokens: list[str], token_id: int) -> str:
    if not 0 <= token_id < len(tokens):
        raise CheckpointError(
            f"{source.path}: special token id {token_id} is not from 0 to {len(tokens) - 1}"
        )
    return tokens[token_id]


def _added_tokens(tokens: list[str], types: list[int]) -> list[dict[str, Any]]:
    """Tokens that are found in the text before it is cut: control tokens and user-defined ones."""
    return [
        {
            "id": token_id,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": kind == _TokenType.CONTROL,
        }
        for token_id, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (_TokenType.CONTROL, _TokenType.USER_DEFINED)
    ]


def _vocabulary(tokens: list[str], types: list[int]) -> dict[str, int]:
    """Token → id, without the rows that only pad the embedding."""
    return {
        token: token_id
        for token_id, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind != _TokenType.UNUSED
    }


def _merges(source: GGUFFile) -> list[list[str]]:
    merges = source.get("tokenizer.ggml.merges", list)
    pairs = [merge.split(" ") if isinstance(merge, str) else [] for merge in merges]
    if any(len(pair) != 2 for pair in pairs):
        raise CheckpointError(f"{source.path}: tokenizer.ggml.merges must be pairs of tokens")
    return pairs


def _post_processor(
    source: GGUFFile, tokens: list[str], pre: _PreTokenizer
) -> dict[str, Any] | None:
    """Adds the start and end tokens where the file says so."""
    first = _wanted_token(source, tokens, "bos", pre.adds_bos)
    last = _wanted_token(source, tokens, "eos", False)
    if first is None and last is None:
        return None

    def pieces(*sequences: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for type_id, name in enumerate(sequences):
            found += [{"SpecialToken": {"id": first, "type_id": type_id}}] if first else []
            found += [{"Sequence": {"id": name, "type_id": type_id}}]
            found += [{"SpecialToken": {"id": last, "type_id": type_id}}] if last else []
        return found

    special = {
        token: {"id": token, "ids": [tokens.index(token)], "tokens": [token]}
        for token in (first, last)
        if token
    }
    return {
        "type": "TemplateProcessing",
        "single": pieces("A"),
        "pair": pieces("A", "B"),
        "special_tokens": special,
    }


def _wanted_token(source: GGUFFile, tokens: list[str], name: str, default: bool) -> str | None:
    if not source.get(f"tokenizer.ggml.add_{name}_token", bool, default):
        return None
    return _token(source, tokens, source.get(f"tokenizer.ggml.{name}_token_id", int))


def _byte_level() -> dict[str, Any]:
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    }


_NAMED_TEMPLATE = re.compile(r"tokenizer\.chat_template\.(.+)")


def _chat_template(source: GGUFFile) -> str | list[dict[str, str]] | None:
    """One template, or the published list form if the file has named ones beside the default."""
    default = source.get("tokenizer.chat_template", str, "")
    named = {
        match[1]: source.get(key, str)
        for key in source.metadata
        if (match := _NAMED_TEMPLATE.fullmatch(key))
    }
    if not named:
        return default or None
    templates = ({"default": default} if default else {}) | named
    return [{"name": name, "template": text} for name, text in templates.items()]
