"""Messages → prompt text, by the checkpoint's own Jinja template.

The template is the server's configuration, never a client's; it still runs sandboxed, sees plain
data only, and its output is capped. Renders what `transformers` renders.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import CallBlock, Node
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment

from rtp_serve.clock import Clock, WallClock
from rtp_serve.errors import CheckpointError, InvalidRequest
from rtp_serve.text.tokenizer_files import TokenizerFiles, read_tokenizer_files

MAX_PROMPT_CHARS = 16 << 20

_RESERVED = frozenset({"messages", "tools", "documents", "add_generation_prompt"})

Message = Mapping[str, Any]


class ChatTemplate:
    """The templates of a checkpoint: the default one, and perhaps one for tool use."""

    def __init__(
        self,
        templates: Mapping[str, str],
        special_tokens: Mapping[str, str],
        clock: Clock | None = None,
        max_chars: int = MAX_PROMPT_CHARS,
    ) -> None:
        """`templates` maps "default" and other names to Jinja sources; `clock` tells templates the
        date. Raises CheckpointError for a syntax error."""
        environment = _environment(clock or WallClock())
        self._special_tokens = dict(special_tokens)
        self._max_chars = max_chars
        try:
            self._templates = {
                name: environment.from_string(source) for name, source in templates.items()
            }
        except jinja2.TemplateError as error:
            raise CheckpointError(f"chat template: {error}") from error

    @classmethod
    def from_directory(cls, directory: Path, clock: Clock | None = None) -> "ChatTemplate":
        """Read chat_template.jinja, else tokenizer_config.json. Raises CheckpointError."""
        files = read_tokenizer_files(directory)
        return cls(_read_templates(files), files.special_tokens, clock)

    @property
    def is_defined(self) -> bool:
        """Whether the checkpoint has a template at all."""
        return bool(self._templates)

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        extra: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt. `extra` is what else the template may read ("enable_thinking").

        Raises InvalidRequest if the model has no template, the template refuses the messages or
        the prompt is too long.
        """
        extra = extra or {}
        taken = sorted(_RESERVED & extra.keys())
        if taken:
            raise InvalidRequest(
                f"chat_template_kwargs: {taken[0]!r} is set by the request itself",
                "chat_template_kwargs",
            )
        context = self._special_tokens | dict(extra)
        context |= {
            "messages": [dict(message) for message in messages],
            "tools": None if tools is None else [dict(tool) for tool in tools],
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        return self._render(self._choose(tools is not None), context)

    def _choose(self, has_tools: bool) -> jinja2.Template:
        name = "tool_use" if has_tools and "tool_use" in self._templates else "default"
        template = self._templates.get(name)
        if template is None:
            raise InvalidRequest(
                "this model has no chat template; ask for a completion", "messages"
            )
        return template

    def _render(self, template: jinja2.Template, context: dict[str, Any]) -> str:
        pieces: list[str] = []
        num_chars = 0
        try:
            for piece in template.generate(context):
                num_chars += len(piece)
                if num_chars > self._max_chars:
                    raise InvalidRequest(
                        f"messages: the prompt is longer than {self._max_chars} characters",
                        "messages",
                    )
                pieces.append(piece)
        except jinja2.TemplateError as error:
            raise InvalidRequest(f"messages: {error}", "messages") from error
        except _BAD_DATA as error:
            raise InvalidRequest(
                f"messages: the model's chat template cannot render them: {error}", "messages"
            ) from error
        return "".join(pieces)


_BAD_DATA = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)
"""What an expression in a template raises when a message is not of the shape it expects."""


def _read_templates(files: TokenizerFiles) -> dict[str, str]:
    path = files.directory / "chat_template.jinja"
    try:
        return {"default": path.read_text(encoding="utf-8")}
    except FileNotFoundError:
        pass
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    given = files.tokenizer_config.get("chat_template")
    if given is None:
        return {}
    if isinstance(given, str):
        return {"default": given}
    try:
        return {str(entry["name"]): str(entry["template"]) for entry in given}
    except (TypeError, KeyError) as error:
        raise CheckpointError(
            f"{files.directory / 'tokenizer_config.json'}: chat_template must be a string or a "
            "list of objects with name and template"
        ) from error


def _environment(clock: Clock) -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
    )

    def strftime_now(pattern: str) -> str:
        return datetime.fromtimestamp(clock.wall()).strftime(pattern)

    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = strftime_now
    return environment


class _GenerationTag(Extension):
    """`{% generation %}…{% endgeneration %}` marks the assistant's text for training: no effect."""

    tags = {"generation"}  # noqa: RUF012  as jinja2 declares it

    def parse(self, parser: Parser) -> Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return CallBlock(self.call_method("_inside"), [], [], body).set_lineno(line)

    def _inside(self, caller: Macro) -> str:
        return caller()


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes HTML, which a prompt is not."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)
