"""Runs a benchmark's `main` as a command: our own errors are one line on stderr and exit code 1."""

import signal
import sys
from collections.abc import Callable

import typer

from rtp_serve.errors import RtpServeError


def run(main: Callable[..., None]) -> None:
    """Parse the command line by `main`'s signature and call it.

    SIGTERM ends it as Ctrl-C does, so that what it has started is taken down.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    try:
        app()
    except RtpServeError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
