"""Small numbers for names, so that tables can be arrays and sets of names can be bits."""

from collections.abc import Iterator

from rtp_serve.errors import ConfigError


class Slots:
    """Names ↔ slots. A slot is given again after its name was removed, the lowest first."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._slots: dict[str, int] = {}
        self._names: list[str | None] = []

    def __contains__(self, name: str) -> bool:
        return name in self._slots

    def __iter__(self) -> Iterator[str]:
        return iter(self._slots)

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def size(self) -> int:
        """One more than the highest slot that was ever given."""
        return len(self._names)

    def get(self, name: str) -> int | None:
        return self._slots.get(name)

    def name(self, slot: int) -> str:
        name = self._names[slot]
        assert name is not None, f"slot {slot} is free"
        return name

    def add(self, name: str) -> int:
        """The slot of `name`, which may have one. Raises ConfigError if all are given."""
        slot = self._slots.get(name)
        if slot is not None:
            return slot
        if len(self._slots) < len(self._names):
            slot = self._names.index(None)
            self._names[slot] = name
        elif len(self._names) < self.capacity:
            slot = len(self._names)
            self._names.append(name)
        else:
            raise ConfigError(f"max_workers: {self.capacity} are there, no place for {name!r}")
        self._slots[name] = slot
        return slot

    def remove(self, name: str) -> int:
        """Free the slot of `name`, and say which it was."""
        slot = self._slots.pop(name)
        self._names[slot] = None
        return slot

    def check_invariants(self) -> None:
        named = {name: slot for slot, name in enumerate(self._names) if name is not None}
        assert named == self._slots, f"{named} != {self._slots}"
