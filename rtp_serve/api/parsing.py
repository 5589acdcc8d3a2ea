"""A client's dictionary → a request model, or one error that names the field.

A field we do not know is ignored, as OpenAI does, unless it is a slip of the pen; a field we know
but do not honour yet is refused, because it would silently not do what it says.
"""

import json
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from rtp_serve.errors import InvalidRequest, UnsupportedParameter

T = TypeVar("T", bound=BaseModel)

_IGNORED = {
    "user", "metadata", "store", "service_tier", "parallel_tool_calls", "prediction",
    "prompt_cache_key", "prompt_cache_retention", "safety_identifier", "request_id",
}  # fmt: skip
"""They ask for nothing that would show in the answer."""

_UNSUPPORTED: dict[str, tuple[object, ...]] = {
    "allowed_token_ids": (),
    "audio": (),
    "chat_template": (),
    "continue_final_message": (),
    "documents": (),
    "early_stopping": (),
    "function_call": ("none",),
    "functions": (),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "kv_transfer_params": (),
    "length_penalty": (1,),
    "logits_processors": (),
    "mm_processor_kwargs": (),
    "modalities": (["text"],),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "return_token_ids": (),
    "return_tokens_as_token_ids": (),
    "spaces_between_special_tokens": (True,),
    "structured_outputs": (),
    "suffix": (),
    "truncate_prompt_tokens": (),
    "use_beam_search": (),
    "verbosity": ("medium",),
    "web_search_options": (),
}
"""Field → the values that ask for what we do anyway; null, false and empty ones always do."""

_OF_THE_OTHER_ENDPOINT = {
    "echo", "best_of", "messages", "tools", "tool_choice", "top_logprobs",
    "max_completion_tokens", "chat_template_kwargs", "prompt", "add_generation_prompt",
}  # fmt: skip


def parse(cls: type[T], body: object) -> T:
    """Raises InvalidRequest, whose `param` is the field's path ("messages[0].content")."""
    if not isinstance(body, Mapping):
        raise InvalidRequest(f"the body must be a JSON object, got {_short(body)}")
    _check_names(cls, body)
    try:
        return cls.model_validate(dict(body))
    except ValidationError as error:
        raise _first_problem(error, body) from error


def _check_names(cls: type[BaseModel], body: Mapping[str, Any]) -> None:
    known = cls.model_fields.keys()
    for name in body.keys() - known - _IGNORED:
        value = body[name]
        if name in _UNSUPPORTED:
            if value and value not in _UNSUPPORTED[name]:
                raise _unsupported(name, value)
        elif name in _OF_THE_OTHER_ENDPOINT:
            if value:
                raise UnsupportedParameter(f"{name} is not a field of this endpoint", name)
        elif near := _near_miss(name, known):
            raise InvalidRequest(f"unknown field {_short(name)}; did you mean {near!r}?", near)


def _unsupported(name: str, value: object) -> UnsupportedParameter:
    neutral = _UNSUPPORTED[name]
    remedy = f"send {_short(neutral[0])} or leave it out" if neutral else "leave it out"
    message = f"{name} is not supported yet: {remedy}, got {_short(value)}"
    return UnsupportedParameter(message, name)


def _near_miss(name: str, known: Iterable[str]) -> str | None:
    by_letters = {_letters(field): field for field in known}
    near = get_close_matches(_letters(name[:64]), by_letters, n=1, cutoff=0.85)
    return by_letters[near[0]] if near else None


def _letters(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")


def _first_problem(error: ValidationError, body: object) -> InvalidRequest:
    detail = error.errors(include_url=False)[0]
    path = _path(detail["loc"], body)
    if detail["type"] == "missing":
        path = f"{_path(detail['loc'][:-1], body)}.{detail['loc'][-1]}".removeprefix(".")
        return InvalidRequest(f"{path}: this field is required", path)
    if detail["type"] == "union_tag_invalid":
        path = f"{path}.role"
        message = f"must be one of {detail['ctx']['expected_tags']}"
        return InvalidRequest(f"{path} {message}, got {detail['ctx']['tag']!r}"[:500], path)
    if detail["type"] == "union_tag_not_found":
        return InvalidRequest(f"{path}.role: this field is required", f"{path}.role")
    if detail["type"] == "too_short":
        return InvalidRequest(f"{path} must not be empty", path)
    message = detail["msg"].removeprefix("Value error, ").replace("Input should", "should")
    if not path:
        return InvalidRequest(message)
    got = "" if ", got " in message else f", got {_short(detail['input'])}"
    return InvalidRequest(f"{path} {message}{got}", path)


def _path(location: tuple[int | str, ...], body: object) -> str:
    """`("messages", 0, "user", "content")` → `messages[0].content`: union tags are not fields."""
    path = ""
    value = body
    for part in location:
        if isinstance(part, int) and isinstance(value, list):
            path += f"[{part}]"
            value = value[part] if part < len(value) else None
        elif isinstance(value, Mapping) and part in value:
            path += f".{part}" if path else str(part)
            value = value.get(part)
    return path


def _short(value: object) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False, default=repr)
    except (ValueError, RecursionError):
        text = repr(type(value))
    return text if len(text) <= 80 else f"{text[:77]}..."
