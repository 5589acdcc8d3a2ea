"""Reads a checkpoint's tokenizer files: the backend, the special tokens by role, the end tokens.

Follows what `transformers` makes of the same files, without importing it.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers

from rtp_serve.errors import CheckpointError

_ROLES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """The JSON files beside the weights that say how text is written; absent ones are empty."""

    directory: Path
    tokenizer_config: dict[str, Any]
    special_tokens: dict[str, str]
    """Role ("bos_token") → the token's text."""

    more_special_tokens: tuple[str, ...]
    """Special tokens without a role."""

    end_ids: tuple[int, ...]
    """Tokens that end a sequence, from generation_config.json and config.json."""


def read_tokenizer_files(directory: Path) -> TokenizerFiles:
    """Raises CheckpointError if a file is not the JSON it should be."""
    config = _read_json(directory / "tokenizer_config.json")
    special = config
    if "added_tokens_decoder" not in config:  # the old form: the map has the last word
        special = config | _read_json(directory / "special_tokens_map.json")
    return TokenizerFiles(
        directory=directory,
        tokenizer_config=config,
        special_tokens=_special_tokens(special),
        more_special_tokens=_more_special_tokens(special),
        end_ids=_end_ids(directory),
    )


def load_backend(files: TokenizerFiles) -> tokenizers.Tokenizer:
    """tokenizer.json, with the special tokens that only the other files name.

    Raises CheckpointError if it is missing or malformed.
    """
    path = files.directory / "tokenizer.json"
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{files.directory} has no tokenizer.json (the fast tokenizer's file), "
            "the only kind that is supported"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    try:
        backend = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises nothing more specific
        raise CheckpointError(f"{path} is malformed: {error}") from error
    backend.no_truncation()
    backend.no_padding()
    _add_missing_tokens(backend, files)
    return backend


def _special_tokens(source: dict[str, Any]) -> dict[str, str]:
    named = {role: _content(source.get(role)) for role in _ROLES}
    return {role: content for role, content in named.items() if content}


def _more_special_tokens(source: dict[str, Any]) -> tuple[str, ...]:
    listed = source.get("extra_special_tokens") or source.get("additional_special_tokens")
    contents = map(_content, listed if isinstance(listed, list) else ())
    return tuple(content for content in contents if content)


def _content(token: Any) -> str | None:
    """A token is written as its text or as an object with settings."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None


def _end_ids(directory: Path) -> tuple[int, ...]:
    found: list[Any] = []
    for name in ("generation_config.json", "config.json"):
        value = _read_json(directory / name).get("eos_token_id")
        found += value if isinstance(value, list) else [value]
    return tuple(dict.fromkeys(token_id for token_id in found if isinstance(token_id, int)))


def _add_missing_tokens(backend: tokenizers.Tokenizer, files: TokenizerFiles) -> None:
    """Tokens of the other files that tokenizer.json does not mark as added or special.

    A special token without an id is left out: it would get one the model has no row for.
    """
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    decoder = files.tokenizer_config.get("added_tokens_decoder")
    for _, settings in sorted(_by_id(decoder).items()):
        content = _content(settings)
        if content and content not in known:
            flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
            given = {flag: bool(settings[flag]) for flag in flags if flag in settings}
            backend.add_tokens([tokenizers.AddedToken(content, **given)])
    backend.add_special_tokens(
        [
            tokenizers.AddedToken(content, special=True, normalized=False)
            for content in (*files.special_tokens.values(), *files.more_special_tokens)
            if backend.token_to_id(content) is not None
        ]
    )


def _by_id(decoder: Any) -> dict[int, dict[str, Any]]:
    if not isinstance(decoder, dict):
        return {}
    return {
        int(token_id): settings
        for token_id, settings in decoder.items()
        if token_id.isdigit() and isinstance(settings, dict)
    }


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: expected an object, got {type(values).__name__}")
    return values
