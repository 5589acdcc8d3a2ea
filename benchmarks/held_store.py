"""A store that may keep whoever brings blocks waiting."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rtp_serve.kv_store.client import StoreClient
from rtp_serve.kv_store.reservation import Refusal, Reservation, StoreRequest


class HeldStore:
    """All but bringing blocks goes on meanwhile."""

    def __init__(self, store: StoreClient) -> None:
        self._store = store
        self._may_reserve = threading.Event()
        self._may_reserve.set()

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    def reserve(
        self, requests: Sequence[StoreRequest], owner: str
    ) -> tuple[Reservation | Refusal, ...]:
        """See `StoreClient.reserve`."""
        self._may_reserve.wait()
        return self._store.reserve(requests, owner)

    def let_go(self) -> None:
        """Nobody waits any more."""
        self._may_reserve.set()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Until `let_go`, at the latest to the end."""
        self._may_reserve.clear()
        try:
            yield
        finally:
            self.let_go()
