"""`rtp-serve config check`: what a configuration file means, before anything starts."""

from collections.abc import Iterator

import typer
from pydantic import BaseModel

from rtp_serve.config.serve_file import ApplicationEntry, ServeFile, read_serve_file


def check_config(path: str) -> None:
    """Print every setting that the file changes, with its meaning. Raises ConfigError."""
    file = read_serve_file(path)
    typer.echo(f"{path}: ok")
    typer.echo(f"  HTTP: {_address(file)}")
    for application in file.applications:
        typer.echo(f"  application {application.name!r}: {application.import_path}")
        for line in _explain(application):
            typer.echo(f"    {line}")


def _address(file: ServeFile) -> str:
    if not any(map(file.serves_http, file.applications)):
        return "disabled"
    return f"http://{file.http_options.host}:{file.http_options.port}"


def _explain(application: ApplicationEntry) -> Iterator[str]:
    """One line a setting that is not left at its default."""
    if not application.is_ours:
        yield "not one of this package's topologies: its arguments are not checked"
        return
    yield from _changed_settings(application.config, "")


def _changed_settings(config: BaseModel, prefix: str) -> Iterator[str]:
    for name in sorted(config.model_fields_set):
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            yield from _changed_settings(value, f"{prefix}{name}.")
        elif value and isinstance(value, tuple) and isinstance(value[0], BaseModel):
            for index, entry in enumerate(value):
                yield from _changed_settings(entry, f"{prefix}{name}[{index}].")
        else:
            meaning = type(config).model_fields[name].description or ""
            first_sentence = meaning.split(". ")[0].split("; ")[0].rstrip(".")
            yield f"{prefix}{name} = {value!r}   {first_sentence}"
