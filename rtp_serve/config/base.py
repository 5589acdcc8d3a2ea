"""The one base of every configuration class: frozen, documented, closed."""

from typing import Any, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from rtp_serve.errors import did_you_mean


class Config(BaseModel):
    """Frozen settings. Every field has a default and a docstring; an unknown key is an error."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=()
    )

    @model_validator(mode="wrap")
    @classmethod
    def _name_unknown_keys(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """One error with every unknown key, and with whatever else is wrong."""
        try:
            return handler(values)
        except ValidationError as error:
            details = [cls._explained(each, values) for each in error.errors(include_url=False)]
            raise ValidationError.from_exception_data(cls.__name__, details) from error

    @classmethod
    def _explained(cls, detail: ErrorDetails, values: Any) -> InitErrorDetails:
        kind, location, message = detail["type"], detail["loc"], detail["msg"]
        if kind != "extra_forbidden":
            problem = PydanticCustomError(kind, "{message}", {"message": message})
            return {"type": problem, "loc": location, "input": detail["input"]}
        key = str(location[-1])
        hint = did_you_mean(key, cls.model_fields)
        text = f"unknown key {key!r} in {cls.__name__}{hint}"
        problem = PydanticCustomError("unknown_key", "{message}", {"message": text})
        return {"type": problem, "loc": location[:-1], "input": values}
