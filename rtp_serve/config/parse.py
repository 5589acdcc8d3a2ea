"""Mapping → configuration, with one readable error."""

from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from rtp_serve.errors import ConfigError

T = TypeVar("T", bound=BaseModel)

_PLAIN_WORDS = {
    "dict_type": "expected a mapping",
    "model_type": "expected a mapping",
    "list_type": "expected a list",
    "tuple_type": "expected a list",
    "too_short": "must not be empty",
}
"""Instead of pydantic's own, which speak of Python."""


def parse_config(cls: type[T], values: dict[str, Any], where: str = "config") -> T:
    """Validate `values` into `cls`. Raises ConfigError naming every wrong field and its value."""
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{where}: {explain(error)}") from error


def explain(error: ValidationError) -> str:
    """One clause a problem: `scheduler.max_num_seqs: … (got 0)`."""
    return "; ".join(_clause(detail) for detail in error.errors(include_url=False))


def _clause(detail: Any) -> str:
    field = ".".join(str(part) for part in detail["loc"])
    message = _PLAIN_WORDS.get(detail["type"]) or detail["msg"].removeprefix("Value error, ")
    got = "" if isinstance(detail["input"], dict) else f" (got {detail['input']!r})"
    return f"{field}: {message}{got}" if field else f"{message}{got}"


def read_yaml(path: str) -> dict[str, Any]:
    """The mapping in a YAML file. Raises ConfigError when it is not there or not a mapping."""
    try:
        with open(path, encoding="utf-8") as file:
            values = yaml.safe_load(file)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping at the top, got {type(values).__name__}")
    return values
