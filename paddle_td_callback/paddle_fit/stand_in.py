"""Objects that stand in for others and are taken for them: attributes, special methods and class are the original's."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

# What Python asks of the stand-in itself; all other special methods go to the original.
_OWN = frozenset(
    f"__{name}__"
    for name in (
        *("class", "new", "init", "init_subclass", "subclasshook", "class_getitem", "del", "doc", "module"),
        *("getattribute", "getattr", "setattr", "delattr", "dict", "slots", "weakref", "annotations"),
        *("reduce", "reduce_ex", "getstate", "setstate", "sizeof"),
    )
)


class StandIn:
    """Behaves like `original`, but for what a subclass overrides. A copy of it is a copy of the original.

    Python looks special methods up on the class, so there is a class of stand-ins for each class of originals.

    Args:
        original: what it stands in for.
    """

    __slots__ = ("__weakref__", "_td_original")  # names that no original has

    def _td_set(self, **values: Any) -> None:
        for slot, value in values.items():
            object.__setattr__(self, slot, value)

    def __new__(cls, original: Any, *_args: Any, **_named: Any) -> Any:  # noqa: D102
        return object.__new__(_class_for(cls, type(original)))  # type: ignore[arg-type]

    def __init__(self, original: Any) -> None:
        self._td_set(_td_original=original)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._td_original, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._td_original, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self._td_original, name)

    @property
    def __dict__(self) -> dict[str, Any]:  # type: ignore[override]
        named: dict[str, Any] = self._td_original.__dict__
        return named

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return type(self._td_original)

    def __eq__(self, other: object) -> bool:
        other = original_of(other)
        return bool(self._td_original is other or self._td_original == other)

    def __hash__(self) -> int:
        return hash(self._td_original)

    def __repr__(self) -> str:
        return repr(self._td_original)

    def __reduce_ex__(self, _protocol: Any) -> tuple[Any, ...]:
        return _same, (self._td_original,)


def original_of(one: Any, kind: type = StandIn) -> Any:
    """What stood there before all stand-ins of a kind."""
    while issubclass(type(one), kind):
        one = one._td_original
    return one


def _same(one: Any) -> Any:
    return one


@functools.lru_cache(maxsize=64)
def _class_for(cls: type, kind: type) -> type:
    overridden = {name for base in cls.__mro__[:-1] for name in vars(base)}
    methods: dict[str, Any] = {"__slots__": ()}
    for name in dir(kind):
        is_special = name.startswith("__") and name.endswith("__") and name not in _OWN | overridden
        method = getattr(kind, name, None)
        if is_special and callable(method) and method is not getattr(object, name, None):
            methods[name] = _forward(method)
    return type(cls.__name__, (cls,), methods)


def _forward(method: Callable[..., Any]) -> Callable[..., Any]:
    def forward(self: StandIn, *args: Any, **named: Any) -> Any:
        return method(self._td_original, *args, **named)

    return forward
