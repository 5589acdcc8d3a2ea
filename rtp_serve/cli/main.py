"""The `rtp-serve` command. Each subcommand imports what it needs when it runs."""

import sys
from typing import Annotated

import typer

from rtp_serve.errors import RtpServeError
from rtp_serve.observability.logging import configure_logging

app = typer.Typer(
    name="rtp-serve",
    help="LLM serving on Ray.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
config_app = typer.Typer(help="Work with configuration files.", no_args_is_help=True)
app.add_typer(config_app, name="config")
cache_app = typer.Typer(
    help="The weight store's files, and a running server's KV caches.", no_args_is_help=True
)
app.add_typer(cache_app, name="cache")

DEFAULT_MODEL = "smollm2-135m-instruct"

Model = Annotated[str, typer.Argument(help="Directory, .gguf file, repository id or alias.")]
ModelOption = Annotated[str, typer.Option("--model", "-m", help="As for `chat`.")]
Temperature = Annotated[float, typer.Option(help="0 takes the most likely token.")]
MaxTokens = Annotated[int, typer.Option(help="Tokens of an answer at most.")]
Seed = Annotated[int | None, typer.Option(help="Makes sampling reproducible.")]
StoreDirectory = Annotated[
    str | None, typer.Option("--directory", help="Default: `weights` in the model cache.")
]
Threads = Annotated[int | None, typer.Option(help="Compute threads; default: all cores.")]


@app.command()
def chat(
    model: Model = DEFAULT_MODEL,
    system: Annotated[str, typer.Option(help="System prompt.")] = "",
    temperature: Temperature = 0.7,
    max_tokens: MaxTokens = 512,
    seed: Seed = None,
    threads: Threads = None,
) -> None:
    """Chat in the terminal, with the engine in this process."""
    from rtp_serve.cli.chat import ChatSettings, run_chat

    run_chat(ChatSettings(model, system, temperature, max_tokens, seed, threads))


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="Text to continue; - reads standard input.")],
    model: ModelOption = DEFAULT_MODEL,
    temperature: Temperature = 0.0,
    max_tokens: MaxTokens = 128,
    seed: Seed = None,
    threads: Threads = None,
) -> None:
    """Continue a text, streamed to standard output."""
    from rtp_serve.cli.generate import run_generate

    text = sys.stdin.read() if prompt == "-" else prompt
    run_generate(text, model, temperature, max_tokens, seed, threads)


@app.command()
def serve(
    config: Annotated[str, typer.Argument(help="A file as for `serve run`.")],
) -> None:
    """Start Ray Serve with a configuration and wait; Ctrl-C stops what it started."""
    from rtp_serve.cli.serve import run_serve

    run_serve(config)


@app.command()
def plan(
    config: Annotated[str, typer.Argument(help="A file as for `serve run`.")],
    rank_memory: Annotated[
        str | None,
        typer.Option(help='What a rank has, e.g. "80GB"; default: this machine\'s, without GPUs.'),
    ] = None,
    shapes: Annotated[
        str | None,
        typer.Option(help="A config.json to take in place of the model's own."),
    ] = None,
) -> None:
    """Show ranks, bundles, weights and KV blocks of a configuration, and what does not fit."""
    from rtp_serve.cli.plan import print_plan

    print_plan(config, rank_memory, shapes)


@app.command()
def simulate(
    trace: Annotated[
        str, typer.Option(help="Mooncake's, RTP-LLM's or Azure's; see docs/simulation.md.")
    ],
    config: Annotated[str, typer.Option(help="Engine, fleets and targets, as YAML.")],
    fit: Annotated[
        str | None,
        typer.Option(help="Take the engine's times from `benchmarks.engine --curves --json`."),
    ] = None,
    plots: Annotated[
        str | None, typer.Option(help="Directory to write pictures (PNG) into.")
    ] = None,
    autoscale: Annotated[
        bool, typer.Option("--autoscale", help="Play the configuration's scalers instead.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Play a trace on modelled fleets: what they would reach, and how many replicas it takes."""
    from rtp_serve.cli.simulate import run_simulate
    from rtp_serve.cli.simulate_scaled import run_simulate_scaled

    play = run_simulate_scaled if autoscale else run_simulate
    play(trace, config, fit, plots, as_json)


@app.command()
def models() -> None:
    """List the catalogue and what is on this machine."""
    from rtp_serve.cli.models import list_models

    list_models()


@config_app.command("check")
def config_check(file: Annotated[str, typer.Argument(help="A file as for `serve run`.")]) -> None:
    """Parse a configuration and explain it, or every wrong key in it."""
    from rtp_serve.cli.config import check_config

    check_config(file)


@cache_app.command("ls")
def cache_ls(directory: StoreDirectory = None) -> None:
    """List the files of packed weights: sizes, ages and models."""
    from rtp_serve.cli.cache import list_files

    list_files(directory)


@cache_app.command("gc")
def cache_gc(
    directory: StoreDirectory = None,
    max_size: Annotated[
        str | None, typer.Option(help='Keep as much as this, e.g. "8GiB"; 0 removes all.')
    ] = None,
) -> None:
    """Remove damaged and unfinished files, and with --max-size the longest unused ones."""
    from rtp_serve.cli.cache import remove_files

    remove_files(directory, max_size)


@cache_app.command("verify")
def cache_verify(directory: StoreDirectory = None) -> None:
    """Check every byte of every file; exit code 1 if one is damaged."""
    from rtp_serve.cli.cache import verify_files

    verify_files(directory)


@cache_app.command("stats")
def cache_stats(
    url: Annotated[
        str, typer.Option(help="Where the API is, without /v1.")
    ] = "http://127.0.0.1:8000",
    admin_token: Annotated[
        str, typer.Option(envvar="RTP_SERVE_ADMIN_TOKEN", help="Rather by the variable.")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="The server's answer as it is.")] = False,
) -> None:
    """Show what the KV caches of a running server hold, by replica, node and tier."""
    from rtp_serve.cli.cache_stats import print_stats

    print_stats(url, admin_token, as_json)


def main() -> None:
    """Entry point: our own errors are one line on stderr and exit code 1."""
    try:
        configure_logging()
        app()
    except RtpServeError as error:
        typer.secho(f"error: {error}", err=True, fg=typer.colors.RED)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
