"""A store that may keep whoever brings blocks waiting, and whoever writes them to the disk."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

from rtp_serve.kv_store.arena import Arena
from rtp_serve.kv_store.client import StoreClient

_Arguments = ParamSpec("_Arguments")
_Answer = TypeVar("_Answer")


class HeldStore:
    """All but storing goes on meanwhile. What is in the middle of a piece ends it first."""

    def __init__(self, store: StoreClient, arena: Arena) -> None:
        """`arena` is the store's, as engine and store have it: from now on it waits too, before
        blocks are copied to it and before the disk looks at them."""
        self._store = store
        self._may_store = threading.Event()
        self._may_store.set()
        self.reserve = self._waiting(store.reserve)
        for name in ("put", "view"):
            setattr(arena, name, self._waiting(getattr(arena, name)))

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    def hold(self) -> None:
        """Whoever stores waits from now on."""
        self._may_store.clear()

    def let_go(self) -> None:
        """Nobody waits any more."""
        self._may_store.set()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Until `let_go`, at the latest to the end."""
        self.hold()
        try:
            yield
        finally:
            self.let_go()

    def _waiting(self, call: Callable[_Arguments, _Answer]) -> Callable[_Arguments, _Answer]:
        def wait_and_call(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Answer:
            self._may_store.wait()
            return call(*args, **kwargs)

        return wait_and_call
