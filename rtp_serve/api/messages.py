"""Chat messages and tools as clients send them, and as templates want them."""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator


class Body(BaseModel):
    """JSON from a client. Types are not converted, a null is an absent field, and fields nobody
    declared are left to the endpoint."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, values: Any) -> Any:
        if isinstance(values, dict):
            return {name: value for name, value in values.items() if value is not None}
        return values


def _join_parts(content: Any) -> Any:
    """A list of text parts → one text, a line break between parts."""
    if not isinstance(content, list):
        if not isinstance(content, str):
            raise ValueError("must be a string or an array of parts")
        return content
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text":
            raise ValueError(
                f"parts must have type 'text' (this server takes no other), got {kind!r}"
            )
        if not isinstance(part.get("text"), str):
            raise ValueError("a text part needs a string in 'text'")
        texts.append(part["text"])
    return "\n".join(texts)


Content = Annotated[str, BeforeValidator(_join_parts)]


class SystemMessage(Body):
    """Instructions. Templates know "system" only, so a developer's message becomes one."""

    role: Literal["system", "developer"]
    content: Content

    def for_template(self) -> dict[str, Any]:
        return {"role": "system", "content": self.content}


class UserMessage(Body):
    role: Literal["user"]
    content: Content
    name: str | None = None

    def for_template(self) -> dict[str, Any]:
        return self.model_dump(exclude_none=True)


class FunctionCall(Body):
    name: str
    arguments: str
    """A JSON object, as text."""

    @model_validator(mode="after")
    def _check(self) -> "FunctionCall":
        if not isinstance(self.parsed_arguments(), dict):
            raise ValueError("arguments must be the text of a JSON object")
        return self

    def parsed_arguments(self) -> Any:
        try:
            return json.loads(self.arguments or "{}")
        except (ValueError, RecursionError):
            return None


class ToolCall(Body):
    id: str
    type: Literal["function"] = "function"
    function: FunctionCall

    def for_template(self) -> dict[str, Any]:
        """Templates render the arguments themselves, so they get the object."""
        function = {"name": self.function.name, "arguments": self.function.parsed_arguments()}
        return {"id": self.id, "type": self.type, "function": function}


class AssistantMessage(Body):
    role: Literal["assistant"]
    content: Content = ""
    tool_calls: list[ToolCall] = Field(default_factory=list)
    reasoning_content: str | None = None
    name: str | None = None

    @model_validator(mode="after")
    def _check(self) -> "AssistantMessage":
        if not self.tool_calls and "content" not in self.model_fields_set:
            raise ValueError("an assistant message needs content or tool_calls")
        return self

    def for_template(self) -> dict[str, Any]:
        message = self.model_dump(exclude_none=True, exclude={"tool_calls"})
        if self.tool_calls:
            message["tool_calls"] = [call.for_template() for call in self.tool_calls]
        return message


class ToolMessage(Body):
    role: Literal["tool"]
    content: Content
    tool_call_id: str
    name: str | None = None

    def for_template(self) -> dict[str, Any]:
        return self.model_dump(exclude_none=True)


Message = Annotated[
    SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")
]


class Function(Body):
    name: str = Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")
    description: str = ""
    parameters: dict[str, Any] = Field(default_factory=dict)


class Tool(Body):
    """A function the model may call. Checked here; the template gets the client's own object,
    because the order of its keys shows in the prompt."""

    type: Literal["function"]
    function: Function
