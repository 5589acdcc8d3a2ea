"""Name → lazily imported factory, so that choosing a variant imports only that variant."""

from collections.abc import Iterator
from importlib import import_module
from typing import Generic, TypeVar, cast

from rtp_serve.errors import ConfigError, did_you_mean

T = TypeVar("T")


class Registry(Generic[T]):
    """A closed set of variants. `kind` is the word used in errors ("architecture")."""

    def __init__(self, kind: str, targets: dict[str, str]) -> None:
        """`targets` maps a name to `"package.module:attribute"`."""
        self._kind = kind
        self._targets = dict(targets)

    def __iter__(self) -> Iterator[str]:
        return iter(self._targets)

    def __contains__(self, name: str) -> bool:
        return name in self._targets

    def load(self, name: str) -> T:
        """Import and return the variant. Raises ConfigError for an unknown name."""
        target = self._targets.get(name)
        if target is None:
            raise ConfigError(f"unknown {self._kind} {name!r}{did_you_mean(name, self._targets)}")
        module, _, attribute = target.partition(":")
        return cast(T, getattr(import_module(module), attribute))
