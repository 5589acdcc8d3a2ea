"""The one base of every configuration class: frozen, documented, closed."""

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from rtp_serve.errors import did_you_mean


class Config(BaseModel):
    """Frozen settings. Every field has a default and a docstring; an unknown key is an error."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=()
    )

    @model_validator(mode="before")
    @classmethod
    def _name_unknown_keys(cls, values: Any) -> Any:
        if isinstance(values, dict):
            for key in values:
                if key not in cls.model_fields:
                    hint = did_you_mean(str(key), cls.model_fields)
                    raise ValueError(f"unknown key {key!r} in {cls.__name__}{hint}")
        return values
