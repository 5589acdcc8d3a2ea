"""`rtp-serve chat`: a conversation in the terminal."""

import sys
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

from rtp_serve.clock import Clock, WallClock
from rtp_serve.engine.sampling_params import SamplingParams
from rtp_serve.errors import InvalidRequest

if TYPE_CHECKING:
    from rtp_serve.llm import LLM

_HELP = "Enter sends, /clear starts anew, Ctrl-C stops an answer, Ctrl-D leaves."


@dataclass(frozen=True, slots=True)
class ChatSettings:
    """What the command line said."""

    model: str
    system: str
    temperature: float
    max_tokens: int
    seed: int | None
    num_threads: int | None


def run_chat(settings: ChatSettings, clock: Clock | None = None) -> None:
    """Load the model, then answer line by line until the input ends."""
    # torch takes seconds to import; `rtp-serve --help` must not wait for it.
    from rtp_serve.llm import LLM

    sampling = SamplingParams(
        temperature=settings.temperature, max_tokens=settings.max_tokens, seed=settings.seed
    )
    llm = LLM(settings.model, num_threads=settings.num_threads)
    typer.secho(f"{settings.model} is ready. {_HELP}", err=True, dim=True)
    opening = [{"role": "system", "content": settings.system}] if settings.system else []
    messages = list(opening)
    while (line := _read_line()) is not None:
        if line == "/clear":
            messages = list(opening)
        elif line:
            messages.append({"role": "user", "content": line})
            _answer(llm, messages, sampling, clock or WallClock())


def _answer(
    llm: "LLM",
    messages: list[dict[str, str]],
    sampling: SamplingParams,
    clock: Clock,
) -> None:
    """Print the answer as it comes and add it to the messages; a mistake costs the turn only."""
    started_s = clock.monotonic()
    first_s: float | None = None
    pieces: list[str] = []
    try:
        with closing(llm.stream_chat(messages, sampling)) as stream:
            for piece in stream:
                first_s = first_s or clock.monotonic()
                pieces.append(piece)
                sys.stdout.write(piece)
                sys.stdout.flush()
    except KeyboardInterrupt:
        typer.secho(" [stopped]", err=True, dim=True)
    except InvalidRequest as error:
        messages.pop()
        typer.secho(f"error: {error}", err=True, fg=typer.colors.RED)
        return
    sys.stdout.write("\n")
    messages.append({"role": "assistant", "content": "".join(pieces)})
    if first_s is not None and sys.stderr.isatty():
        decode_s = max(clock.monotonic() - first_s, 1e-9)
        rate = (len(pieces) - 1) / decode_s
        typer.secho(f"first {first_s - started_s:.2f} s, {rate:.0f} tokens/s", err=True, dim=True)


def _read_line() -> str | None:
    """A line, or None at the end of the input. Ctrl-C clears the line."""
    while True:
        try:
            return input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return None
        except KeyboardInterrupt:
            sys.stdout.write("\n")
