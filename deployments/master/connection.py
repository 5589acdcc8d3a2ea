"""Calls to the Master from one event loop. They come to an end, whatever the Master does."""

import asyncio
from collections.abc import Callable
from typing import Any

from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError


class MasterSilent(Exception):
    """The Master did not answer in time, or is not there."""


class MasterConnection:
    """Has the actor once it was found."""

    def __init__(self, find_or_start: Callable[[], ActorHandle]) -> None:
        self._find_or_start = find_or_start
        self._actor: ActorHandle | None = None

    async def find(self) -> None:
        """Find the actor, or start it: the one that was found may have ended for good. Raises
        MasterSilent."""
        try:
            self._actor = await asyncio.to_thread(self._find_or_start)
        except (RayError, ValueError) as error:
            raise MasterSilent(_reason(error)) from error

    async def ask(self, method: str, *arguments: bytes, timeout_s: float) -> Any:
        """What a method of the actor returns. Raises MasterSilent."""
        if self._actor is None:
            raise MasterSilent("it was not found yet")
        try:
            async with asyncio.timeout(timeout_s):
                return await getattr(self._actor, method).remote(*arguments)
        except TimeoutError as error:
            raise MasterSilent(f"no answer within {timeout_s:g} s") from error
        except RayError as error:
            raise MasterSilent(_reason(error)) from error

    def tell(self, method: str, data: bytes) -> None:
        """Without waiting, and without knowing whether it is heard."""
        if self._actor is not None:
            getattr(self._actor, method).remote(data)


def _reason(error: Exception) -> str:
    """One line."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    first_line, _, _ = str(cause).partition("\n")
    return f"{type(cause).__name__}: {first_line}"
