"""Copies of an index, and its state as a value, for those who try all that can happen to it.

Both walk over attributes and know none of them but those that they leave out.
"""

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from typing import Any

_VALUES = (int, float, str, bytes, type(None), Enum, tuple)
_NO_STATE = frozenset({"counts", "events", "_events", "_marks", "_limits"})
"""Attributes that have no part in what an index will answer."""


@cache
def _is_value_type(kind: type) -> bool:
    if issubclass(kind, _VALUES):
        return True
    return is_dataclass(kind) and kind.__dataclass_params__.frozen


@cache
def _field_names(kind: type) -> tuple[str, ...]:
    return tuple(each.name for each in fields(kind)) if is_dataclass(kind) else ()


def _attributes(thing: Any) -> Iterable[str]:
    return _field_names(type(thing)) or vars(thing)


def clone(thing: Any, marks: Any, memo: dict[int, Any] | None = None) -> Any:
    """A copy that shares values only. `marks` takes the place of the index's."""
    memo = {} if memo is None else memo
    if _is_value_type(type(thing)):
        return thing
    if id(thing) in memo:
        return memo[id(thing)]
    if isinstance(thing, (dict, Counter)):
        copy: Any = type(thing)()
        copy.update({key: clone(each, marks, memo) for key, each in thing.items()})
    elif isinstance(thing, deque):
        copy = deque(thing, thing.maxlen)
    elif isinstance(thing, (set, list)):
        copy = type(thing)(thing)
    else:
        copy = object.__new__(type(thing))
        for name in _attributes(thing):
            each = marks if name == "_marks" else clone(getattr(thing, name), marks, memo)
            setattr(copy, name, each)
    memo[id(thing)] = copy
    return copy


def state_of(thing: Any) -> Any:
    """A hashable value, equal for indexes that will answer alike."""
    if isinstance(thing, dict):
        return tuple((key, state_of(each)) for key, each in thing.items())
    if isinstance(thing, set):
        return frozenset(thing)
    if isinstance(thing, (deque, list)):
        return tuple(thing)
    if _is_value_type(type(thing)):
        return thing
    names = (name for name in _attributes(thing) if name not in _NO_STATE)
    return tuple(state_of(getattr(thing, name)) for name in names)
