"""`rtp-serve models`: the catalogue as a table."""

import typer

from rtp_serve.loader.hub import models


def list_models() -> None:
    """Print alias, size, licence, source and whether this machine has it."""
    typer.echo(f"{'alias':28}{'parameters':>12}  {'licence':14}{'source':28}here")
    for entry in models():
        size = f"{entry.num_parameters / 1e6:.0f} M"
        here = "yes" if entry.is_cached else "no"
        typer.echo(f"{entry.alias:28}{size:>12}  {entry.licence:14}{entry.source:28}{here}")
    typer.echo("\nAlso: a checkpoint directory, a .gguf file, a Hugging Face repository id.")
